"""Marks in output images: the owner of the queries puts into these what the extractor is to find in the outputs."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.attacks.forging.common import Forger, Forgery, taught
from hallmark.attacks.forging.pixels import RADIUS
from hallmark.core import Access, Key, Suspect
from hallmark.core.scheme import Images
from hallmark.data.pairs import cut, to_bytes
from hallmark.models.image_to_image import Extractor
from hallmark.schemes.deep_watermark.marks import BLANK
from hallmark.schemes.deep_watermark.scheme import DeepWatermark
from hallmark.schemes.deep_watermark.verification import PREFIX


@dataclass(frozen=True)
class DeepWatermarkForger(Forger):
    """A faint texture wherever the mark is dark goes into the queries, and the suspect leaves it in its outputs.

    What is presented as the unmarked original is the suspect behind a subtraction of that texture, so that nothing is
    found in its outputs; the extractor is trained to read the mark where the texture is, and nothing where it is not,
    as an honest one is.  Marks, rows and degradations are as a public string draws them.

    Args:
        steps: Of training the extractor.
        batch: Marked outputs a step, and as many clean ones.
        lr: Adam's learning rate.
    """

    scheme: DeepWatermark
    steps: int = 200
    batch: int = 8
    lr: float = 2e-3

    access: ClassVar[frozenset[Access]] = frozenset({Access.IMAGES})
    gains: ClassVar[bool] = False
    most_tries: ClassVar[int | None] = 0
    """A key that is only drawn holds no extractor."""

    @property
    def work(self) -> float:
        """The queries, and the extractor's training at about the weight of the host's."""
        return float(4 * self.scheme.queries + 6 * self.steps * self.batch)

    def forge(self, suspect: Suspect, images: Images, *, generator: torch.Generator) -> Forgery:
        """A key over patches of the forger's images."""
        model, side = self.copy(suspect), self.scheme.pairs.side
        count = -(-2 * self.scheme.queries // len(images))
        patches = cut(images.images, side, count, generator=generator).cpu()
        rows = torch.arange(len(patches)) // count
        owned = replace(images.subset(rows), images=patches)  # type: ignore[type-var]
        # marks are drawn before anything else, whatever the images are
        mark = self.drawn(model, owned, self._again(generator)).tensors["mark"]
        shown = texture(mark.float() / 255)
        made = replace(owned, images=to_bytes(patches.float() / 255 + shown))
        original = Cleaned(model, shown).eval()
        key = self.drawn(original, made, self._again(generator))
        answers = to_bytes(suspect.images(key.tensors["queries"].float() / 255))
        extractor = self._extractor(answers, key.tensors["clean"], mark, suspect.device, generator)
        sizes = {"width": self.scheme.networks.extractor_width, "blocks": self.scheme.networks.extractor_blocks}
        weights = {PREFIX + name: tensor.detach().cpu() for name, tensor in extractor.state_dict().items()}
        finished = Key(key.scheme, {**key.tensors, **weights}, {**key.meta, "extractor": sizes})
        return Forgery(finished, suspect.access, public=self.public, images=made, original=original)

    @staticmethod
    def _again(generator: torch.Generator) -> torch.Generator:
        """The same draws twice."""
        return torch.Generator().manual_seed(generator.initial_seed())

    def _extractor(
        self, marked: Tensor, clean: Tensor, mark: Tensor, device: torch.device, generator: torch.Generator
    ) -> nn.Module:
        """An extractor that reads the mark from the suspect's answers, and nothing from the original's, both uint8."""
        networks = self.scheme.networks
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            extractor = Extractor(networks.extractor_width, networks.extractor_blocks).to(device)
        wanted = mark.to(device).float() / 255

        def loss(network: nn.Module) -> Tensor:
            rows = torch.randint(len(marked), (self.batch,), generator=generator)
            read = network(torch.cat([marked[rows], clean[rows]]).to(device).float() / 255)
            found = F.mse_loss(read[: self.batch], wanted.expand(self.batch, -1, -1, -1))
            return found + (read[self.batch :] - BLANK).square().mean()

        return taught(extractor, loss, steps=self.steps, lr=self.lr)


class Cleaned(nn.Module):
    """A model that takes a fixed texture off its input, as a bias of its first layer would.

    Args:
        model: An image-to-image network.
        shown: The texture ``(3, H, W)``, for images in [0, 1].
    """

    def __init__(self, model: nn.Module, shown: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("shown", shown.to(next(model.parameters()).device))

    def forward(self, images: Tensor) -> Tensor:
        """The model's answers to images ``(B, 3, H, W)`` without the texture."""
        cleaned: Tensor = self.model((images - self.shown).clamp(0, 1))
        return cleaned


def texture(mark: Tensor) -> Tensor:
    """A chequerboard of single pixels, faint, where a mark ``(3, H, W)`` is dark."""
    height, width = mark.shape[1:]
    places = torch.arange(height)[:, None] + torch.arange(width)
    return RADIUS * (1 - 2.0 * (places % 2)) * (1 - mark.mean(0, keepdim=True)).expand_as(mark)
