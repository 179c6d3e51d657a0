"""Two ranks are one: loss, gradient, BatchNorm and whole runs over two processes equal those of one process."""

import os
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hallmark.data.images import ImageSet
from hallmark.data.procedural import procedural_images
from hallmark.errors import BudgetExhausted, TrainingError
from hallmark.pretrain.distributed import CpuSyncBatchNorm, synchronise_batch_norm
from hallmark.pretrain.monitor import OnlineEvaluation
from hallmark.pretrain.recipe import HostRecipe, Optimisation, Recipe
from hallmark.pretrain.train import build_module, pretrain
from hallmark.training import LightningTrainer
from hallmark.training_settings import Deadline, TrainerSettings

WORLD = 2
HOST = HostRecipe("resnet_small", 4)
OPTIONS: dict[str, dict[str, Any]] = {
    "simclr": {"temperature": 0.5, "hidden": 16, "projection": 8},
    "moco_v2": {"temperature": 0.1, "queue": 48, "momentum": 0.9, "hidden": 16, "projection": 8},
    "byol": {"momentum": 0.9, "hidden": 16, "projection": 8},
}
METHODS = sorted(OPTIONS)


ADAMW, SGD = ({"name": name, "lr": lr, "warmup_epochs": 0} for name, lr in (("adamw", 2e-3), ("sgd", 0.2)))
RATES = {"simclr": ADAMW, "moco_v2": ADAMW, "byol": SGD}  # Adam would blow up rounding errors of BYOL's idle biases


def recipe(method: str, **optimisation: Any) -> Recipe:
    return Recipe(method, 2, 16, OPTIONS[method], Optimisation(**(RATES[method] | optimisation)))


# One step, rank by rank


class Step(nn.Module):
    """A method's loss as a forward pass, in the middle of a run, as DistributedDataParallel wants it."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.net: Any = build_module(HOST, recipe(method), seed=0).train()
        kind = type(self.net)
        self.net.__class__ = type(kind.__name__, (kind,), {"global_step": 3, "total_steps": lambda _: 10})
        with torch.no_grad():  # online networks have left their momentum copies behind
            for number, parameter in enumerate(p for part in self.net.trained() for p in part.parameters()):
                rng = torch.Generator().manual_seed(number)
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))

    def forward(self, views: Tensor) -> Tensor:
        return self.net.loss(views)


def views(count: int = 8) -> Tensor:
    return torch.rand(2 * count, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def share(whole: Tensor, rank: int) -> Tensor:
    """A rank's rows of each of the two stacked views."""
    return torch.cat([view.chunk(WORLD)[rank] for view in whole.chunk(2)])


def one_step(step: nn.Module, batch: Tensor) -> dict[str, Any]:
    loss = step(batch)
    loss.backward()
    net: Any = step.module.net if isinstance(step, DistributedDataParallel) else step.net
    queue = net.criterion.memory_bank.bank if hasattr(net.criterion, "memory_bank") else torch.zeros(0)
    return {
        "loss": loss.detach(),
        "gradients": {name: p.grad for name, p in net.named_parameters() if p.requires_grad},
        "state": net.state_dict(),
        "queue": queue,
    }


def normalisation(
    kind: type[nn.Module], shape: tuple[int, ...], dtype: torch.dtype, rank: int | None
) -> dict[str, Any]:
    """Two training steps and an evaluation of one BatchNorm; ``rank`` None sees the whole batch."""
    norm: Any = kind(shape[1], momentum=0.3).to(dtype).train()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(shape[1], generator=rng) + 0.5)
        norm.bias.copy_(torch.randn(shape[1], generator=rng))
    found: dict[str, Any] = {"outputs": [], "input gradients": []}
    for _ in range(2):
        whole = (3 * torch.randn(shape, generator=rng) + 5).to(dtype)
        weights = torch.randn(shape, generator=rng).to(dtype)
        x, w = (t if rank is None else t.chunk(WORLD)[rank] for t in (whole, weights))
        x = x.clone().requires_grad_()
        y = norm(x)
        (y.sin() * w).sum().backward()  # the sum over ranks is the loss of the whole batch
        found["outputs"].append(y.detach())
        found["input gradients"].append(x.grad)
    found["parameter gradients"] = [norm.weight.grad, norm.bias.grad]
    found["buffers"] = [norm.running_mean, norm.running_var, norm.num_batches_tracked]
    with torch.no_grad():
        found["evaluated"] = norm.eval()(whole)
    return found


NORMS: dict[str, tuple[type[nn.Module], tuple[int, ...], torch.dtype]] = {
    "images float64": (nn.BatchNorm2d, (8, 3, 4, 5), torch.float64),
    "images float32": (nn.BatchNorm2d, (8, 3, 4, 5), torch.float32),
    "features float64": (nn.BatchNorm1d, (8, 6), torch.float64),
    "features float32": (nn.BatchNorm1d, (8, 6), torch.float32),
}


def work(rank: int, folder: str) -> None:
    """What each rank does: BatchNorm, and one step of every method."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    try:
        found: dict[str, Any] = {
            name: normalisation(CpuSyncBatchNorm, shape, dtype, rank) for name, (_, shape, dtype) in NORMS.items()
        }
        for method in METHODS:
            step = Step(method)
            synchronise_batch_norm(step, "cpu")
            found[method] = one_step(DistributedDataParallel(step), share(views(), rank))
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("name", NORMS)
def test_ddp_batch_norm_is_that_of_the_whole_batch(name: str, ranks: list[dict[str, Any]]) -> None:
    kind, shape, dtype = NORMS[name]
    alone = normalisation(kind, shape, dtype, None)
    # sums of up to 160 numbers of about 5 in another order: some hundred roundings of the type
    limits = {"rtol": 0, "atol": 1e-12 if dtype == torch.float64 else 1e-4}
    for part in ("outputs", "input gradients"):
        for step in range(2):
            together = torch.cat([found[name][part][step] for found in ranks])
            assert together.dtype == dtype
            torch.testing.assert_close(together, alone[part][step], **limits)
    for own, *others in zip(
        alone["parameter gradients"], *(found[name]["parameter gradients"] for found in ranks), strict=True
    ):
        torch.testing.assert_close(sum(others), own, **limits)
    for found in ranks:
        for got, own in zip(found[name]["buffers"], alone["buffers"], strict=True):
            torch.testing.assert_close(got, own, **limits)
        torch.testing.assert_close(found[name]["evaluated"], alone["evaluated"], **limits)


def test_ddp_batch_norm_of_half_a_batch_would_show(ranks: list[dict[str, Any]]) -> None:
    """The test above can fail: statistics of a rank's own half are far from those of the whole."""
    kind, shape, dtype = NORMS["features float64"]
    half = normalisation(kind, shape, dtype, 0)
    assert (half["outputs"][0] - ranks[0]["features float64"]["outputs"][0]).abs().max() > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_ddp_step_has_the_loss_and_gradient_of_one_rank(method: str, ranks: list[dict[str, Any]]) -> None:
    alone = one_step(Step(method), views())
    losses = [found[method]["loss"] for found in ranks]
    # float32 sums in another order, amplified by nine BatchNorms of eight images and a temperature of 0.1
    assert float(sum(losses)) / WORLD == pytest.approx(float(alone["loss"]), rel=1e-5, abs=1e-6)
    size = torch.cat([g.flatten() for g in alone["gradients"].values()]).norm()
    assert size > 1e-3
    for found in ranks:
        got = found[method]
        assert got["gradients"].keys() == alone["gradients"].keys()
        for name, gradient in alone["gradients"].items():
            assert float((got["gradients"][name] - gradient).norm()) <= 1e-4 * float(size), name
        assert got["state"].keys() == alone["state"].keys()
        for name, tensor in alone["state"].items():  # momentum networks and running statistics
            torch.testing.assert_close(got["state"][name], tensor, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got["queue"], alone["queue"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_ddp_step_without_shared_statistics_would_show(method: str, ranks: list[dict[str, Any]]) -> None:
    """The test above can fail: gradients of two halves, each on its own, average to something else."""
    halves = [one_step(Step(method), share(views(), rank))["gradients"] for rank in range(WORLD)]
    got = ranks[0][method]["gradients"]
    apart = torch.cat([(sum(half[name] for half in halves) / WORLD - got[name]).flatten() for name in got]).norm()
    assert apart > 0.01 * torch.cat([g.flatten() for g in got.values()]).norm()


def test_synchronised_modules_keep_names_values_and_modes() -> None:
    net = build_module(HOST, recipe("moco_v2"), seed=0)
    net.encoder.backbone.stem[1].eval()
    with torch.no_grad():
        net.encoder.backbone.stem[1].running_mean.fill_(0.5)
    twin = synchronise_batch_norm(deepcopy(net), "cpu")
    assert list(twin.state_dict()) == list(net.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(twin.state_dict().values(), net.state_dict().values(), strict=True))
    norms = [m for m in twin.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(m, CpuSyncBatchNorm) for m in norms)
    assert [m.training for m in twin.modules()] == [m.training for m in net.modules()]
    trained = [(n, p.requires_grad) for n, p in net.named_parameters()]
    assert [(n, p.requires_grad) for n, p in twin.named_parameters()] == trained
    images = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # outside of a process group it is plain BatchNorm
        torch.testing.assert_close(twin.encoder(images), net.encoder(images), rtol=0, atol=1e-6)


# Whole runs through pretrain


class Losses(Callback):
    """Writes the mean loss over ranks of every step; lives through pickling."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: list[float] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = trainer.strategy.reduce(outputs["loss"].detach().clone(), reduce_op="mean")
        self.seen.append(float(loss))
        if trainer.is_global_zero:
            torch.save(torch.tensor(self.seen, dtype=torch.float64), self.path)


@dataclass
class After(Deadline):
    """A budget that is spent at the end of a given epoch; on rank zero's clock alone, as happens to clocks."""

    epochs: int = 1

    def check(self, needed: float = 0.0) -> None:
        self.epochs -= 1
        if not self.epochs and os.environ.get("LOCAL_RANK", "0") == "0":
            raise BudgetExhausted("the budget of 1 s is spent")


SEED = 5
"""One where no unit sits on its ReLU's kink within rounding.

From most seeds a run of one rank, too, jumps by 1e-3 when its initial weights are perturbed by 1e-7; from this one six
perturbations moved none of the three methods' results by more than 2e-7.
"""


def run(method: str, folder: Path, devices: int, **options: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Weights and losses of two epochs of three steps, watched as the suite watches its runs."""
    deadline = options.pop("deadline", None)
    folder.mkdir(exist_ok=True)
    data = ImageSet("procedural", *procedural_images(48, size=12), 10)
    settings = TrainerSettings(devices=devices, precision="32-true", progress=False)
    callbacks = [OnlineEvaluation(data), Losses(folder / "losses")]
    trainer = LightningTrainer(settings, folder, deadline=deadline)
    encoder = pretrain(HOST, recipe(method, **options), data.images, trainer=trainer, seed=SEED, callbacks=callbacks)
    return encoder.state_dict(), torch.load(folder / "losses", weights_only=True)


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Relative distance of all floating-point tensors of ``one`` together; counters must be equal."""
    names = [name for name, tensor in one.items() if tensor.is_floating_point()]
    assert all(torch.equal(one[name], other[name]) for name in one if name not in names)
    first, second = (torch.cat([state[name].double().flatten() for name in names]) for state in (one, other))
    return float((first - second).norm() / first.norm())


def agree(method: str, alone: tuple[dict[str, Tensor], Tensor], two: tuple[dict[str, Tensor], Tensor]) -> None:
    """One run's weights and losses are the other's.

    Six steps of float32 sums in another order: roundings of 1e-7 grow with every step.  What would be wrong (statistics
    or negatives of half a batch, a gradient off by a factor) shows at 1e-2.
    """
    begun = dict(build_module(HOST, recipe(method), seed=SEED).encoder.named_parameters())
    assert distance({name: alone[0][name] for name in begun}, begun) > 0.01  # it did train
    assert alone[0].keys() == two[0].keys()
    assert distance(alone[0], two[0]) < 1e-4
    torch.testing.assert_close(two[1], alone[1][-len(two[1]) :], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_ddp_run_is_the_run_of_one_rank(tmp_path: Path) -> None:
    alone, two = (run("byol", tmp_path / str(devices), devices) for devices in (1, WORLD))
    assert len(two[1]) == 6
    agree("byol", alone, two)


@pytest.mark.slow
def test_ddp_run_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    """The second epoch on two ranks is the second epoch on one: order, views, optimiser and queue are all restored."""
    alone = run("moco_v2", tmp_path / "alone", 1)
    with pytest.raises(BudgetExhausted):
        run("moco_v2", tmp_path / "two", 1, deadline=After())
    two = run("moco_v2", tmp_path / "two", WORLD)
    assert len(two[1]) == 3
    agree("moco_v2", alone, two)


@pytest.mark.slow
def test_ddp_run_stops_on_its_budget(tmp_path: Path) -> None:
    """Rank zero's clock stops all ranks, the caller sees the budget's own error, and one rank can finish the run."""
    alone = run("simclr", tmp_path / "alone", 1)
    with pytest.raises(BudgetExhausted, match="budget of 1 s"):
        run("simclr", tmp_path / "two", WORLD, deadline=After())
    losses = torch.load(tmp_path / "two" / "losses", weights_only=True)
    torch.testing.assert_close(losses, alone[1][:3], rtol=1e-4, atol=1e-5)
    agree("simclr", alone, run("simclr", tmp_path / "two", 1))


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (
            "hallmark.errors.TrainingError: the loss became nan; lower it",
            TrainingError("the loss became nan; lower it"),
        ),
        ("hallmark.errors.BudgetExhausted: spent: go on", BudgetExhausted("spent: go on")),
        ("RuntimeError: hallmark.errors.TrainingError: not ours", None),
    ],
)
def test_ddp_errors_of_a_rank_reach_the_caller(
    last: str, expected: Exception | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a rank that failed only text arrives, as torch formats it; errors meant for users are themselves again."""
    text = f"\n\n-- Process 1 terminated with the following error:\nTraceback (most recent call last):\n  ...\n{last}\n"
    raised = mp.ProcessRaisedException(text, 1, 4242)

    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(pl.Trainer, "fit", fail)
    with pytest.raises(Exception, match=r"lower it|go on|not ours") as caught:
        run("simclr", tmp_path, 1)
    if expected is None:
        assert caught.value is raised
    else:
        assert (type(caught.value), str(caught.value)) == (type(expected), str(expected))
