"""Restoration: pair losses by hand, hosts that learn, the task's figures, surrogates that copy what they asked for."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.attacks.surrogate import Surrogate
from hallmark.core import Access, HostKind, Suspect, generator
from hallmark.data.images import ImageSet
from hallmark.data.pairs import PairLaw, make_pairs
from hallmark.data.procedural import procedural_images
from hallmark.data.resident import Batch
from hallmark.errors import AccessError, ConfigError
from hallmark.models.image_to_image import Architecture, fresh
from hallmark.models.perceptual import Perceptual
from hallmark.restoration import PairTraining, train_restorer
from hallmark.restoration_settings import LOSSES, Fit
from hallmark.tasks.restoration import Restoration, likeness
from hallmark.training import LightningTrainer
from hallmark.training_settings import TrainerSettings

SIDE = 32
GREY = PairLaw(kind="grey", side=SIDE)
SMALL = Architecture("unet", 4, 2)


@cache
def owner(count: int = 24, size: int = SIDE) -> ImageSet:
    images, _ = procedural_images(count, size=size)
    return ImageSet("procedural", images, torch.full((count,), -1), 10)


def trainer(folder: Path) -> LightningTrainer:
    return LightningTrainer(TrainerSettings(precision="32-true", progress=False), folder)


def behind_the_counter(model: nn.Module) -> Suspect:
    return Suspect(model, HostKind.IMAGE_TO_IMAGE, Access.IMAGES)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


class Inverted(nn.Module):
    """A victim whose answers nobody would give by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        return 1 - images


def attacked(attack: Surrogate, folder: Path, seed: int = 0) -> tuple[nn.Module, Suspect]:
    victim = behind_the_counter(Inverted())
    model = attack.apply(victim, owner(), trainer=trainer(folder), generator=generator(seed, "attack"))
    return model, victim


@pytest.mark.parametrize(("fraction", "asked"), [(1.0, 48), (0.25, 12), (0.0, 0)])
def test_a_surrogate_learns_the_answers_it_asked_for(fraction: float, asked: int, tmp_path: Path) -> None:
    attack = Surrogate(fraction, 25, GREY, SMALL, batch=8, lr=5e-3, patches=2)
    larger = owner(24, 40)  # so that two patches can be cut
    victim = behind_the_counter(Inverted())
    model = attack.apply(victim, larger, trainer=trainer(tmp_path), generator=generator(0))
    assert victim.queries == asked
    inputs, targets = (t.float() / 255 for t in make_pairs(owner().images[:8], GREY, 1, generator=generator(9)))
    with torch.no_grad():
        answers = model(inputs)
    stolen, true = F.mse_loss(answers, 1 - inputs), F.mse_loss(answers, targets)
    assert (stolen < true) == (fraction > 0.5)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_and_repeats(loss: str, tmp_path: Path) -> None:
    attack = Surrogate(1.0, 3, GREY, SMALL, loss=loss, batch=8, lr=2e-3)
    first, _ = attacked(attack, tmp_path / "a")
    again, _ = attacked(attack, tmp_path / "b")
    assert same(first, again)
    assert not first.training
    untrained = fresh(SMALL, 0)
    inputs = owner().images.float() / 255
    with torch.no_grad():
        assert F.l1_loss(first(inputs), 1 - inputs) < F.l1_loss(untrained(inputs), 1 - inputs)


def test_pair_losses_by_hand() -> None:
    inputs, targets = owner().images[:4], 255 - owner().images[:4]
    expected = {
        "l1": lambda a, b: F.l1_loss(2 * a - 1, 2 * b - 1),
        "l2": lambda a, b: F.mse_loss(2 * a - 1, 2 * b - 1),
        "perceptual": lambda a, b: Perceptual("random")(a, b),
    }
    for loss in LOSSES:
        task = PairTraining(fresh(SMALL, 0), Fit(loss=loss), law=None, teacher=None, seed=0)
        task.log = lambda *_, **__: None
        turns: list[float] = []
        task.turn = lambda player, value, turns=turns: turns.append(float(value))
        batch = task.on_after_batch_transfer(Batch(inputs, targets, torch.arange(4), 0, 0, 4), 0)
        torch.testing.assert_close(batch[1], 1 - batch[0])
        task.training_step(batch, 0)
        task.eval()
        with torch.no_grad():
            out = task.model.train().unclamped(batch[0])
            content = float(expected[loss.split("_")[0]](out, batch[1]))
            if task.discriminator is None:
                assert turns == pytest.approx([content], rel=1e-4)
                continue
            fake, real = task.discriminator(out), task.discriminator(batch[1])
            fooled, judged = F.softplus(-fake).mean(), F.softplus(-real).mean() + F.softplus(fake).mean()
        assert turns == pytest.approx([100 * content + float(fooled), float(judged)], rel=1e-4)


def test_units_tell_surrogates_apart() -> None:
    units = {
        Surrogate(1.0, 1, GREY, Architecture(name, 4, 2), loss).unit for name in ("unet", "res9") for loss in LOSSES
    }
    assert len(units) == 10
    assert "fraction res9 perceptual_adv[random]" in units
    for wrong in ({"fraction": 1.5}, {"loss": "l3"}, {"network": Architecture("unet", 4, 6)}, {"epochs": 0}):
        with pytest.raises(ConfigError):
            Surrogate(**{"fraction": 1.0, "epochs": 1, "pairs": GREY, "network": SMALL, **wrong})


def test_a_surrogate_sees_images_alone(tmp_path: Path) -> None:
    _, victim = attacked(Surrogate(1.0, 1, GREY, SMALL, batch=8), tmp_path)
    assert victim.access is Access.IMAGES
    with pytest.raises(AccessError):
        victim.weights_module()


def test_likeness_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.integers(0, 256, (3, 3, 16, 16), dtype=np.uint8)) for _ in range(2))
    errors = ((a.double() - b.double()) ** 2).mean((1, 2, 3)).numpy()
    assert likeness(a, b)["psnr"] == pytest.approx(np.mean(10 * np.log10(255**2 / errors)), rel=1e-5)
    same_images = likeness(a, a)
    assert same_images == {"psnr": pytest.approx(58.92, abs=0.01), "ssim": pytest.approx(1)}


def test_a_host_learns_to_restore_and_the_task_sees_it(tmp_path: Path) -> None:
    law = PairLaw(kind="noise", side=SIDE, sigma=(40.0, 40.0))
    data, test = (
        owner(48, 40),
        ImageSet("test", procedural_images(6, size=40, split="test")[0], torch.zeros(6).long(), 1),
    )
    wider, fit = Architecture("unet", 8, 2), Fit(epochs=20, batch=16, lr=5e-3, patches=2)
    trained = train_restorer(wider, law, data, fit, trainer=trainer(tmp_path / "a"), seed=0)
    again = train_restorer(wider, law, data, fit, trainer=trainer(tmp_path / "b"), seed=0)
    assert same(trained, again)
    task = Restoration(pairs=law, patches=2)
    assert task.transfer(trained, data, trainer=trainer(tmp_path), generator=generator(0)) is None
    rows = {row.metric: row for row in task.measure(trained, None, data, test)}
    assert rows["psnr"].n == 12
    assert rows["psnr_input"].value == pytest.approx(20 * np.log10(255 / 40), abs=1.5)  # a little better: clipped
    assert rows["psnr"].value > rows["psnr_input"].value + 1.5
    silent = {row.metric: row.value for row in task.measure(nn.Conv2d(3, 3, 1), None, data, test)}
    assert silent["psnr_input"] == rows["psnr_input"].value  # the same pairs for every model
