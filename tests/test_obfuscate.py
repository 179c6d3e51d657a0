"""Permutation, rescaling and insertion change the weights and nothing else, whatever a network does with channels."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark import components
from hallmark.attacks.obfuscate import InsertNeurons, Permute, Rescale
from hallmark.core import Attack
from hallmark.errors import ConfigError, StoreError
from hallmark.models import Classifier, Encoder, files
from hallmark.models.tracing import channel_groups
from hallmark.models.widths import layer_widths, set_widths
from obfuscated import NETWORKS, SIZE, answers, attacked, made, pictures, plain

ATTACKS = [
    Permute(1.0),
    Rescale(4.0),
    Rescale(8.0, "activations"),
    Rescale(8.0, "normalised"),
    InsertNeurons(0.25, "zero"),
    InsertNeurons(0.5, "clique"),
    InsertNeurons(0.5, "clique", members=3),
    InsertNeurons(0.5, "split"),
    InsertNeurons(1.0, "split", members=3),
]


def same_answers(one: nn.Module, other: nn.Module) -> bool:
    before, after = answers(one), answers(other)
    return bool((after - before).abs().max() <= 1e-4 * before.abs().max().clamp(max=1))


def moved(model: nn.Module, other: nn.Module) -> set[str]:
    """Names of tensors that differ."""
    state = other.state_dict()
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, state[name])}


# The function stays


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: f"{a.name}-{a.unit}".replace(" ", "-"))
def test_answers_stay(network: str, attack: Attack) -> None:
    model = made(NETWORKS[network])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    edited = attacked(model, attack)
    assert same_answers(model, edited)
    if isinstance(model, Classifier):  # its features are looked at too
        assert torch.allclose(edited.features(pictures()), model.features(pictures()), atol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())  # of the victim
    assert type(edited) is type(model)
    assert not edited.training
    parameters = [sum(p.numel() for p in m.parameters()) for m in (model, edited)]
    assert parameters[1] > 1.2 * parameters[0] if isinstance(attack, InsertNeurons) else moved(model, edited)


@pytest.mark.parametrize("network", NETWORKS)
def test_attacks_add_up(network: str) -> None:
    model = made(NETWORKS[network])
    edited = attacked(
        model, *(InsertNeurons(0.5, kind) for kind in ("clique", "zero", "split")), Permute(1), Rescale(2)
    )
    assert same_answers(model, edited)


@pytest.mark.parametrize("attack", [Permute(0), Rescale(0), InsertNeurons(0)])
def test_strength_zero_is_the_identity(attack: Attack) -> None:
    model = made(NETWORKS["classifier"])
    assert attack.strength == 0
    assert not moved(model, attacked(model, attack))


@pytest.mark.parametrize("attack", [Permute(1), Rescale(2), InsertNeurons(0.5)])
def test_the_seed_decides(attack: Attack) -> None:
    model = made(NETWORKS["wrn10"])
    one, same, other = (attacked(model, attack, seed=seed) for seed in (0, 0, 1))
    assert not moved(one, same)
    assert moved(one, other)


# Each edit is what it is called


def test_a_permutation_reorders_rows_and_the_columns_that_read_them() -> None:
    model = made(plain)
    edited = attacked(model, Permute(1))
    before, after = ([layer.weight.detach() for layer in m if hasattr(layer, "weight")] for m in (model, edited))
    orders = []
    inputs = torch.arange(3)
    for place, repeat in ((0, 1), (1, 1), (3, 4)):  # two convolutions, and a linear layer that sees 2×2 maps
        columns = (inputs[:, None] * repeat + torch.arange(repeat)).flatten()
        distances = torch.cdist(after[place].flatten(1), before[place][:, columns].flatten(1))
        assert torch.allclose(distances.min(1).values, torch.zeros(len(distances)))
        inputs = distances.argmin(1)
        orders.append(inputs)
    assert all(order.sort().values.tolist() == list(range(len(order))) for order in orders)
    assert all(order.tolist() != list(range(len(order))) for order in orders)
    assert torch.equal(after[2], before[2][orders[1]])  # BatchNorm follows the convolution before it
    assert torch.equal(after[5], before[5][:, orders[2]])  # answers stay in their places


@pytest.mark.parametrize(("share", "groups"), [(0.25, 2), (0.5, 4), (1, 7)])
def test_a_share_of_the_groups_is_permuted(share: float, groups: int) -> None:
    model = made(NETWORKS["resnet_small"])
    names = moved(model, attacked(model, Permute(share)))
    free = [group for group in channel_groups(model) if group.free]
    assert len(free) == 7
    reordered = [group for group in free if {axis.tensor for axis in group.axes} <= names]
    assert len(reordered) == groups
    assert names == {axis.tensor for group in reordered for axis in group.axes}


def factors(model: nn.Module, edited: nn.Module, name: str) -> Tensor:
    return edited.state_dict()[name] / model.state_dict()[name]


def test_factors_are_of_the_given_range() -> None:
    model = made(NETWORKS["resnet_small"])
    edited = attacked(model, Rescale(3, "activations"))
    drawn = torch.cat([factors(model, edited, f"backbone.layer{n}.bn1.bias") for n in (1, 2, 3, 4)]).log2()
    assert drawn.abs().max() <= 3
    assert drawn.std() == pytest.approx(3 / 3**0.5, rel=0.2)  # of the uniform law
    rows, columns = (factors(model, edited, f"backbone.layer4.{name}") for name in ("bn1.weight", "conv2.weight"))
    assert torch.allclose(columns, 1 / rows.view(1, -1, 1, 1).expand_as(columns), rtol=1e-5)


def test_variants_scale_what_they_say() -> None:
    model = made(NETWORKS["resnet_small"])
    activations = moved(model, attacked(model, Rescale(3, "activations")))
    normalised = moved(model, attacked(model, Rescale(3, "normalised")))
    assert not any("running" in name for name in activations)
    assert normalised == {name for name in model.state_dict() if name.endswith(("running_mean", "running_var"))} | {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    }
    # convolution by convolution: rows scale, columns do not
    edited = attacked(model, Rescale(3, "normalised"))
    rows = factors(model, edited, "backbone.layer3.conv2.weight")
    assert torch.allclose(rows, rows[:, :1, :1, :1].expand_as(rows), rtol=1e-5)
    assert torch.allclose(factors(model, edited, "backbone.layer3.bn2.running_var"), rows[:, 0, 0, 0] ** 2, rtol=1e-5)


def test_batchnorm_of_tiny_variance_is_scaled_exactly() -> None:
    model = made(NETWORKS["resnet_small"])
    with torch.no_grad():
        model.backbone.layer2.bn1.running_var.fill_(1e-7)  # of the size of eps and below
        model.backbone.layer2.conv1.weight.mul_(1e-3)
    assert same_answers(model, attacked(model, Rescale(6, "normalised")))


def duplicates(rows: Tensor) -> list[list[int]]:
    """Groups of equal rows of more than one member."""
    same = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist") == 0
    return [list(g) for g in sorted({tuple(r.nonzero().flatten().tolist()) for r in same}) if len(g) > 1]


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3))


@pytest.mark.parametrize("kind", ["zero", "clique", "split"])
def test_inserted_neurons_are_what_they_are_called(kind: str) -> None:
    """Six neurons become nine: by three zero ones, a clique of three, or three split in two."""
    model = made(two_layers)
    edited = attacked(model, InsertNeurons(0.5, kind, members=3 if kind == "clique" else 2))
    before, after = ({n: t.detach() for n, t in m.named_parameters()} for m in (model, edited))
    rows, old_rows = (torch.cat([t["0.weight"].flatten(1), t["0.bias"][:, None]], 1) for t in (after, before))
    columns, old_columns = (t["2.weight"].transpose(0, 1).flatten(1) for t in (after, before))
    assert torch.equal(after["2.bias"], before["2.bias"])
    assert len(rows) == len(columns) == 9
    origin = [[i for i, old in enumerate(old_rows) if torch.equal(row, old)] for row in rows]
    added = [place for place, found in enumerate(origin) if not found]
    together = [[p for p, found in enumerate(origin) if found == [i]] for i in range(6)]
    firsts = [places[0] for places in together]
    if kind == "split":
        assert not added
        assert sorted(map(len, together)) == [1, 1, 1, 2, 2, 2]
        for places, whole in zip(together, old_columns, strict=True):
            assert torch.allclose(columns[places].sum(0), whole, atol=1e-6)
            assert (columns[places] * whole >= 0).all()  # each has a share of its own, none less than nothing
        return
    assert torch.equal(columns[firsts], old_columns)
    assert firsts == sorted(firsts) != list(range(6))  # between the old ones, which keep their order
    assert len(added) == 3
    assert (columns[added] == 0).all() if kind == "zero" else columns[added].abs().max(1).values.min() > 0.1
    assert torch.allclose(columns[added].sum(0), torch.zeros(()), atol=1e-6)
    assert len(rows[added].unique(dim=0)) == (3 if kind == "zero" else 1)


@pytest.mark.parametrize(("fraction", "sizes"), [(0.01, [7, 9, 13]), (0.5, [9, 12, 18]), (1.0, [12, 16, 24])])
def test_widths_grow_as_told(fraction: float, sizes: list[int]) -> None:
    edited = attacked(made(plain), InsertNeurons(fraction, "split"))
    assert [edited[i].weight.shape[0] for i in (0, 3, 8)] == sizes
    assert edited[8].in_features == 4 * sizes[1]
    assert edited[4].num_features == sizes[1]


# Only what nobody sees is touched


class Odd(nn.Module):
    """Two convolutions, some operation between or beside them, and a linear layer."""

    def __init__(self, use: Callable[["Odd", Tensor], Tensor], outputs: int = 4) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, outputs, 3, padding=1)
        self.depthwise, self.norm = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4)
        self.same, self.last = nn.Conv2d(4, 4, 1), nn.Linear(outputs, 5)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.two(self.use(self, F.relu(self.one(x)))).mean((2, 3)))


ODD: dict[str, tuple[Callable[[Odd, Tensor], Tensor], bool]] = {
    # whether the channels of the first convolution may be reordered
    "nothing": (lambda net, x: x, True),
    "a residual around itself": (lambda net, x: x + net.same(x), True),
    "the same layer twice": (lambda net, x: F.relu(net.same(F.relu(net.same(x)))), True),
    "the same norm twice": (lambda net, x: net.norm(F.relu(net.norm(x))), True),
    "gelu": (lambda net, x: F.gelu(x), True),
    "a constant": (lambda net, x: F.relu(x - 0.1), True),
    "pooling": (lambda net, x: F.avg_pool2d(F.max_pool2d(x, 2), 2), True),
    "twice itself": (lambda net, x: x + x, False),
    "a sum of other widths": (lambda net, x: x + x.mean(1, keepdim=True), False),
    "a mean over channels": (lambda net, x: x * x.mean(1, keepdim=True), False),
    "concatenation": (lambda net, x: torch.cat([x[:, 2:], x[:, :2]], 1), False),
    "depthwise": (lambda net, x: net.depthwise(x), False),
    "softmax": (lambda net, x: x.softmax(2), False),
    "a scale per channel": (lambda net, x: x * net.scale, False),
    "a shuffled view": (lambda net, x: x.view(-1, 2, 2, SIZE, SIZE).transpose(1, 2).flatten(1, 2), False),
    "a weight out of its layer": (lambda net, x: F.conv2d(x, net.same.weight), False),
    "a weight used twice": (lambda net, x: net.same(x) + net.one.weight.mean(), False),
    "a norm in two roles": (lambda net, x: net.same(F.relu(net.norm(x))) * net.norm(x.softmax(2)).mean(), False),
    "a layer in two roles": (lambda net, x: net.same(F.relu(net.norm(x))) * net.same(x.softmax(2)).mean(), False),
    "transposed maps": (lambda net, x: x.transpose(2, 3), False),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_networks_keep_their_answers(name: str) -> None:
    use, free = ODD[name]
    model = made(lambda: Odd(use))
    (group,) = [g for g in channel_groups(model) if g.producers[0].tensor == "one.weight"]
    assert group.free is free
    for attack in (Permute(1), Rescale(3), InsertNeurons(0.5, "clique"), InsertNeurons(0.5, "split")):
        edited = attacked(model, attack)  # of the second convolution at least
        assert same_answers(model, edited), attack
        assert edited.state_dict()["two.weight"].shape != model.two.weight.shape or moved(model, edited)


def test_one_layer_in_two_roles_is_left_alone() -> None:
    """The images' channels cannot be reordered, nor can a tensor that two layers share."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same, self.next, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.next(F.relu(self.same(F.relu(self.same(x))))).mean((2, 3)))

    model = made(Recurrent)
    assert [group.free for group in channel_groups(model)] == [False, True, False]
    assert same_answers(model, attacked(model, Permute(1), Rescale(3), InsertNeurons(1)))
    tied = made(lambda: Odd(lambda net, x: F.relu(net.same(x))))
    tied.two.weight = nn.Parameter(tied.same.weight.detach().clone())
    tied.two.padding = (0, 0)
    tied.same.weight = tied.two.weight
    assert not any(group.free or stream.scalable for group in channel_groups(tied) for stream in group.streams)


def test_a_hook_or_another_class_may_compute_anything() -> None:
    class Centred(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight - self.weight.mean(0), self.bias)

    for computed in ("class", "hook"):
        model = made(lambda: Odd(lambda net, x: net.same(x)))
        if computed == "class":
            model.same = Centred(4, 4, 1)
        else:
            model.same.register_forward_hook(lambda module, inputs, output: output.flip(1))
        free = {group.producers[0].tensor for group in channel_groups(model) if group.free}
        assert free == {"two.weight"}
        assert same_answers(model, attacked(model, Permute(1), Rescale(3)))


@pytest.mark.parametrize(("name", "groups"), [("resnet18", 4 + 8), ("resnet34", 4 + 16), ("resnet50", 1 + 4 + 32)])
def test_groups_of_known_networks(name: str, groups: int) -> None:
    """One for each stage and one for each inner convolution; of the last stage the features are seen."""
    found = channel_groups(Encoder(name).eval())
    assert len(found) == groups
    assert sum(group.free for group in found) == groups - 1
    axes = [axis for group in found for axis in group.axes]
    assert len(axes) == len({(axis.tensor, axis.dim) for axis in axes})
    assert {axis.tensor for axis in axes} == {n for n, t in Encoder(name).state_dict().items() if t.ndim}


def test_networks_that_cannot_be_followed_are_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.mean() > 0 else -x

    with pytest.raises(ConfigError, match="Branching cannot be followed") as caught:
        attacked(Branching(), Permute(1))
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ConfigError, match="may be reordered: all are seen from outside"):
        attacked(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4)), InsertNeurons(0.5))
    smooth = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 2, 3))
    with pytest.raises(ConfigError, match=r"may be rescaled \(activations\)"):
        attacked(smooth, Rescale(1, "activations"))
    assert moved(smooth, attacked(smooth, Permute(1)))


# Widened models are stored like others


@pytest.mark.parametrize("network", ["resnet_small", "wrn10", "classifier"])
def test_a_widened_model_is_stored(network: str, tmp_path: Path) -> None:
    model = attacked(made(NETWORKS[network]), InsertNeurons(0.5, "clique"))
    files.save(model, tmp_path)
    loaded = files.load(tmp_path)
    assert torch.equal(answers(loaded), answers(model))
    assert files.describe(loaded) == files.describe(model)
    assert layer_widths(loaded) == layer_widths(model)
    if isinstance(loaded, Classifier):
        assert loaded.hidden == (12, 10)


@pytest.mark.parametrize("network", ["resnet_small", "wrn10", "classifier"])
def test_others_are_described_as_ever(network: str) -> None:
    model = made(NETWORKS[network])
    for same in (model, attacked(model, Permute(1), Rescale(1))):
        assert "widths" not in json.dumps(files.describe(same))
        assert files.describe(files.build(files.describe(same))) == files.describe(same)


def test_widths_of_no_layer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no layer 'layer9' to make 4 wide; allowed: stem\.0"):
        Encoder("resnet_small", width=4, widths={"layer9": (4, 4)})
    model = attacked(made(NETWORKS["resnet_small"]), InsertNeurons(0.5))
    files.save(model, tmp_path)
    description = json.loads((tmp_path / files.DESCRIPTION).read_text())
    description["widths"]["layer1.conv1"][1] += 1
    (tmp_path / files.DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(StoreError, match="does not fit its description"):
        files.load(tmp_path)


def test_a_resized_layer_starts_afresh_and_others_stay() -> None:
    model = made(plain)
    kept = model[0].weight.clone()
    set_widths(model, {"3": (6, 10), "4": (10, 10), "8": (40, 12)})
    assert torch.equal(model[0].weight, kept)
    assert model(pictures()).shape == (8, 5)
    assert torch.isfinite(model(pictures())).all()
    assert torch.equal(model[4].running_var, torch.ones(10))


# Settings


@pytest.mark.parametrize(
    ("attack", "wrong"),
    [
        (Permute, {"share": 1.1}),
        (Permute, {"share": -0.1}),
        (Rescale, {"octaves": -1}),
        (Rescale, {"octaves": 20}),
        (Rescale, {"octaves": 1, "where": "nowhere"}),
        (InsertNeurons, {"fraction": 2}),
        (InsertNeurons, {"fraction": 0.5, "kind": "dead"}),
        (InsertNeurons, {"fraction": 0.5, "members": 1}),
    ],
)
def test_impossible_settings_are_refused(attack: type[Attack], wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        attack(**wrong)


def test_strengths_carry_their_unit() -> None:
    assert (Permute(0.3).strength, Permute(0.3).unit) == (0.3, "share of channel groups")
    assert (Rescale(2).strength, Rescale(2).unit) == (2.0, "octaves all")
    assert (InsertNeurons(0.5).strength, InsertNeurons(0.5).unit) == (0.5, "fraction clique")
    assert InsertNeurons(0.5, "split", 3).unit == "fraction split of 3"
    assert InsertNeurons(0.5, "zero", 3).unit == "fraction zero"


@pytest.mark.parametrize("name", ["permute", "rescale", "insert_neurons"])
def test_configurations_build_their_attack(name: str) -> None:
    group = OmegaConf.to_container(OmegaConf.load(Path(__file__).parents[1] / "conf" / "attack" / f"{name}.yaml"))
    field, strengths = group.pop("strength"), group.pop("strengths")
    for strength in strengths:
        attack = components.instantiate({**group, field: strength}, f"attack/{name}")
        assert (attack.name, attack.strength) == (name, strength)
