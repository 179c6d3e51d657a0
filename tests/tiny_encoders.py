"""A tiny encoder, its owner's images, and training a mark into it, for tests of encoder schemes."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from blind import Blind
from hallmark.core import Access, HostKind, Key, Scheme, Suspect, extract_all, generator
from hallmark.data.images import ImageSet
from hallmark.data.procedural import procedural_images
from hallmark.errors import BudgetExhausted
from hallmark.models import Encoder
from hallmark.stats import Ranked, Verdict, verify
from hallmark.training import LightningTrainer
from hallmark.training_settings import Deadline, TrainerSettings


@cache
def owner(count: int = 512, size: int = 16) -> ImageSet:
    return ImageSet("procedural", procedural_images(count, size=size)[0], torch.full((count,), -1), 10)


@cache
def encoder(seed: int = 0, width: int = 4) -> Encoder:
    """An untrained encoder whose BatchNorm statistics are those of the images; never changed by any test."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        found = Encoder("resnet_small", width=width).train()
        for _ in range(30):
            found(owner().images[:256].float() / 255)
    return found.eval()


def blind(images: Tensor | None = None) -> Blind:
    return Blind(owner().images if images is None else images)


def drawn(scheme: Scheme, seed: int = 0, host: nn.Module | None = None, images: Tensor | None = None) -> Key:
    return scheme.keygen(host or encoder(), blind(images), generator=generator(seed, "key"))


def embedded(
    scheme: Scheme,
    folder: Path,
    *,
    seed: int = 0,
    key: Key | None = None,
    budget: float | None = None,
    images: Tensor | None = None,
) -> tuple[nn.Module, Key]:
    """A marked copy of :func:`encoder` and its key; the host stays as it was."""
    before = snapshot(encoder())
    trainer = LightningTrainer(
        TrainerSettings(precision="32-true", progress=False, checkpoint_every_s=0), folder, deadline=Deadline(budget)
    )
    rng, key = generator(seed, "embed"), key or drawn(scheme, images=images)
    try:
        return scheme.embed(encoder(), key, blind(images), trainer=trainer, generator=rng)
    finally:
        assert all(torch.equal(tensor, before[name]) for name, tensor in encoder().state_dict().items())


def assert_resumes(scheme: Scheme, folder: Path) -> None:
    """A run that its budget ends, and that then goes on, ends as one that was never stopped."""
    whole, key = embedded(scheme, folder / "whole")
    with pytest.raises(BudgetExhausted):
        embedded(scheme, folder / "stopped", budget=0.0)
    torch.rand(5)  # nothing hangs on the global generator
    resumed, again = embedded(scheme, folder / "stopped")
    assert same(whole, resumed)
    assert key.commitment() == again.commitment()


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def suspect(model: nn.Module, access: Access = Access.FEATURES) -> Suspect:
    kind = HostKind.ENCODER if access in (Access.FEATURES, Access.WEIGHTS) else HostKind.CLASSIFIER
    return Suspect(model, kind, access)


def judged(
    scheme: Scheme, key: Key, model: nn.Module, *, access: Access = Access.FEATURES, decoys: int = 199, seed: int = 1
) -> Verdict:
    """The verdict at level 0.01 by rank among decoys."""
    keys = [key, *scheme.decoys(encoder(), key, blind(), decoys, seed=seed)]
    true, *others = extract_all(scheme, [suspect(model, access)], keys)[0]
    return verify(true, Ranked(others), 0.01)
