"""Training the mark: the initial stage, the owner's own surrogate, and the adversarial stage."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.alternating import Alternating, frozen
from hallmark.core import Trainer, derive_seed, generator
from hallmark.data.pairs import degrade
from hallmark.data.resident import Batch, ResidentBatches
from hallmark.errors import ConfigError
from hallmark.models.image_to_image import Barrier, Barriered, Discriminator, Extractor, ImageToImage, fresh
from hallmark.models.inference import Answering
from hallmark.models.perceptual import Perceptual
from hallmark.restoration import train_on_pairs
from hallmark.schemes.deep_watermark.losses import extraction_loss, gan_loss
from hallmark.schemes.deep_watermark.marks import BLANK
from hallmark.schemes.deep_watermark.scheme import DeepWatermark


def embed(
    host: nn.Module,
    mark: Tensor,
    family: Tensor,
    patches: Tensor,
    scheme: DeepWatermark,
    *,
    trainer: Trainer,
    seed: int,
) -> tuple[nn.Module, Extractor]:
    """A marked model and the extractor that reads it.

    Args:
        host: The unmarked host; left untouched.
        mark: The mark that the model is to bear, float ``(3, H, W)`` in [0, 1].
        family: All marks that barrier and extractor learn ``(K, 3, H, W)``; the first is the one that the owner's own
            surrogate inherits.
        patches: The owner's clean images, uint8 ``(N, 3, H, W)``.
        scheme: Networks, losses and schedule.
        trainer: Runs the loops.
        seed: Seeds everything.

    Returns:
        Both in evaluation mode.

    Raises:
        ConfigError: A host that is to mark its outputs by itself is of a kind that cannot be trained so.
    """
    if scheme.variant == "absorbed" and not isinstance(host, ImageToImage):
        raise ConfigError(f"variant=absorbed trains an ImageToImage host, got a {type(host).__name__}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init"))
        marker = deepcopy(host) if scheme.variant == "absorbed" else Barrier(scheme.networks.barrier)
        extractor = Extractor(scheme.networks.extractor_width, scheme.networks.extractor_blocks)
        initial = InitialStage(host, marker, extractor, family, scheme, derive_seed(seed, "initial"))
    batches = ResidentBatches(patches, batch=min(scheme.embedding.batch, len(patches) // 2 * 2), seed=seed)
    trainer.fit(initial, batches, epochs=scheme.embedding.epochs)
    marker.eval()

    def bearing(one: Tensor) -> nn.Module:
        return Barriered(deepcopy(host), marker, one).eval() if isinstance(marker, Barrier) else marker

    stage = scheme.adversarial
    if stage.epochs:
        surrogate = train_on_pairs(
            fresh(stage.network, derive_seed(seed, "surrogate")),
            patches,
            stage.fit,
            law=scheme.pairs,
            teacher=Answering(bearing(family[0])),
            trainer=trainer,
            seed=derive_seed(seed, "surrogate"),
        )
        adversarial = AdversarialStage(
            host, marker, extractor, surrogate, family, scheme, derive_seed(seed, "adversarial")
        )
        trainer.fit(adversarial, batches, epochs=stage.epochs)
    return bearing(mark), extractor.eval()


class _Stage(Alternating):
    """What both stages share: pairs from clean patches, the host's answers, and marks.

    Args:
        host: The unmarked host; a frozen copy of it is kept.
        marker: The barrier, or a host that is to make marked outputs by itself.
        extractor: R.
        family: The marks ``(K, 3, H, W)``.
        scheme: Pairs and weights of the loss terms.
        lr: Learning rate.
        seed: Seeds degradations and marks by step.
    """

    family: Tensor

    def __init__(
        self,
        host: nn.Module,
        marker: Barrier | ImageToImage,
        extractor: Extractor,
        family: Tensor,
        scheme: DeepWatermark,
        *,
        lr: float,
        seed: int,
    ) -> None:
        super().__init__(lr)
        self.host = Answering(host)
        self.marker = marker
        self.extractor = extractor
        self.pairs, self.weights = scheme.pairs, scheme.weights
        self.seed = seed
        self.register_buffer("family", family, persistent=False)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> dict[str, Tensor]:
        """Inputs, clean outputs and marks of a batch, outside autocast; both halves bear the same marks."""
        with torch.no_grad():
            images = batch.images.float() / 255
            inputs = degrade(images, self.pairs, generator=generator(self.seed, "degrade", batch.step))
            rng = generator(self.seed, "marks", batch.step)
            half = torch.randint(len(self.family), (len(images) // 2,), generator=rng)
            marks = self.family[torch.cat([half, half]).to(self.device)]
            return {"targets": images, "inputs": inputs, "clean": self.host(inputs), "marks": marks}

    def mark(self, batch: dict[str, Tensor]) -> Tensor:
        """Marked outputs, not cut to [0, 1]."""
        if isinstance(self.marker, Barrier):
            marked: Tensor = self.marker(batch["clean"], batch["marks"])
            return marked
        return self.marker.unclamped(batch["inputs"])

    def extraction(self, marked: Tensor, batch: dict[str, Tensor], marks: Tensor) -> Tensor:
        """R's loss on marked images ``(B, 3, H, W)`` and on the batch's inputs and clean outputs."""
        # one pass for all: R normalises each image by itself
        read = self.extractor(torch.cat([marked, batch["inputs"], batch["clean"]])).float()
        return extraction_loss(read[: len(marked)], read[len(marked) :], marks, BLANK, self.weights)


class InitialStage(_Stage):
    """Barrier (or host) and extractor against a discriminator.

    Args:
        host: The unmarked host; a frozen copy of it is kept.
        marker: The barrier, or a copy of the host that is to make marked outputs by itself; trained in place.
        extractor: R, trained in place.
        family: The marks ``(K, 3, H, W)``.
        scheme: Pairs, loss terms, sizes and learning rate.
        seed: Seeds degradations and marks by step.
    """

    def __init__(
        self,
        host: nn.Module,
        marker: Barrier | ImageToImage,
        extractor: Extractor,
        family: Tensor,
        scheme: DeepWatermark,
        seed: int,
    ) -> None:
        super().__init__(host, marker, extractor, family, scheme, lr=scheme.embedding.lr, seed=seed)
        self.discriminator = Discriminator(scheme.networks.discriminator_width)
        self.balance = scheme.extraction
        self.perceptual = Perceptual(scheme.perceptual) if self.weights.perceptual else None

    def players(self) -> list[list[nn.Module]]:
        """H (or the host) and R together, then D."""
        return [[self.marker, self.extractor], [self.discriminator]]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """A turn of H and R, one of D."""
        weights, form = self.weights, self.weights.gan
        marked = self.mark(batch)
        shown = marked.clamp(0, 1)
        # a barrier is to leave the host's output alone; a host that marks by itself is to do its own task
        wanted = batch["clean" if isinstance(self.marker, Barrier) else "targets"]
        with frozen(self.discriminator):
            adversarial = gan_loss(self.discriminator(shown), real=True, form=form)
        pixel = F.mse_loss(marked, wanted)
        embedding = weights.pixel * pixel + weights.adversarial * adversarial
        if self.perceptual is not None:
            embedding = embedding + weights.perceptual * self.perceptual(shown, wanted)
        extraction = self.extraction(shown, batch, batch["marks"])
        loss = embedding + self.balance * extraction
        self.turn(0, loss)
        judged = gan_loss(self.discriminator(batch["clean"]), real=True, form=form)
        self.turn(1, judged + gan_loss(self.discriminator(shown.detach()), real=False, form=form))
        psnr = -10 * pixel.detach().log10()
        self.log_dict({"loss": loss.detach(), "extraction": extraction.detach(), "psnr": psnr}, prog_bar=True)
        return {"loss": loss.detach()}


class AdversarialStage(_Stage):
    """R alone, on what the marked model and the owner's surrogate of it put out.

    Args:
        host: The unmarked host; a frozen copy of it is kept.
        marker: As the initial stage left it.
        extractor: R, trained in place.
        surrogate: Trained on the outputs of the model that bears the first mark of the family.
        family: The marks ``(K, 3, H, W)``.
        scheme: Pairs, loss terms and learning rate.
        seed: Seeds degradations and marks by step.
    """

    def __init__(
        self,
        host: nn.Module,
        marker: Barrier | ImageToImage,
        extractor: Extractor,
        surrogate: nn.Module,
        family: Tensor,
        scheme: DeepWatermark,
        seed: int,
    ) -> None:
        super().__init__(host, marker, extractor, family, scheme, lr=scheme.adversarial.lr, seed=seed)
        self.surrogate = Answering(surrogate)

    def players(self) -> list[list[nn.Module]]:
        """R."""
        return [[self.extractor]]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """R reads the mark from marked outputs and from the surrogate's, alike, and nothing from the others."""
        with torch.no_grad():
            marked, inherited = self.mark(batch).clamp(0, 1), self.surrogate(batch["inputs"])
        rehearsed = self.family[:1].expand_as(marked)
        # halves as extraction_loss wants them, which compares like with like
        images = _interleaved(marked, inherited)
        marks = _interleaved(batch["marks"], rehearsed)
        loss = self.extraction(images, batch, marks)
        self.turn(0, loss)
        self.log("loss", loss.detach(), prog_bar=True)
        return {"loss": loss.detach()}


def _interleaved(one: Tensor, other: Tensor) -> Tensor:
    """First halves of both, then second halves of both."""
    return torch.cat([half for halves in zip(one.chunk(2), other.chunk(2), strict=True) for half in halves])
