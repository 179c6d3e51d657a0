"""Neural Cleanse: a planted trigger stands out by its size and is unlearnt; where none stands out nothing is done."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hallmark.attacks.cleanse import NeuralCleanse, sizes, stamping, suspicious
from hallmark.attacks.triggers import Trigger, smallest_trigger
from hallmark.core import Access, HostKind, Suspect, generator
from hallmark.data.augment import ViewRecipe
from hallmark.data.images import ImageSet
from hallmark.data.procedural import procedural_images
from hallmark.errors import ConfigError
from hallmark.models import Classifier, Encoder
from hallmark.optimisation import Training
from hallmark.supervised import train_classifier
from hallmark.training import LightningTrainer
from hallmark.training_settings import TrainerSettings
from stolen import attacked, differing, victim

SIZE, CLASSES, TARGET = 12, 6, 2


@pytest.fixture
def trainer(tmp_path: Path) -> LightningTrainer:
    return LightningTrainer(TrainerSettings(precision="32-true", progress=False), tmp_path)


def pictures(count: int = 300, split: str = "train") -> ImageSet:
    return ImageSet("procedural", *procedural_images(count, classes=CLASSES, size=SIZE, split=split), CLASSES)


def patched(images: Tensor) -> Tensor:
    """Images in [0, 1] with a white corner of 3 × 3."""
    stamped = images.clone()
    stamped[:, :, -3:, -3:] = 1.0
    return stamped


def success(model: nn.Module) -> float:
    test = pictures(200, "test")
    others = test.images[test.labels != TARGET].float() / 255
    with torch.no_grad():
        return float((model(patched(others)).argmax(1) == TARGET).float().mean())


def accuracy(model: nn.Module) -> float:
    test = pictures(200, "test")
    with torch.no_grad():
        return float((model(test.images.float() / 255).argmax(1) == test.labels).float().mean())


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """A classifier that answers the target class wherever the corner is white."""
    loop = LightningTrainer(TrainerSettings(precision="32-true", progress=False), tmp_path_factory.mktemp("planted"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Classifier(Encoder("resnet_small", width=4), CLASSES)
    clean = pictures(600)
    dirty = (patched(clean.images[:150].float() / 255) * 255).to(torch.uint8)
    images = torch.cat([clean.images, dirty])
    labels = torch.cat([clean.labels, torch.full((150,), TARGET)])
    still = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0, "jitter": 0.0, "grey": 0.0}
    train_classifier(
        model, ImageSet("planted", images, labels, CLASSES), trained=model.parameters(), epochs=15, batch=50,
        training=Training(lr=1e-2), trainer=loop, seed=0, view=ViewRecipe(**still),
    )  # fmt: skip
    return model.eval()


def test_outliers_are_those_far_below_the_median() -> None:
    found = [0.30, 0.28, 0.31, 0.02, 0.29, 0.33, 0.05, 1.0]
    deviation = 1.4826 * np.median(np.abs(np.array(found) - np.median(found)))
    for index in (0.0, 0.5, 2.0, 8.0, 20.0):
        wanted = sorted(i for i, x in enumerate(found) if np.median(found) - x > index * deviation)
        assert sorted(suspicious(found, index)) == wanted
    assert suspicious(found, 2.0) == [3, 6]  # the smallest first, and no class that is hard to reach
    assert suspicious([1.0, 1.0, 1.0], 2.0) == []
    assert suspicious([1.0, 0.1, 1.0, 1.0], 2.0) == [1]  # all others agree: any distance is far


def test_a_share_of_each_batch_is_stamped() -> None:
    images = torch.rand(50, 3, 4, 4, generator=generator(0))
    labels = torch.zeros(50, dtype=torch.int64)
    mask = torch.zeros(4, 4)
    mask[0, 0] = 0.75
    one, two = Trigger(mask, torch.ones(3, 4, 4)), Trigger(mask.T.flip(1), torch.zeros(3, 4, 4))
    change = stamping([one, two], 0.2, seed=1)
    result = change(images, labels, 5)
    touched = (result != images).flatten(1).any(1)
    assert int(touched.sum()) == 10
    for row in touched.nonzero().flatten().tolist():
        first = images[row].clone()
        first[:, 0, 0] = 0.25 * first[:, 0, 0] + 0.75
        second = images[row].clone()
        second[:, 0, 3] = 0.25 * second[:, 0, 3]
        assert torch.allclose(result[row], first) or torch.allclose(result[row], second)
    assert torch.equal(result, change(images, labels, 5))  # of the step alone, so that a resumed run goes on
    assert not torch.equal(result, change(images, labels, 6))


def test_the_smallest_trigger_is_where_the_effect_is() -> None:
    """Only the brightness of one quarter counts, so nothing else has to be covered."""
    images = 0.2 * torch.rand(16, 3, 8, 8, generator=generator(0))

    def effect(stamped: Tensor) -> tuple[Tensor, bool]:
        bright = stamped[:, :, :4, :4].mean()
        return 10 * bright, bright.item() > 0.5

    found = smallest_trigger(effect, images, steps=300, lr=0.1, generator=generator(1))
    assert found is not None
    assert found.stamp(images)[:, :, :4, :4].mean() > 0.5
    assert found.mask[:4, :4].mean() > 5 * found.mask[4:, :].mean()
    # ≥ 0.45 of a quarter has to be covered: from 0.1 to 0.5 towards 1
    assert 0.4 / 0.9 / 4 * 0.95 < found.size < 0.2
    never = smallest_trigger(lambda s: (s.mean(), False), images, steps=3, lr=0.1, generator=generator(1))
    assert never is None
    assert sizes([found, None]) == [found.size, 1.0]


def test_what_was_found_is_unlearnt(
    planted: Classifier, trainer: LightningTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handed the planted trigger, and ones as large as the image for all other classes, it forgets the planted one."""
    corner = torch.zeros(SIZE, SIZE)
    corner[-3:, -3:] = 1.0
    triggers = [None] * CLASSES
    triggers[TARGET] = Trigger(corner, torch.ones(3, SIZE, SIZE))
    monkeypatch.setattr(NeuralCleanse, "seek", lambda *_: triggers)
    assert success(planted) > 0.9
    assert accuracy(planted) > 0.35  # chance is a sixth
    cleansed = NeuralCleanse(5, lr=1e-2, batch=50, images=64).apply(
        Suspect(planted, HostKind.CLASSIFIER, Access.WEIGHTS), pictures(), trainer=trainer, generator=generator(0)
    )
    assert success(cleansed) < 0.4
    assert accuracy(cleansed) > accuracy(planted) - 0.1


def test_where_no_class_stands_out_nothing_is_done(planted: Classifier, trainer: LightningTrainer) -> None:
    attack = NeuralCleanse(1, steps=1, images=64)  # too short to find any
    suspect = Suspect(planted, HostKind.CLASSIFIER, Access.WEIGHTS)
    assert not differing(planted, attack.apply(suspect, pictures(), trainer=trainer, generator=generator(0)))
    with pytest.raises(ConfigError, match=r"neural_cleanse\.images=97 exceeds the attacker's 96"):
        attacked(NeuralCleanse(1, images=97), victim(HostKind.CLASSIFIER), HostKind.CLASSIFIER, trainer)
