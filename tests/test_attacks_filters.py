"""Whole filters: exact shares, the smallest by a formula, the least active by hooks, gone from what is computed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hallmark.attacks.filters import PruneFilters, filters, magnitudes
from hallmark.attacks.hearing import heard
from hallmark.components import identify, instantiate
from hallmark.core import Access, Attack, HostKind, Suspect, generator
from hallmark.errors import AccessError, ConfigError
from hallmark.models import Classifier, Encoder
from hallmark.training import LightningTrainer
from hallmark.training_settings import TrainerSettings
from stolen import attacked, data, differing, snapshot, unchanged, victim

KINDS = [HostKind.ENCODER, HostKind.CLASSIFIER]
INNER = "layer2.conv1"
"""A convolution whose channels nothing else makes: 8 filters in the tiny victims."""


@pytest.fixture
def trainer(tmp_path: Path) -> LightningTrainer:
    return LightningTrainer(TrainerSettings(precision="32-true", progress=False), tmp_path)


def place(model: nn.Module) -> int:
    """Where the channels of the inner convolution are among all."""
    return next(i for i, g in enumerate(filters(model)) if any(INNER in axis.tensor for axis in g.producers))


def block(model: nn.Module) -> nn.Module:
    encoder = model.encoder if isinstance(model, Classifier) else model
    return encoder.backbone.layer2


def gone(model: nn.Module) -> Tensor:
    """Filters of the inner convolution without a weight."""
    return ~block(model).conv1.weight.flatten(1).any(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["l1", "activation"])
@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_the_asked_share_of_every_layer_goes(
    kind: HostKind, by: str, fraction: float, trainer: LightningTrainer
) -> None:
    model = victim(kind)
    before = snapshot(model)
    result = attacked(PruneFilters(fraction, by, images=48), model, kind, trainer)
    for group in filters(result):
        for axis in group.producers:
            filtered = result.get_parameter(axis.tensor).flatten(1) if "conv" in axis.tensor else None
            if filtered is not None:
                assert int((~filtered.any(1)).sum()) == round(fraction * group.size)
    assert unchanged(model, before)
    assert not result.training


def test_the_smallest_filters_go_first(trainer: LightningTrainer) -> None:
    model = victim(HostKind.CLASSIFIER)
    sums = torch.tensor([float(w.double().abs().sum()) for w in block(model).conv1.weight.detach()])
    assert torch.allclose(magnitudes(model, filters(model)[place(model)]), sums, rtol=1e-5)
    result = attacked(PruneFilters(0.5), model, HostKind.CLASSIFIER, trainer)
    assert set(gone(result).nonzero().flatten().tolist()) == set(sums.argsort()[:4].tolist())


def test_norms_of_convolutions_that_are_added_up_add_up() -> None:
    model = victim(HostKind.ENCODER)
    group = next(g for g in filters(model) if any("layer3.conv2" in axis.tensor for axis in g.producers))
    convolutions = (model.backbone.layer3.conv2, model.backbone.layer3.shortcut[0])
    wanted = sum(c.weight.detach().abs().sum((1, 2, 3)) for c in convolutions)
    assert torch.allclose(magnitudes(model, group), wanted, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_heard_is_what_hooks_hear(kind: HostKind) -> None:
    model = victim(kind)
    images = data(300).images  # more than one block
    seen: list[Tensor] = []
    encoder = model if kind is HostKind.ENCODER else model.encoder
    with (
        torch.no_grad(),
        block(model).bn1.register_forward_hook(lambda _, __, out: seen.append(out.clone().relu())),
    ):
        features = encoder(images.float() / 255)
    found = heard(model, filters(model), images)
    assert torch.allclose(found[place(model)].mean, seen[0].mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(found[place(model)].peak, seen[0].amax((0, 2, 3)), atol=1e-5)
    assert torch.allclose(found[-1].mean, features.mean(0), atol=1e-5)  # the last convolution's are the features


def test_channels_of_flattened_maps_are_heard_as_one() -> None:
    """A linear layer reads each of its channels at 2 × 2 places."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Encoder("vgg_small", 2).eval()
    group = filters(model)[-1]
    assert [axis.repeat for axis in group.consumers] == [4]
    images = data().images
    images = torch.nn.functional.pad(images, (10, 10, 10, 10))  # 32 × 32, as its linear layer wants
    seen: list[Tensor] = []
    hidden = next(m for m in model.modules() if isinstance(m, nn.Linear))
    with torch.no_grad(), hidden.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone())):
        model(images.float() / 255)
    wanted = seen[0].view(len(images), group.size, 4).abs().mean((0, 2))
    assert torch.allclose(heard(model, [group], images)[0].mean, wanted, atol=1e-6)


def test_the_network_computes_as_if_the_channels_were_not_there(trainer: LightningTrainer) -> None:
    model = victim(HostKind.CLASSIFIER)
    result = attacked(PruneFilters(0.5), model, HostKind.CLASSIFIER, trainer)
    zeroed = {}
    for group in filters(result):
        for axis in group.producers:
            if axis.tensor.endswith(("bn1.weight", "bn2.weight", "shortcut.1.weight", "stem.1.weight")):
                zeroed[axis.tensor.removesuffix(".weight")] = result.get_parameter(axis.tensor) == 0
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _, __, out, off=off: out.masked_fill(off[None, :, None, None], 0.0)
        )
        for name, off in zeroed.items()
    ]
    assert len(handles) == 1 + 4 * 2 + 3  # every BatchNorm there is
    x = data().images.float() / 255
    with torch.no_grad():
        assert torch.allclose(model(x), result(x), atol=1e-5)
    for handle in handles:
        handle.remove()


def test_fine_pruning_spares_all_but_the_last_convolution(trainer: LightningTrainer) -> None:
    model = victim(HostKind.CLASSIFIER)
    changed = differing(model, attacked(PruneFilters(0.5, "activation", 1, 48), model, HostKind.CLASSIFIER, trainer))
    assert changed == {
        *(f"encoder.backbone.layer4.{part}.weight" for part in ("conv2", "bn2", "shortcut.0", "shortcut.1")),
        "head.0.weight",  # which reads them
    } | {n for n in changed if n.endswith(("bn2.bias", "shortcut.1.bias"))}
    with torch.no_grad():
        features = model.features(data().images.float() / 255).mean(0)
    result = attacked(PruneFilters(0.5, "activation", 1, 96), model, HostKind.CLASSIFIER, trainer)
    silent = (~result.encoder.backbone.layer4.conv2.weight.flatten(1).any(1)).nonzero().flatten()
    assert set(silent.tolist()) == set(features.argsort()[:16].tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_retraining_keeps_the_filters_away_and_moves_the_rest(kind: HostKind, trainer: LightningTrainer) -> None:
    model = victim(kind)
    bare = attacked(PruneFilters(0.5), model, kind, trainer)
    attack = PruneFilters(0.5, retrain_epochs=2, batch=32)
    assert attack.needs_labels
    retrained = attacked(attack, model, kind, trainer)
    assert torch.equal(gone(retrained), gone(bare))
    for name, parameter in retrained.named_parameters():
        plain = bare.get_parameter(name)
        if name.endswith("weight") and plain.ndim == 4:
            assert not parameter[plain == 0].any()
            assert (parameter != plain)[plain != 0].float().mean() > 0.9


def test_no_share_is_the_identity(trainer: LightningTrainer) -> None:
    model = victim(HostKind.ENCODER)
    attack = PruneFilters(0.0, retrain_epochs=1)
    assert attack.strength == 0
    assert not differing(model, attacked(attack, model, HostKind.ENCODER, trainer))


def test_units_and_configurations() -> None:
    fine = PruneFilters(0.9, "activation", last=1, retrain_epochs=2)
    assert (PruneFilters(0.3).name, PruneFilters(0.3).strength) == ("prune", 0.3)
    assert PruneFilters(0.3).unit == "fraction of filters l1"
    assert fine.unit == "fraction of filters activation of the last 1 retrained"
    assert instantiate(identify(fine), "attack", Attack) == fine


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"fraction": 1.5}, "0 … 1, got 1.5"),
        ({"by": "colour"}, "unknown criterion to prune filters by 'colour'; allowed: activation, l1"),
        ({"last": -1}, "at least 0"),
        ({"images": 0}, "images of at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match.replace(".", r"\.")):
        PruneFilters(**{"fraction": 0.5, **wrong})


@pytest.mark.parametrize(
    ("backbone", "attack", "match"),
    [
        ("resnet_small", PruneFilters(0.5, last=9), r"last=9 asks for more convolutions than the 8"),
        ("resnet20_a", PruneFilters(0.5, "activation"), r"of 16 convolutions are cannot be heard: .* by=l1"),
    ],
)
def test_hosts_that_do_not_fit_are_refused_before_anything_runs(
    backbone: str, attack: PruneFilters, match: str
) -> None:
    with torch.device("meta"):
        host = Classifier(Encoder(backbone), classes=4)
    with pytest.raises(ConfigError, match=match):
        attack.check_host(host)
    PruneFilters(0.5, "activation", last=1).check_host(host)
    PruneFilters(0.5).check_host(host)


def test_what_the_attacker_lacks_is_refused(trainer: LightningTrainer) -> None:
    model = victim(HostKind.ENCODER)
    with pytest.raises(ConfigError, match=r"prune\.images=97 exceeds the attacker's 96"):
        attacked(PruneFilters(0.5, "activation", images=97), model, HostKind.ENCODER, trainer)
    suspect = Suspect(model, HostKind.ENCODER, Access.FEATURES)
    with pytest.raises(AccessError, match="weights access"):
        PruneFilters(0.5).apply(suspect, data(), trainer=trainer, generator=generator(0))
