"""Small networks of every form the suite has, and attacks on them, for the tests of obfuscation and alignment."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hallmark.core import Access, Attack, HostKind, Suspect, generator
from hallmark.data.images import ImageSet
from hallmark.models import Classifier, Encoder

SIZE = 16


class NoTrainer:
    """Handed to attacks that promise not to train."""

    def fit(self, *_: object, **__: object) -> None:
        raise AssertionError("an attack that does not train asked for a trainer")


def plain() -> nn.Module:
    """Convolutions with and without BatchNorm, pooling, flattened maps, BatchNorm of features, biases."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.LeakyReLU(0.1), nn.AvgPool2d(4), nn.Flatten()),
        *(nn.Linear(32, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 5)),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet_small": lambda: Encoder("resnet_small", width=4),
    "wrn10": lambda: Encoder("wrn10", width=1),
    "wrn10_code": lambda: Encoder("wrn10_code", width=1),
    "classifier": lambda: Classifier(Encoder("resnet_small", width=4), 5, hidden=(8, 6)),
    "plain": plain,
}


def made(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network in evaluation mode whose BatchNorms are not the initial ones, negative weights among theirs."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = build().train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.weight.uniform_(-0.5, 1.5)
                module.bias.normal_(0, 0.3)
        for _ in range(3):
            model(torch.rand(16, 3, SIZE, SIZE))
    return model.eval()


def pictures(count: int = 8) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def answers(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(pictures())


def kind_of(model: nn.Module) -> HostKind:
    return HostKind.ENCODER if isinstance(model, Encoder) else HostKind.CLASSIFIER


def attacked(model: nn.Module, *attacks: Attack, seed: int = 0) -> nn.Module:
    data = ImageSet("procedural", torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8), torch.zeros(1).long(), 1)
    for number, attack in enumerate(attacks):
        suspect = Suspect(model, kind_of(model), attack.access)
        assert attack.access is Access.WEIGHTS
        model = attack.apply(suspect, data, trainer=NoTrainer(), generator=generator(seed, "attack", number))
    return model
