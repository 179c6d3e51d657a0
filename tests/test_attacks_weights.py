"""Pruning in any order, quantisation, noise and shifting, against plain formulas and torch's own, on every host."""

from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats as scipy_stats
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from hallmark.attacks.perturb import WeightNoise, WeightShift
from hallmark.attacks.prune import ORDERS, Prune, prune
from hallmark.attacks.quantize import Quantize, quantized
from hallmark.components import identify, instantiate
from hallmark.core import Attack, HostKind
from hallmark.errors import ConfigError
from hallmark.models.layers import find_layer, weight_layers
from hallmark.training import LightningTrainer
from hallmark.training_settings import TrainerSettings
from stolen import attacked, differing, prunable, snapshot, unchanged, victim

KINDS = list(HostKind)
LABELLED = [HostKind.ENCODER, HostKind.CLASSIFIER]
HOST_LAYER = "layer2.conv2"
ATTACKS = [
    *(Prune(0.4, order=order) for order in ORDERS),
    Quantize(28),
    Quantize(28, "per_channel"),
    Quantize(16, "bfloat16"),
    WeightNoise(0.2),
    WeightShift(1.5, noise=0.5),
]


@pytest.fixture
def trainer(tmp_path: Path) -> LightningTrainer:
    return LightningTrainer(TrainerSettings(precision="32-true", progress=False), tmp_path)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies by parameter name."""
    return {f"{name}.weight": layer.weight.detach().clone() for name, layer in weight_layers(model).items()}


def name_of(attack: Attack) -> str:
    return f"{attack.strength:g} {attack.unit}"


# What all have in common


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attack", ATTACKS, ids=name_of)
def test_weights_alone_change_and_the_victim_does_not(
    attack: Attack, kind: HostKind, trainer: LightningTrainer
) -> None:
    assert kind in attack.hosts
    model = victim(kind)
    before = snapshot(model)
    result = attacked(attack, model, kind, trainer)
    changed = differing(model, result)
    assert changed <= set(weights(model))  # no bias and no normalisation
    if not isinstance(attack, Prune):  # which may spare a layer of large weights
        assert len(changed) >= sum(m.ndim > 2 for m in weights(model).values())
    assert unchanged(model, before)
    assert not result.training


@pytest.mark.parametrize("attack", ATTACKS, ids=name_of)
def test_equal_generators_give_equal_weights(attack: Attack, trainer: LightningTrainer) -> None:
    model = victim(HostKind.ENCODER)
    one, same, other = (attacked(attack, model, HostKind.ENCODER, trainer, seed=seed) for seed in (0, 0, 1))
    assert not differing(one, same)
    random = "random" in attack.unit or attack.name == "perturb"
    assert bool(differing(one, other)) == random


@pytest.mark.parametrize("kind", KINDS)
def test_strength_nothing_is_the_identity(kind: HostKind, trainer: LightningTrainer) -> None:
    model = victim(kind)
    pruned = [Prune(0.0, order=order, layers=["0"]) for order in ORDERS]  # not even a layer that is not there
    rounded = [Quantize(0, grid) for grid in ("per_tensor", "per_channel", "bfloat16")]
    for attack in [*pruned, *rounded, WeightNoise(0.0), WeightShift(0.0, noise=3.0, retrain_epochs=5)]:
        assert attack.strength == 0
        assert not differing(model, attacked(attack, model, kind, trainer))


@pytest.mark.parametrize("attack", ATTACKS, ids=name_of)
def test_an_attack_is_its_configuration(attack: Attack) -> None:
    assert instantiate(identify(attack), "attack", Attack) == attack


@pytest.mark.parametrize(
    ("attack", "wrong"),
    [
        (Prune, {"fraction": 0.5, "order": "sideways"}),
        (Quantize, {"bits_removed": 31}),  # one bit has no zero and no step
        (Quantize, {"bits_removed": -1}),
        (Quantize, {"bits_removed": 24.5}),
        (Quantize, {"bits_removed": 24, "grid": "float8"}),
        (Quantize, {"bits_removed": 24, "grid": "bfloat16"}),
        (WeightNoise, {"sigma": -0.1}),
        (WeightNoise, {"sigma": float("inf")}),
        (WeightNoise, {"sigma": float("nan")}),
        (WeightShift, {"shift": -1.0}),
        (WeightShift, {"shift": 1.0, "noise": -1.0}),
        (WeightShift, {"shift": 1.0, "retrain_epochs": -1}),
    ],
)
def test_impossible_settings_are_refused(attack: type[Attack], wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=str(list(wrong.values())[-1])):
        attack(**wrong)


def test_units_tell_variants_apart() -> None:
    assert Prune(0.3, order="random").unit == "fraction global random"
    assert Prune(0.3, "layer", order="descending", layers=("a", "b"), retrain_epochs=1).unit == (
        "fraction layer descending of a, b retrained"
    )
    assert (Quantize(24).strength, Quantize(24).unit) == (24.0, "bits removed per_tensor")
    assert Quantize(16, "bfloat16").unit == "bits removed bfloat16"
    assert WeightNoise(0.1).unit == "sigma relative"
    assert (WeightShift(1.5).strength, WeightShift(1.5).unit) == (1.5, "mean filters noise 1")
    assert WeightShift(1.5, 0.25, retrain_epochs=2).unit == "mean filters noise 0.25 retrained"


# Pruning


def test_the_usual_order_and_layers_leave_the_identity_as_it_was() -> None:
    assert set(identify(Prune(0.5))) == {"_target_", "_version_", "fraction", "scope", "retrain_epochs", "lr", "batch"}
    assert identify(Prune(0.5, order="random"))["order"] == "random"
    assert list(identify(Prune(0.5, layers=["a"]))["layers"]) == ["a"]


def plain() -> nn.Sequential:
    """A network whose weights are contiguous, as torch's own pruning needs them."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(7, 5))


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_ascending_is_torchs_own_pruning(scope: str) -> None:
    ours, theirs = plain(), plain()
    prune(ours, 0.35, scope)
    pairs = [(theirs[0], "weight"), (theirs[2], "weight")]
    if scope == "global":
        torch_prune.global_unstructured(pairs, torch_prune.L1Unstructured, amount=0.35)
    else:
        for module, name in pairs:
            torch_prune.l1_unstructured(module, name, amount=0.35)
    for place in (0, 2):
        assert torch.equal(ours[place].weight, theirs[place].weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_descending_takes_what_ascending_keeps(kind: HostKind, scope: str, trainer: LightningTrainer) -> None:
    model = victim(kind)
    small = prunable(attacked(Prune(0.25, scope), model, kind, trainer))
    large = prunable(attacked(Prune(0.75, scope, order="descending"), model, kind, trainer))
    for weight, kept, other in zip(prunable(model), small, large, strict=True):
        assert torch.equal(kept + other, weight)
        assert not (kept * other).any()


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_random_order_is_exact_in_number_and_blind_to_size(scope: str, trainer: LightningTrainer) -> None:
    model = victim(HostKind.ENCODER)
    results = prunable(attacked(Prune(0.3, scope, order="random"), model, HostKind.ENCODER, trainer))
    total = sum(w.numel() for w in results)
    assert sum(int((w == 0).sum()) for w in results) == pytest.approx(0.3 * total, abs=len(results) / 2)
    removed, kept = [], []
    for before, after in zip(prunable(model), results, strict=True):
        assert torch.equal(after[after != 0], before[after != 0])
        removed.append(before[after == 0].abs() / before.std())
        kept.append(before[after != 0].abs() / before.std())
    assert scipy_stats.ks_2samp(torch.cat(removed).numpy(), torch.cat(kept).numpy()).pvalue > 0.01  # a fixed seed


@pytest.mark.parametrize("kind", LABELLED)
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("order", ORDERS)
def test_named_layers_alone_are_pruned(kind: HostKind, scope: str, order: str, trainer: LightningTrainer) -> None:
    """By the end of the name, which is the same in an encoder and in a classifier on it."""
    model = victim(kind)
    names = ("stem.0", HOST_LAYER)
    pruned = attacked(Prune(0.5, scope, order=order, layers=names), model, kind, trainer)
    chosen = [find_layer(pruned, name) for name in names]
    assert differing(model, pruned) == {f"{n}.weight" for n, m in weight_layers(pruned).items() if m in chosen}
    zeros = [int((layer.weight == 0).sum()) for layer in chosen]
    assert sum(zeros) == round(0.5 * sum(layer.weight.numel() for layer in chosen))
    if scope == "layer":
        assert zeros == [round(0.5 * layer.weight.numel()) for layer in chosen]


def test_a_layer_named_twice_counts_once(trainer: LightningTrainer) -> None:
    attack = Prune(0.5, layers=[HOST_LAYER, f"backbone.{HOST_LAYER}"])
    pruned = attacked(attack, victim(HostKind.ENCODER), HostKind.ENCODER, trainer)
    weight = find_layer(pruned, HOST_LAYER).weight
    assert int((weight == 0).sum()) == weight.numel() // 2


def test_a_layer_that_is_not_there_is_refused_with_those_that_are(trainer: LightningTrainer) -> None:
    model = victim(HostKind.CLASSIFIER)
    with pytest.raises(ConfigError, match=r"unknown layer 'layer9'; allowed: encoder\.backbone\.layer1\.conv1, .*head"):
        attacked(Prune(0.5, layers=["layer9"]), model, HostKind.CLASSIFIER, trainer)
    with pytest.raises(ConfigError, match=r"'conv2' is ambiguous, encoder\.backbone\.layer1\.conv2, .*end in it"):
        attacked(Prune(0.5, layers=["conv2"]), model, HostKind.CLASSIFIER, trainer)
    with pytest.raises(ConfigError, match="unknown layer"):  # a BatchNorm is no such layer
        attacked(Prune(0.5, layers=["bn1"]), model, HostKind.CLASSIFIER, trainer)


@pytest.mark.parametrize("kind", LABELLED)
def test_retraining_keeps_random_zeros(kind: HostKind, trainer: LightningTrainer) -> None:
    model = victim(kind)
    settings: dict[str, Any] = {"order": "random", "layers": (HOST_LAYER,), "batch": 32}
    bare, retrained = (attacked(Prune(0.5, retrain_epochs=n, **settings), model, kind, trainer) for n in (0, 1))
    zero = find_layer(bare, HOST_LAYER).weight == 0
    assert torch.equal(find_layer(retrained, HOST_LAYER).weight == 0, zero)
    assert differing(bare, retrained)


@pytest.mark.parametrize("make", [lambda n: Prune(0.5, retrain_epochs=n), lambda n: WeightShift(1.0, retrain_epochs=n)])
def test_only_what_labels_can_train_is_retrained(make: Any) -> None:
    assert make(0).hosts == set(HostKind)
    assert make(1).hosts == {HostKind.ENCODER, HostKind.CLASSIFIER}
    assert make(1).needs_labels


# Quantisation


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_quantisation_is_torchs_fake_quantisation(bits: int, axis: int | None) -> None:
    weight = normal(6, 5, 3, 3) * torch.linspace(0.1, 2, 6).view(6, 1, 1, 1)
    top = 2 ** (bits - 1) - 1
    if axis is None:
        expected = torch.fake_quantize_per_tensor_affine(weight, float(weight.abs().max()) / top, 0, -top, top)
    else:
        scale = weight.abs().amax([d for d in range(4) if d != axis]) / top
        zeros = torch.zeros(len(scale), dtype=torch.int32)
        expected = torch.fake_quantize_per_channel_affine(weight, scale, zeros, axis, -top, top)
    found = quantized(weight, bits, axis)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    slices = [found] if axis is None else found.unbind(axis)
    assert all(len(part.unique()) <= 2 * top + 1 for part in slices)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_no_weight_moves_by_more_than_half_a_step(bits: int) -> None:
    weight = normal(4, 50)
    step = float(weight.abs().max()) / (2 ** (bits - 1) - 1)
    found = quantized(weight, bits)
    assert float((found - weight).abs().max()) <= step / 2 * (1 + 1e-5)
    assert float(found.abs().max()) == pytest.approx(float(weight.abs().max()))
    assert torch.equal(quantized(-weight, bits), -found)  # symmetric
    torch.testing.assert_close(quantized(found, bits), found, rtol=1e-6, atol=0)


def test_zeros_stay_zeros() -> None:
    weight = torch.stack([torch.zeros(5), normal(5)])
    assert not quantized(weight, 4, 0)[0].any()
    assert not quantized(torch.zeros(3, 3), 8).any()


@pytest.mark.parametrize("kind", KINDS)
def test_channels_are_outputs(kind: HostKind, trainer: LightningTrainer) -> None:
    """Four bits leave at most 15 values to each output, also of a transposed convolution."""
    model = victim(kind)
    tensor, channel = (attacked(Quantize(28, grid), model, kind, trainer) for grid in ("per_tensor", "per_channel"))
    for whole, parts, layer in zip(prunable(tensor), prunable(channel), weight_layers(model).values(), strict=True):
        axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        assert len(whole.unique()) <= 15
        assert all(len(part.unique()) <= 15 for part in parts.unbind(axis))
        before = layer.weight.detach()
        peaks = [d for d in range(before.ndim) if d != axis]
        torch.testing.assert_close(parts.abs().amax(peaks), before.abs().amax(peaks))
        assert (parts - before).square().sum() < (whole - before).square().sum()


def test_bfloat16_keeps_the_upper_half_of_the_bits(trainer: LightningTrainer) -> None:
    model = victim(HostKind.CLASSIFIER)
    rounded = prunable(attacked(Quantize(16, "bfloat16"), model, HostKind.CLASSIFIER, trainer))
    for before, after in zip(prunable(model), rounded, strict=True):
        assert after.dtype == torch.float32
        assert not (after.contiguous().view(torch.int32) & 0xFFFF).any()
        assert ((after - before).abs() <= before.abs() * 2**-8).all()  # eight significant bits, to the nearest


# Noise


def residuals(model: nn.Module, result: nn.Module) -> dict[str, Tensor]:
    """What was added, in standard deviations of each layer's weights."""
    after = weights(result)
    return {name: (after[name] - before) / before.std(correction=0) for name, before in weights(model).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_gaussian_and_relative_to_each_layer(kind: HostKind, trainer: LightningTrainer) -> None:
    model = victim(kind)
    with torch.no_grad():
        for scale, weight in enumerate(weight_layers(model).values(), start=1):
            weight.weight.mul_(scale**2)
    noise = residuals(model, attacked(WeightNoise(0.3), model, kind, trainer))
    for part in noise.values():
        # four standard errors of a mean and of a standard deviation
        assert abs(float(part.mean())) < 4 * 0.3 / part.numel() ** 0.5
        assert abs(float(part.std()) - 0.3) < 4 * 0.3 / (2 * part.numel()) ** 0.5
    together = torch.cat([part.flatten() for part in noise.values()])
    assert scipy_stats.kstest(together.numpy() / 0.3, "norm").pvalue > 0.01  # a fixed seed


def test_noise_grows_in_proportion(trainer: LightningTrainer) -> None:
    model = victim(HostKind.ENCODER)
    once, thrice = (attacked(WeightNoise(s), model, HostKind.ENCODER, trainer) for s in (0.1, 0.3))
    small, large = residuals(model, once), residuals(model, thrice)
    for name, part in small.items():
        torch.testing.assert_close(3 * part, large[name], rtol=0, atol=1e-5)


def test_equal_weights_have_no_spread_to_perturb(trainer: LightningTrainer) -> None:
    model = victim(HostKind.ENCODER)
    layer = find_layer(model, HOST_LAYER)
    nn.init.constant_(layer.weight, 0.5)
    result = attacked(WeightNoise(0.3), model, HostKind.ENCODER, trainer)
    assert torch.equal(find_layer(result, HOST_LAYER).weight, layer.weight)


# Shifting


def means(model: nn.Module) -> list[Tensor]:
    """The mean filter of every convolution."""
    convolutions = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    return [m.weight.detach().mean(1 if isinstance(m, nn.ConvTranspose2d) else 0) for m in convolutions]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [0.5, 1.0, 2.5])
def test_mean_filters_shrink_and_turn(kind: HostKind, shift: float, trainer: LightningTrainer) -> None:
    model = victim(kind)
    result = attacked(WeightShift(shift, noise=0.0), model, kind, trainer)
    for before, after in zip(means(model), means(result), strict=True):
        torch.testing.assert_close(after, (1 - shift) * before, rtol=1e-4, atol=1e-6)
    for name, layer in weight_layers(result).items():
        before = weight_layers(model)[name].weight
        if isinstance(layer, nn.Linear):
            assert torch.equal(layer.weight, before)
            continue
        if not isinstance(layer, nn.ConvTranspose2d):  # every filter moves alike
            expected = torch.stack([f - shift * sum(before.unbind(0)) / len(before) for f in before.unbind(0)])
            torch.testing.assert_close(layer.weight, expected, rtol=1e-4, atol=1e-6)


def test_noise_comes_on_top_of_the_shift(trainer: LightningTrainer) -> None:
    model = victim(HostKind.ENCODER)
    bare, noisy = (attacked(WeightShift(1.5, noise=n), model, HostKind.ENCODER, trainer) for n in (0.0, 0.5))
    for before, shifted, layer in zip(prunable(model), prunable(bare), prunable(noisy), strict=True):
        noise = (layer - shifted) / before.std(correction=0)
        assert abs(float(noise.std()) - 0.5) < 4 * 0.5 / (2 * noise.numel()) ** 0.5


@pytest.mark.parametrize("kind", LABELLED)
def test_shifted_models_can_be_trained_on(kind: HostKind, trainer: LightningTrainer) -> None:
    model = victim(kind)
    before = snapshot(model)
    bare, one, same = (attacked(WeightShift(1.0, 0.1, n, batch=32), model, kind, trainer) for n in (0, 1, 1))
    assert differing(bare, one) >= set(weights(model))
    assert not differing(one, same)
    assert unchanged(model, before)
    assert not one.training
    if kind is HostKind.CLASSIFIER:
        with pytest.raises(ConfigError, match=r"answers 4 classes.*has 3"):
            attacked(WeightShift(1.0, retrain_epochs=1), model, kind, trainer, classes=3)


def test_noise_draws_do_not_touch_the_global_stream(trainer: LightningTrainer) -> None:
    model = victim(HostKind.ENCODER)
    state = torch.random.get_rng_state()
    for attack in (WeightNoise(0.1), WeightShift(1.0), Prune(0.5, order="random")):
        attacked(attack, model, HostKind.ENCODER, trainer)
    assert torch.equal(torch.random.get_rng_state(), state)
