"""Tiny victims of every kind, and what tests of attacks ask of them."""

import torch
from torch import Tensor, nn

from hallmark.core import Attack, HostKind, Suspect, generator
from hallmark.data.images import ImageSet
from hallmark.data.procedural import procedural_images
from hallmark.models import Classifier, Encoder
from hallmark.training import LightningTrainer

CLASSES = 4


def data(count: int = 96, classes: int = CLASSES) -> ImageSet:
    return ImageSet("procedural", *procedural_images(count, classes=classes, size=12), classes)


def victim(kind: HostKind) -> nn.Module:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        if kind is HostKind.IMAGE_TO_IMAGE:
            down, up = nn.Conv2d(3, 8, 2, stride=2), nn.ConvTranspose2d(8, 3, 2, stride=2)
            return nn.Sequential(down, nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), up).eval()
        encoder = Encoder("resnet_small", width=4)
        model = encoder if kind is HostKind.ENCODER else Classifier(encoder, CLASSES, hidden=(8,))
        model.train()
        for _ in range(20):  # BatchNorm statistics that fit the images
            model(data().images.float() / 255)
    return model.eval()


def attacked(
    attack: Attack,
    model: nn.Module,
    kind: HostKind,
    trainer: LightningTrainer,
    *,
    seed: int = 0,
    classes: int = CLASSES,
) -> nn.Module:
    suspect = Suspect(model, kind, attack.access_for(kind))
    return attack.apply(suspect, data(classes=classes), trainer=trainer, generator=generator(seed, "attack"))


def prunable(model: nn.Module) -> list[Tensor]:
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    return [m.weight.detach() for m in model.modules() if isinstance(m, kinds)]


def differing(one: nn.Module, other: nn.Module) -> set[str]:
    """Names of parameters and buffers that differ; the counters of seen batches are none of interest."""
    state = other.state_dict()
    assert list(one.state_dict()) == list(state)
    return {name for name, tensor in one.state_dict().items() if not torch.equal(tensor, state[name])}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
