"""Pretraining: each method's loss against its formula, momentum and queue, schedules, resumption, divergence."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hallmark.data.images import ImageSet
from hallmark.data.procedural import procedural_images
from hallmark.data.resident import Batch, ResidentBatches
from hallmark.errors import BudgetExhausted, ConfigError, TrainingError
from hallmark.pretrain.base import ContrastiveModule, build_optimiser
from hallmark.pretrain.monitor import OnlineEvaluation
from hallmark.pretrain.recipe import HostRecipe, Optimisation, Recipe
from hallmark.pretrain.train import build_module, pretrain
from hallmark.training import LightningTrainer
from hallmark.training_settings import Deadline, TrainerSettings

HOST = HostRecipe("resnet_small", 4)
OPTIONS: dict[str, dict[str, Any]] = {
    "simclr": {"temperature": 0.5, "hidden": 16, "projection": 8},
    "moco_v2": {"temperature": 0.1, "queue": 80, "momentum": 0.9, "hidden": 16, "projection": 8},
    "byol": {"momentum": 0.9, "hidden": 16, "projection": 8},
}
METHODS = sorted(OPTIONS)


@cache
def images(count: int = 48) -> Tensor:
    return procedural_images(count, size=12)[0]


def recipe(method: str, *, epochs: int = 4, **optimisation: Any) -> Recipe:
    return Recipe(method, epochs, 16, OPTIONS[method], Optimisation(**optimisation))


def views(count: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(2 * count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def module(method: str) -> Any:
    return build_module(HOST, recipe(method), seed=0).train()


def stir(*parts: nn.Module) -> None:
    """Move parameters away from the copy they began as, so that momentum has something to do."""
    with torch.no_grad():
        for number, parameter in enumerate(p for part in parts for p in part.parameters()):
            rng = torch.Generator().manual_seed(number)
            size = 0.1 * float(parameter.abs().mean()) + 0.01
            parameter.add_(size * torch.randn(parameter.shape, generator=rng))


def unit(x: Tensor) -> Tensor:
    return (x.double().T / x.double().norm(dim=1)).T


# Losses.  Projections are computed in float32 by the very networks, the formulas in float64: 1e-6 is a few roundings.


def test_simclr_is_nt_xent() -> None:
    simclr, batch = module("simclr"), views()
    z = unit(deepcopy(simclr.head)(deepcopy(simclr.encoder)(batch)).detach())
    total = 0.0
    for i in range(16):
        logits = {k: float(z[i] @ z[k]) / 0.5 for k in range(16) if k != i}
        positive = (i + 8) % 16  # equation 1 of Chen et al. 2020 on pairs (i, i + b)
        total += -logits[positive] + math.log(sum(math.exp(value) for value in logits.values()))
    assert float(simclr.loss(batch)) == pytest.approx(total / 16, abs=1e-6)


def momentum_of(online: nn.Module, target: nn.Module, m: float) -> list[Tensor]:
    pairs = zip(online.parameters(), target.parameters(), strict=True)
    return [(m * t.detach() + (1 - m) * o.detach()).clone() for o, t in pairs]


def test_moco_is_info_nce_with_a_queue() -> None:
    moco, batch = module("moco_v2"), views()
    stir(moco.encoder, moco.head)
    wanted = momentum_of(moco.encoder, moco.key_encoder, 0.9) + momentum_of(moco.head, moco.key_head, 0.9)
    before = [p.detach().clone() for part in (moco.key_encoder, moco.key_head) for p in part.parameters()]
    bank = moco.criterion.memory_bank.bank.clone()
    twin = deepcopy(moco)
    loss = float(moco.loss(batch))

    after = [p for part in (moco.key_encoder, moco.key_head) for p in part.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    for got, expected in zip(after, wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)

    first, second = batch.chunk(2)
    q = unit(twin.head(twin.encoder(first)).detach())
    twin.key_encoder.load_state_dict(moco.key_encoder.state_dict(), strict=True)
    twin.key_head.load_state_dict(moco.key_head.state_dict(), strict=True)
    k = unit(twin.key_head(twin.key_encoder(second)).detach())  # keys come from the momentum encoder after its update
    total = 0.0
    for i in range(8):
        positive = float(q[i] @ k[i]) / 0.1
        negatives = [float(q[i] @ n) / 0.1 for n in bank.double()]
        total += -positive + math.log(math.exp(positive) + sum(math.exp(value) for value in negatives))
    assert loss == pytest.approx(total / 8, abs=1e-5)  # τ of 0.1 multiplies the roundings by ten

    queue = moco.criterion.memory_bank
    torch.testing.assert_close(queue.bank[:8].double(), k, rtol=0, atol=1e-6)
    assert torch.equal(queue.bank[8:], bank[8:])
    assert int(queue.bank_ptr) == 8


def test_the_queue_forgets_its_oldest_keys() -> None:
    moco = module("moco_v2")
    banks = []
    for step in range(11):
        moco.loss(views(seed=step))
        banks.append(moco.criterion.memory_bank.bank.clone())
    assert torch.equal(banks[9][:8], banks[0][:8])  # 10 · 8 keys fill a queue of 80
    assert not torch.equal(banks[10][:8], banks[9][:8])  # the eleventh batch takes the place of the first
    assert torch.equal(banks[10][8:], banks[9][8:])
    assert int(moco.criterion.memory_bank.bank_ptr) == 8


def test_no_gradient_reaches_keys_and_targets() -> None:
    for method, parts in (("moco_v2", ("key_encoder", "key_head")), ("byol", ("target_encoder", "target_head"))):
        net = module(method)
        net.total_steps = lambda: 10
        net.loss(views()).backward()
        assert all(p.grad is None and not p.requires_grad for part in parts for p in getattr(net, part).parameters())
        assert all(p.grad is not None for trained in net.trained() for p in trained.parameters())
        trained = {id(p) for part in net.trained() for p in part.parameters()}
        assert trained == {id(p) for p in net.parameters() if p.requires_grad}


def at_step(net: ContrastiveModule, step: int, steps: int) -> ContrastiveModule:
    """The module as it is in the middle of a run, without a trainer."""
    kind = type(net)
    net.__class__ = type(kind.__name__, (kind,), {"global_step": step, "total_steps": lambda self: steps})
    return net


def test_byol_is_the_symmetrised_cosine() -> None:
    byol, batch = at_step(module("byol"), 0, 10), views()
    stir(byol.encoder, byol.head)
    wanted = momentum_of(byol.encoder, byol.target_encoder, 0.9) + momentum_of(byol.head, byol.target_head, 0.9)
    twin = deepcopy(byol)
    loss = float(byol.loss(batch))
    after = [p for part in (byol.target_encoder, byol.target_head) for p in part.parameters()]
    for got, expected in zip(after, wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)

    twin.target_encoder.load_state_dict(byol.target_encoder.state_dict())
    twin.target_head.load_state_dict(byol.target_head.state_dict())
    p = unit(twin.predictor(twin.head(twin.encoder(batch))).detach())
    t = unit(twin.target_head(twin.target_encoder(batch)).detach())
    # each view's prediction against the other view's target: equation 2 of Grill et al. 2020 is 2 − 2 cos, here −cos
    pairs = [(i, (i + 8) % 16) for i in range(16)]
    assert loss == pytest.approx(-sum(float(p[i] @ t[j]) for i, j in pairs) / 16, abs=1e-6)


def test_byols_momentum_rises_to_one() -> None:
    used = []
    for step in range(10):
        byol = at_step(module("byol"), step, 10)
        stir(byol.encoder)
        online, target = (next(part.parameters()).detach().clone() for part in (byol.encoder, byol.target_encoder))
        byol.loss(views())
        moved = next(byol.target_encoder.parameters()).detach()
        used.append(1 - float((moved - target).double().norm() / (online - target).double().norm()))
    expected = [1 - 0.1 * (math.cos(math.pi * step / 9) + 1) / 2 for step in range(10)]
    assert used == pytest.approx(expected, abs=1e-5)  # a ratio of float32 differences
    assert (used[0], used[-1]) == (pytest.approx(0.9, abs=1e-5), 1.0)


# Optimiser and schedule


def rates(optimisation: Optimisation, *, steps: int, per_epoch: int, batch: int = 256) -> list[float]:
    made = build_optimiser(optimisation, [nn.Linear(2, 2)], batch=batch, steps=steps, steps_per_epoch=per_epoch)
    optimiser, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    assert made["lr_scheduler"]["interval"] == "step"
    seen = []
    for _ in range(steps):
        seen.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return seen


def test_the_schedule_warms_up_and_falls_along_a_cosine() -> None:
    seen = rates(Optimisation(lr=0.5, warmup_epochs=2), steps=50, per_epoch=5)
    assert seen[:10] == pytest.approx([0.05 * (step + 1) for step in range(10)])
    assert max(seen) == pytest.approx(0.5)
    falling = [0.5 * (0.001 + 0.999 * (math.cos(math.pi * step / 39) + 1) / 2) for step in range(40)]
    assert seen[10:] == pytest.approx(falling)
    assert seen[-1] == pytest.approx(0.0005)  # a thousandth of the peak


def test_no_warm_up_starts_at_the_peak_and_a_long_one_is_cut() -> None:
    assert rates(Optimisation(lr=0.5, warmup_epochs=0), steps=20, per_epoch=5)[0] == pytest.approx(0.5)
    assert rates(Optimisation(lr=0.5, warmup_epochs=99), steps=4, per_epoch=2) == pytest.approx(
        [0.5 / 3, 1 / 3, 0.5, 0.0005]
    )


@pytest.mark.parametrize(("name", "factor"), [("adamw", 1.0), ("sgd", 4.0), ("lars", 4.0)])
def test_rates_per_256_images_scale_with_the_batch(name: str, factor: float) -> None:
    seen = rates(Optimisation(name, lr=0.1, warmup_epochs=0), steps=3, per_epoch=1, batch=1024)
    assert seen[0] == pytest.approx(0.1 * factor)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_norms_and_biases_do_not_decay(name: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    made = build_optimiser(Optimisation(name, weight_decay=0.3), [net], batch=256, steps=9, steps_per_epoch=3)
    decay = {id(p): group["weight_decay"] for group in made["optimizer"].param_groups for p in group["params"]}
    assert len(decay) == len(list(net.parameters()))
    assert {name: decay[id(p)] for name, p in net.named_parameters()} == {
        "0.weight": 0.3, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "3.weight": 0.3, "3.bias": 0.0,
    }  # fmt: skip


# Whole runs


@dataclass
class After(Deadline):
    """A budget that is spent at the end of a given epoch, whatever the clock says."""

    epochs: int = 2

    def check(self, needed: float = 0.0) -> None:
        self.epochs -= 1
        if not self.epochs:
            raise BudgetExhausted("spent")


def trainer(folder: Path, *, precision: str = "32-true", **options: Any) -> LightningTrainer:
    return LightningTrainer(TrainerSettings(precision=precision, progress=False), folder, **options)


def run(method: str, trained_by: LightningTrainer, *, seed: int = 0, **options: Any) -> dict[str, Tensor]:
    return pretrain(HOST, recipe(method, **options), images(), trainer=trained_by, seed=seed).state_dict()


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("method", "precision"), [*((m, "32-true") for m in METHODS), ("moco_v2", "bf16-mixed")])
def test_a_resumed_run_is_the_uninterrupted_run(method: str, precision: str, tmp_path: Path) -> None:
    whole = run(method, trainer(tmp_path / "whole", precision=precision))
    with pytest.raises(BudgetExhausted):
        run(method, trainer(tmp_path / "parts", precision=precision, deadline=After()))
    checkpoint = tmp_path / "parts" / "fit-0.ckpt"
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 1  # two of four, counted from 0
    torch.rand(3)  # another process, another global generator
    second_leg = trainer(tmp_path / "parts", precision=precision)
    resumed = run(method, second_leg)
    assert second_leg.resumed_s > 0
    assert equal(resumed, whole)
    assert equal(run(method, trainer(tmp_path / "whole", precision=precision)), whole)  # a finished run is not repeated


def test_forgetting_the_queue_would_show(tmp_path: Path) -> None:
    """The test above can fail: a resumed MoCo with a fresh queue ends elsewhere."""
    whole = run("moco_v2", trainer(tmp_path / "whole"))
    with pytest.raises(BudgetExhausted):
        run("moco_v2", trainer(tmp_path / "parts", deadline=After()))
    checkpoint = tmp_path / "parts" / "fit-0.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    content["queue"]["bank"] = content["queue"]["bank"].flip(0)
    torch.save(content, checkpoint)
    assert not equal(run("moco_v2", trainer(tmp_path / "parts")), whole)


def test_every_epoch_has_its_own_order_and_views(tmp_path: Path) -> None:
    net, batches = module("simclr"), ResidentBatches(images(), batch=16, seed=5)
    expected = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        expected += [(batch.step, batch.indices.tolist()) for batch in batches]
    batches.set_epoch(0)
    make, seen = net.views, []

    def watched(batch: Batch) -> Tensor:
        seen.append((batch.step, batch.indices.tolist()))
        return make(batch)

    net.views = watched
    trainer(tmp_path).fit(net, batches, epochs=3)
    assert seen == expected
    assert len({tuple(order) for _, order in seen}) == len(seen)


@pytest.mark.parametrize("method", METHODS)
def test_seeds_decide(method: str, tmp_path: Path) -> None:
    first = run(method, trainer(tmp_path / "a"), epochs=1)
    assert equal(first, run(method, trainer(tmp_path / "b"), epochs=1))
    assert not equal(first, run(method, trainer(tmp_path / "c"), epochs=1, seed=1))
    assert equal(build_module(HOST, recipe(method), seed=0).state_dict(), module(method).state_dict())


def test_watching_does_not_change_the_run(tmp_path: Path) -> None:
    watched = ImageSet("procedural", *procedural_images(48, size=12), 10)
    plain = run("simclr", trainer(tmp_path / "a"), epochs=2)
    monitor = OnlineEvaluation(watched, checks=2)
    seen = pretrain(
        HOST, recipe("simclr", epochs=2), images(), trainer=trainer(tmp_path / "b"), seed=0, callbacks=[monitor]
    )
    assert equal(seen.state_dict(), plain)


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_not_finite_ends_the_run(method: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the loss became nan in epoch") as caught:
        run(method, trainer(tmp_path), name="sgd", lr=1e30, warmup_epochs=0)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "fit-0.ckpt").exists()  # a run that diverged leaves nothing to resume from


def test_the_encoder_comes_alone_and_in_evaluation_mode(tmp_path: Path) -> None:
    encoder = pretrain(HOST, recipe("byol", epochs=1), images(), trainer=trainer(tmp_path), seed=0)
    assert not encoder.training
    assert all(p.requires_grad for p in encoder.parameters())
    assert not equal(encoder.state_dict(), build_module(HOST, recipe("byol"), seed=0).encoder.state_dict())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Recipe("simsiam", 1, 16, {}),
        lambda: Recipe("simclr", 1, 16, {"temperature": 0.5}),
        lambda: Recipe("simclr", 1, 16, {**OPTIONS["simclr"], "queue": 3}),
        lambda: Recipe("simclr", 0, 16, OPTIONS["simclr"]),
        lambda: Recipe("simclr", 1, 1, OPTIONS["simclr"]),
        lambda: Optimisation("adam"),
        lambda: build_module(HostRecipe("resnet19"), recipe("simclr"), seed=0),
    ],
)
def test_impossible_recipes_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        make()
