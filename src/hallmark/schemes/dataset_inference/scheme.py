"""dataset_inference: no mark; training images are likelier than others under the encoder (Dziedzic et al. 2022)."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from hallmark.core import Access, Evidence, HostKind, Key, Scheme, Suspect, Trainer
from hallmark.core import generator as generator_for
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError, DataError, KeyFileError
from hallmark.schemes.dataset_inference.likelihood import log_likelihoods

BLOCK = 1024
"""Images a question: as floats they fit into memory at any usual size."""


@dataclass(frozen=True)
class DatasetInference(Scheme):
    """Claims an encoder by the images that it was trained on, and leaves it as it is.

    Args:
        fit: Number of the owner's training images that a mixture is fitted to.
        judged: Number n of further training images, and of images that no host saw, whose likelihoods are compared.
        components: Number of Gaussians in the mixture.
    """

    fit: int = 10_000
    judged: int = 2000
    components: int = 10

    name: ClassVar[str] = "dataset_inference"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.ENCODER})
    access: ClassVar[frozenset[Access]] = frozenset({Access.FEATURES})
    trains: ClassVar[bool] = False
    uses_unseen: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.components < 1 or self.fit < 2 * self.components:
            raise ConfigError(
                f"scheme.fit={self.fit} must be at least twice scheme.components={self.components}, itself at least 1"
            )
        if self.judged < 2:
            raise ConfigError(f"scheme.judged must be at least 2, got {self.judged}")

    def check(self, image_size: int, images: int) -> None:
        """Images to fit to and to judge must be different ones of the owner's."""
        if self.fit + self.judged > images:
            raise ConfigError(
                f"scheme.fit={self.fit} and judged={self.judged} need {self.fit + self.judged} images, but the owner "
                f"has {images}; lower one of them"
            )

    def check_unseen(self, images: int) -> None:
        """As many unseen images as training images are judged."""
        if self.judged > images:
            raise ConfigError(
                f"scheme.judged={self.judged} exceeds the {images} images that no host saw; lower it or raise "
                "test.limit"
            )

    def keygen(self, host: nn.Module, owner_data: Images, *, generator: torch.Generator) -> Key:
        """Draw training images to fit to, and others to judge."""
        self.check(0, len(owner_data))
        rows = torch.randperm(len(owner_data), generator=generator)[: self.fit + self.judged]
        seed = int(torch.randint(2**32, (), generator=generator))
        fit, judged = owner_data.images[rows].cpu().split([self.fit, self.judged])
        return Key(self.name, {"fit": fit, "judged": judged}, {"seed": seed})

    def witness(self, key: Key, unseen: Images, *, generator: torch.Generator) -> Key:
        """Add as many images that no host saw to those that are judged, and which of them are members."""
        self.check_unseen(len(unseen))
        rows = torch.randperm(len(unseen), generator=generator)[: self.judged]
        members, others = key.tensors["judged"], unseen.images[rows].cpu()
        if members.shape[1:] != others.shape[1:]:
            raise DataError(
                f"training images are {tuple(members.shape[1:])} and unseen ones {tuple(others.shape[1:])}; their "
                "sizes must be equal"
            )
        member = torch.arange(2 * len(members)) < len(members)
        tensors = {**key.tensors, "judged": torch.cat([members, others]), "member": member.to(torch.uint8)}
        return replace(key, tensors=tensors)

    def follows(self, key: Key, drawn: Key) -> bool:
        """Whether the training images are the drawn ones; unseen images, which a witness adds, are not drawn."""
        claimed = {**key.tensors, "judged": key.tensors["judged"][: self.judged]}
        return super().follows(replace(key, tensors=claimed), drawn)

    def embed(
        self, host: nn.Module, key: Key, owner_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> tuple[nn.Module, Key]:
        """The host as it is."""
        return deepcopy(host).eval(), key

    def decoys(self, host: nn.Module, key: Key, owner_data: Images, count: int, *, seed: int) -> Sequence[Key]:
        """The same images with other halves called members."""
        rng, member = generator_for(seed, "members"), _member(key)
        halves = (member[torch.randperm(len(member), generator=rng)] for _ in range(count))
        return [replace(key, tensors={**key.tensors, "member": half.to(torch.uint8)}) for half in halves]

    def extract(self, suspect: Suspect, key: Key) -> Evidence:
        """Log-likelihoods of training images, against those of unseen ones; pairs have nothing else in common.

        Raises:
            AccessError: The suspect does not show its features.
            KeyFileError: The key holds no unseen images.
        """
        return self.extract_many(suspect, [key])[0]

    def extract_many(self, suspect: Suspect, keys: Sequence[Key]) -> list[Evidence]:
        """The evidence of many keys; those over the same images share one mixture."""
        self.require_access(suspect)
        found: dict[tuple[int, int, int], Tensor] = {}
        evidence = []
        for key in keys:  # they keep alive what is recognised by its identity here
            member = _member(key)
            images = (id(key.tensors["fit"]), id(key.tensors["judged"]), int(key.meta["seed"]))
            if images not in found:
                found[images] = self.likelihoods(suspect, key)
            pairs = torch.stack([found[images][member], found[images][~member]], dim=1)
            evidence.append(Evidence(Access.FEATURES, scores=pairs))
        return evidence

    def likelihoods(self, suspect: Suspect, key: Key) -> Tensor:
        """Log-likelihoods ``(2n,)`` of the judged images under the mixture of a suspect's features."""
        fitted, judged = (
            torch.cat([suspect.features(block.float() / 255) for block in key.tensors[name].split(BLOCK)])
            for name in ("fit", "judged")
        )
        return log_likelihoods(fitted, judged, self.components, seed=int(key.meta["seed"]))

    def figures(self, suspect: Suspect, key: Key) -> Mapping[str, float]:
        """``t_test_p``, the paper's p-value: Student's two-sample test that training images are likelier."""
        scores = self.extract(suspect, key).scores
        members, others = scores.unbind(1)  # type: ignore[union-attr]
        if bool((scores == scores[0, 0]).all()):  # type: ignore[index, union-attr]
            return {"t_test_p": 1.0}
        from scipy import stats as scipy_stats  # takes a second to import, which planning can do without

        return {"t_test_p": float(scipy_stats.ttest_ind(members, others, alternative="greater").pvalue)}


def _member(key: Key) -> Tensor:
    """Which of the judged images are training images, bool ``(2n,)``.

    Raises:
        KeyFileError: The key holds training images alone.
    """
    if "member" not in key.tensors:
        raise KeyFileError(
            "the key holds no images that the host has not seen; use the key that the embed stage wrote, or add them "
            "by DatasetInference.witness"
        )
    return key.tensors["member"].bool()
