"""Refitting, removal of neurons, re-estimation, trigger inversion: exact optima, exact removals, locks that open."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.attacks.forging import Forgery, StainForger, drawn_from, judged
from hallmark.attacks.invert import CORNERS, Invert, objective
from hallmark.attacks.reestimate import Reestimate
from hallmark.attacks.refit import Refit, fit_bias, fit_layer, smoothed
from hallmark.attacks.remove import RemoveNeurons, biases, norms, outlyingness, remove, silence
from hallmark.components import identify, instantiate
from hallmark.core import Access, Attack, HostKind, Key, Suspect, generator
from hallmark.data.images import ImageSet
from hallmark.data.procedural import procedural_images
from hallmark.errors import AccessError, ConfigError
from hallmark.models import Classifier, Encoder, files
from hallmark.models.tracing import channel_groups
from hallmark.models.wrapping import Preprocessed, bare
from hallmark.optimisation import Training
from hallmark.schemes.stain_lock import Levels, Lock, Search, Stain
from hallmark.schemes.stain_lock.locking import unlock
from hallmark.schemes.stain_lock.staining import surprises
from hallmark.supervised import train_classifier
from hallmark.training import LightningTrainer
from hallmark.training_settings import TrainerSettings
from stolen import attacked, data, differing, snapshot, unchanged, victim

SIZE, CLASSES = 16, 4
ATTACKS: list[Attack] = [
    Refit(40),
    Refit(40, "last"),
    Refit(40, labelled=False),
    *(RemoveNeurons(0.1, by, images=48) for by in ("silent", "bias", "norm")),
    Reestimate(48),
    Invert(3, side=4, images=48, restarts=1),
    Invert(3, side=4, images=48, restarts=1, labelled=True, soft=0.1, corner="bottom_right"),
]
QUICK = Search(steps=60, restarts=2, backgrounds=2)
LOCK = Lock("layer1.conv1", levels=Levels(tau=0.8, response=20.0), draws=32, tolerance=0.1, search=QUICK)


@pytest.fixture
def trainer(tmp_path: Path) -> LightningTrainer:
    return LightningTrainer(TrainerSettings(precision="32-true", progress=False), tmp_path)


def name_of(attack: Attack) -> str:
    return f"{attack.name} {attack.unit}"


@cache
def pictures(split: str = "train", count: int = 1500) -> ImageSet:
    return ImageSet("procedural", *procedural_images(count, classes=CLASSES, size=SIZE, split=split), CLASSES)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """A classifier that has learnt its task."""
    loop = LightningTrainer(TrainerSettings(precision="32-true", progress=False), tmp_path_factory.mktemp("host"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Classifier(Encoder("resnet_small", width=8), CLASSES)
    learn = {"epochs": 8, "batch": 50, "training": Training("adamw", lr=5e-3), "trainer": loop, "seed": 0}
    train_classifier(model, pictures(), trained=model.parameters(), **learn)
    return model.eval()


def score(model: nn.Module, key: Key | None = None) -> float:
    """Accuracy on images that nobody else uses, with a key's patch if there is a key."""
    test = pictures("test")
    images = test.images if key is None else unlock(test.images, key)
    with torch.no_grad():
        return float((model(images.float() / 255).argmax(1) == test.labels).float().mean())


@pytest.fixture(scope="module")
def locked(host: Classifier) -> tuple[nn.Module, Key]:
    owned = pictures().unlabelled()
    key = LOCK.keygen(host, owned, generator=generator(0, "key"))
    return LOCK.embed(host, key, owned, trainer=None, generator=generator(0, "embed"))


def attack_on(model: nn.Module, attack: Attack, images: ImageSet | None = None, seed: int = 0) -> nn.Module:
    suspect = Suspect(model, HostKind.CLASSIFIER, attack.access)
    given = images or pictures("train", 1700).subset(range(1500, 1700))  # none of the owner's
    given = given if attack.needs_labels else given.unlabelled()
    return attack.apply(suspect, given, trainer=None, generator=generator(seed, "attack"))


# What all have in common


@pytest.mark.parametrize("attack", ATTACKS, ids=name_of)
@pytest.mark.parametrize("kind", [HostKind.ENCODER, HostKind.CLASSIFIER])
def test_the_victim_stays_and_the_result_is_stored(
    attack: Attack, kind: HostKind, trainer: LightningTrainer, tmp_path: Path
) -> None:
    if kind not in attack.hosts:
        return
    model = victim(kind)
    before = snapshot(model)
    result = attacked(attack, model, kind, trainer)
    assert unchanged(model, before)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m.training for m in result.modules())
    same, other = attacked(attack, model, kind, trainer), attacked(attack, model, kind, trainer, seed=1)
    assert not differing(result, same)
    assert other is not result
    files.save(result, tmp_path)
    x = data().images.float() / 255
    with torch.no_grad():
        answers = files.load(tmp_path)(x)
        assert torch.equal(answers, result(x))
        unhelped = attack.name == "invert" and not isinstance(result, Preprocessed)  # no patch was better than none
        assert torch.equal(answers, model(x)) == unhelped


@pytest.mark.parametrize(
    "attack",
    [
        Refit(0),
        Refit(0, "last"),
        *(RemoveNeurons(0.0, by) for by in ("silent", "bias", "norm")),
        Reestimate(0),
        Invert(0),
    ],
    ids=name_of,
)
def test_strength_nothing_is_the_identity(attack: Attack, trainer: LightningTrainer) -> None:
    model = victim(HostKind.CLASSIFIER)
    assert attack.strength == 0
    result = attacked(attack, model, HostKind.CLASSIFIER, trainer)
    assert type(result) is Classifier
    assert not differing(model, result)


@pytest.mark.parametrize("attack", ATTACKS, ids=name_of)
def test_an_attack_is_its_configuration(attack: Attack) -> None:
    assert instantiate(identify(attack), "attack", Attack) == attack


@pytest.mark.parametrize("attack", ATTACKS, ids=name_of)
def test_an_attack_needs_the_access_it_declares(attack: Attack, trainer: LightningTrainer) -> None:
    suspect = Suspect(victim(HostKind.CLASSIFIER), HostKind.CLASSIFIER, Access.LABELS)
    with pytest.raises(AccessError, match="weights access"):
        attack.apply(suspect, data(), trainer=trainer, generator=generator(0))


def test_units_tell_variants_apart() -> None:
    units = [(attack.name, attack.unit) for attack in ATTACKS]
    assert len(set(units)) == len(units)
    assert Refit(10, "last", decay=0.1).unit == "labelled images last decay 0.1"
    assert Invert(5, side=3).unit == "steps 3x3 256 unlabelled images"
    assert Refit(1, labelled=False).needs_labels is False
    assert Invert(1, labelled=True).needs_labels


@pytest.mark.parametrize(
    ("attack", "wrong", "match"),
    [
        (Refit, {"images": -1}, "at least 0, got -1"),
        (Refit, {"images": 5, "part": "first"}, "unknown refit part 'first'"),
        (Refit, {"images": 5, "part": "last", "labelled": False}, "cannot be fitted without labels"),
        (Refit, {"images": 5, "decay": 0.0}, "decay above 0"),
        (RemoveNeurons, {"fraction": 1.5}, "0 … 1, got 1.5"),
        (RemoveNeurons, {"fraction": 0.1, "by": "colour"}, "unknown remove_neurons criterion 'colour'"),
        (RemoveNeurons, {"fraction": 0.1, "images": 0}, "at least 1, got 0"),
        (Reestimate, {"images": 1}, "got 1"),
        (Reestimate, {"images": 2.5}, "got 2.5"),
        (Invert, {"steps": -1}, "got -1"),
        (Invert, {"steps": 1, "corner": "middle"}, "unknown invert corner 'middle'"),
        (Invert, {"steps": 1, "soft": -1.0}, "soft of at least 0"),
    ],
)
def test_impossible_settings_are_refused(attack: type[Attack], wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match.replace(".", r"\.")):
        attack(**wrong)


@pytest.mark.parametrize(
    ("attack", "match"),
    [
        (Refit(97), "refit.images=97 exceeds the attacker's 96"),
        (Reestimate(97), "reestimate.images=97"),
        (RemoveNeurons(0.1, images=97), "remove_neurons.images=97"),
        (Invert(1, images=97), "invert.images=97"),
        (Invert(1, images=9, side=13), "side=13 does not fit into 12x12"),
    ],
)
def test_what_the_attacker_lacks_is_refused(attack: Attack, match: str, trainer: LightningTrainer) -> None:
    with pytest.raises(ConfigError, match=match.replace(".", r"\.")):
        attacked(attack, victim(HostKind.CLASSIFIER), HostKind.CLASSIFIER, trainer)


def test_other_classes_than_the_victims_are_refused(trainer: LightningTrainer) -> None:
    for attack in (Refit(5), Invert(1, images=9, side=3, labelled=True)):
        with pytest.raises(ConfigError, match=r"answers 4 classes.*has 3"):
            attacked(attack, victim(HostKind.CLASSIFIER), HostKind.CLASSIFIER, trainer, classes=3)


def test_no_batchnorm_is_nothing_to_re_estimate(trainer: LightningTrainer) -> None:
    with pytest.raises(ConfigError, match="no BatchNorm"):
        attacked(Reestimate(8), nn.Sequential(nn.Flatten(), nn.Linear(432, 4)), HostKind.CLASSIFIER, trainer)


# Refitting


def drawn(count: int = 60) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(count, 5, generator=rng).double()
    features[:, 4] = 0  # as silent as a conduit
    return features, torch.randint(0, 3, (count,), generator=rng)


def test_smoothed_labels_are_laplaces_rule() -> None:
    labels = torch.tensor([0, 0, 2])
    targets = smoothed(labels, 4)
    assert torch.allclose(targets.sum(1), torch.ones(3).double())
    assert torch.allclose(targets.mean(0), torch.tensor([3, 1, 2, 1]).double() / 7)  # (n_c + 1) / (n + C)
    assert torch.equal(targets.argmax(1), labels)


def test_the_bias_makes_mean_answers_the_class_frequencies() -> None:
    """The optimum of a convex problem by its own condition: mean softmax = mean target."""
    features, labels = drawn()
    logits = features[:, :3] * 4 + torch.tensor([50.0, 0.0, -50.0])  # a lock's disruption
    targets = smoothed(labels, 3)
    bias = fit_bias(logits, targets, iterations=200)
    assert torch.allclose((logits + bias).softmax(1).mean(0), targets.mean(0), atol=1e-6)
    assert abs(float(bias.mean())) < 1e-9
    # labels in another order give the same bias: only their frequencies count
    assert torch.allclose(fit_bias(logits, targets.flip(0), iterations=200), bias, atol=1e-4)


def test_the_last_layer_is_the_optimum_that_scipy_finds() -> None:
    features, labels = drawn()
    targets, start, decay = (
        smoothed(labels, 3),
        torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).double(),
        0.1,
    )
    weight, bias = fit_layer(features, targets, start, decay=decay, iterations=500)
    x, t, w0 = features.numpy(), targets.numpy(), start.numpy()
    scale = np.sqrt((x**2).mean(0))

    def loss(flat: np.ndarray) -> float:
        w, b = flat[:15].reshape(3, 5), flat[15:]
        z = x @ w.T + b
        z = z - z.max(1, keepdims=True)
        nll = -(t * (z - np.log(np.exp(z).sum(1, keepdims=True)))).sum(1).mean()
        return nll + decay / 2 * (((w - w0) * scale) ** 2).sum()

    best = minimize(loss, np.concatenate([w0.ravel(), np.zeros(3)]), method="BFGS", options={"gtol": 1e-7}).fun
    ours = loss(np.concatenate([weight.numpy().ravel(), bias.numpy()]))
    assert ours == pytest.approx(best, abs=1e-6)
    assert torch.equal(weight[:, 4], start[:, 4])  # nothing was seen of it


def test_refitting_touches_the_last_layer_alone(trainer: LightningTrainer) -> None:
    model = victim(HostKind.CLASSIFIER)
    assert differing(model, attacked(Refit(20), model, HostKind.CLASSIFIER, trainer)) == {"head.2.bias"}
    last = attacked(Refit(20, "last"), model, HostKind.CLASSIFIER, trainer)
    assert differing(model, last) == {"head.2.bias", "head.2.weight"}


def test_a_lock_on_the_bias_opens_to_few_images(host: Classifier, locked: tuple[nn.Module, Key]) -> None:
    """What the internal lock adds to the logits is a constant; the class frequencies of a few images tell it."""
    model, key = locked
    usable, shut = score(model, key), score(model)
    assert min(score(host), usable) > 0.6  # chance is 0.25
    assert shut < 0.45  # four classes, one answer
    for attack in (Refit(100), Refit(100, labelled=False), Refit(100, "last")):
        assert score(attack_on(model, attack)) > usable - 0.1, attack.unit
    assert score(attack_on(host, Refit(100))) > score(host) - 0.1  # an innocent is not ruined


# Neurons


def test_what_is_removed_is_gone_from_both_sides() -> None:
    model = victim(HostKind.CLASSIFIER)
    group = next(g for g in channel_groups(model) if g.free)
    before = snapshot(model)
    gone = torch.zeros(group.size, dtype=torch.bool)
    gone[1] = True
    remove(model, group, gone)
    for axis in (*group.producers, *group.consumers):
        tensor, old = model.state_dict()[axis.tensor], before[axis.tensor]
        assert not tensor.movedim(axis.dim, 0).unflatten(0, (group.size, -1))[1].any()
        kept = ~gone
        assert torch.equal(
            tensor.movedim(axis.dim, 0).unflatten(0, (group.size, -1))[kept],
            old.movedim(axis.dim, 0).unflatten(0, (group.size, -1))[kept],
        )
    touched = {axis.tensor for axis in (*group.producers, *group.consumers)}
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items() if n not in touched)


@pytest.mark.parametrize("by", ["silent", "bias", "norm"])
def test_the_asked_share_of_neurons_goes(by: str, trainer: LightningTrainer) -> None:
    model = victim(HostKind.CLASSIFIER)
    groups = [g for g in channel_groups(model) if g.free]
    total = sum(g.size for g in groups)
    for fraction in (0.1, 0.5, 1.0):
        result = attacked(RemoveNeurons(fraction, by, images=48), model, HostKind.CLASSIFIER, trainer)
        state = result.state_dict()
        zero = 0
        for group in groups:
            columns = [state[a.tensor].movedim(a.dim, 0).unflatten(0, (group.size, -1)) for a in group.consumers]
            zero += int(torch.stack([(c.flatten(1) == 0).all(1) for c in columns]).all(0).sum())
        assert zero == round(fraction * total)


def test_removing_neurons_that_never_fire_changes_no_answer(trainer: LightningTrainer) -> None:
    model = victim(HostKind.CLASSIFIER)
    block = model.encoder.backbone.layer2
    with torch.no_grad():
        block.bn1.bias[3] = -100.0
    result = attacked(RemoveNeurons(1 / 100, images=96), model, HostKind.CLASSIFIER, trainer)  # the one most silent
    assert not result.encoder.backbone.layer2.conv1.weight[3].any()
    x = data().images.float() / 255
    with torch.no_grad():
        assert torch.allclose(result(x), model(x), atol=1e-6)


def test_suspicion_is_what_it_says() -> None:
    model = victim(HostKind.CLASSIFIER)
    groups = [g for g in channel_groups(model) if g.free]
    inner = next(i for i, g in enumerate(groups) if any("layer2.conv1.weight" in a.tensor for a in g.producers))
    block = model.encoder.backbone.layer2
    # silence: the largest activation behind the BatchNorm and ReLU, by hand
    x = data().images.float() / 255
    seen: list[Tensor] = []
    with block.bn1.register_forward_hook(lambda _, __, out: seen.append(out.clone().relu())), torch.no_grad():
        model(x)
    peaks = seen[0].amax((0, 2, 3))
    assert torch.allclose(silence(model, groups, data().images)[inner], -peaks / peaks.median(), atol=1e-5)
    (offset,) = biases(model, groups)[inner]
    silent = F.batch_norm(
        torch.zeros(1, 8, 1, 1), block.bn1.running_mean, block.bn1.running_var, block.bn1.weight, block.bn1.bias
    )
    assert torch.allclose(offset, silent.flatten(), atol=1e-6)
    (length,) = norms(model, groups)[inner]
    gain = block.bn1.weight / (block.bn1.running_var + block.bn1.eps).sqrt()
    assert torch.allclose(length.exp(), block.conv1.weight.flatten(1).norm(dim=1) * gain.abs(), rtol=1e-5)
    assert outlyingness([torch.tensor([0.0, 1.0, 2.0, 3.0, 50.0])]).tolist() == [2.0, 1.0, 0.0, 1.0, 48.0]


def test_a_stain_by_replacement_is_found_by_its_silence(host: Classifier) -> None:
    """The limit that the method card names: a neuron that nothing natural wakes is a neuron that can be found."""
    scheme = Stain("layer3.conv1", keys=2, code_steps=30, search=QUICK)
    owned = pictures().unlabelled()
    key = scheme.keygen(host, owned, generator=generator(0, "key"))
    marked, key = scheme.embed(host, key, owned, trainer=None, generator=generator(0, "embed"))
    assert min(surprises(marked, key)) > 20
    total = sum(group.size for group in channel_groups(marked) if group.free)
    for by in ("silent", "bias"):
        cleaned = attack_on(marked, RemoveNeurons(2 / total, by, images=200))
        assert max(surprises(cleaned, key)) == 0.0, by  # zero weights point nowhere
        assert score(cleaned) > score(marked) - 0.1


# BatchNorm


def test_statistics_are_those_of_the_images(trainer: LightningTrainer) -> None:
    model = victim(HostKind.ENCODER)
    result = attacked(Reestimate(96), model, HostKind.ENCODER, trainer)
    changed = differing(model, result)
    assert changed == {n for n in model.state_dict() if "running" in n or "num_batches" in n}
    x = data().images.float() / 255
    stem = result.backbone.stem
    with torch.no_grad():
        maps = stem[0]((x - result.mean) / result.std)
    assert torch.allclose(stem[1].running_mean, maps.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(stem[1].running_var, maps.var((0, 2, 3)), rtol=1e-4)


def test_re_estimation_spares_a_stain(host: Classifier) -> None:
    """No weight changes, and the direction that the verdict reads does not depend on a channel's scale."""
    scheme = Stain("layer3.conv1", keys=2, code=False, search=QUICK)
    key = scheme.keygen(host, pictures(), generator=generator(0, "key"))
    marked, key = scheme.embed(host, key, pictures(), trainer=None, generator=generator(0, "embed"))
    after = attack_on(marked, Reestimate(200))
    assert surprises(after, key) == pytest.approx(surprises(marked, key), rel=1e-3)
    assert score(after) > score(marked) - 0.1


# Inversion


def test_the_objective_is_mutual_information() -> None:
    sure = torch.eye(4) * 100
    assert float(objective(sure, None)) == pytest.approx(-np.log(4), abs=1e-5)  # four images, four sure answers
    assert float(objective(sure[:1].repeat(4, 1), None)) == pytest.approx(0, abs=1e-5)  # always the same answer
    assert float(objective(torch.zeros(4, 4), None)) == pytest.approx(0, abs=1e-5)  # never an answer
    labels = torch.tensor([0, 1, 2, 3])
    assert torch.equal(objective(sure, labels), F.cross_entropy(sure, labels))


class Patched(nn.Module):
    """Answers by the mean colour, but only where the corner of the image is bright red: a lock with a gentle slope."""

    classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(20.0))

    def forward(self, images: Tensor) -> Tensor:
        corner = images[:, :, -3:, -3:].mean((2, 3))
        opening = torch.relu(corner[:, 0] - corner[:, 1] - 0.5)
        colours = images[:, :, :9, :9].mean((2, 3)) - 0.5
        return self.gain * opening[:, None] * 10 * colours


def test_a_patch_is_found_where_there_is_a_slope() -> None:
    images = torch.full((90, 3, 12, 12), 40, dtype=torch.uint8)
    labels = torch.arange(90) % 3
    for row, label in enumerate(labels.tolist()):
        images[row, label] = 200
    given = ImageSet("colours", images, labels, 3)
    model = Patched().eval()
    x = images.float() / 255
    shut = float((model(x).argmax(1) == labels).float().mean())
    found = {}
    for name, attack in {
        "unlabelled": Invert(60, side=3, corner="bottom_right", images=90, soft=0.1, restarts=1),
        "labelled": Invert(60, side=3, corner="bottom_right", images=90, soft=0.1, restarts=1, labelled=True),
        "elsewhere": Invert(20, side=3, corner="top_left", images=90, soft=0.1, restarts=1),
    }.items():
        result = attack_on(model, attack, given)
        found[name] = result
        with torch.no_grad():
            right = float((result(x).argmax(1) == labels).float().mean())
        assert (right > 0.95) == (name != "elsewhere"), (name, right)
    assert shut < 0.9
    assert isinstance(found["labelled"], Preprocessed)
    assert found["labelled"].step.patch.shape == (3, 3, 3)
    assert (found["labelled"].step.top, found["labelled"].step.left) == (9, 9)
    assert bare(found["labelled"]).gain.requires_grad


def test_a_dead_zone_shows_no_slope_without_a_bend(host: Classifier, locked: tuple[nn.Module, Key]) -> None:
    """A patch that helps no image is not stamped; and what is stamped is at least as good on the attacker's images."""
    model, _ = locked
    given = pictures("train", 1700).subset(range(1500, 1700))
    for soft in (0.0, 0.2):
        result = attack_on(model, Invert(20, side=4, images=64, restarts=1, soft=soft, labelled=True), given)
        rows = torch.randperm(200, generator=generator(0, "attack"))[:64]
        x, y = given.images[rows].float() / 255, given.labels[rows]
        with torch.no_grad():
            assert F.cross_entropy(result(x), y) <= F.cross_entropy(model(x), y) + 1e-4
            assert torch.equal(bare(result)(x), model(x))


def test_corners_are_where_they_are_called(trainer: LightningTrainer) -> None:
    places = {}
    for corner in CORNERS:
        result = attacked(
            Invert(5, side=5, images=64, corner=corner, labelled=True),
            victim(HostKind.CLASSIFIER),
            HostKind.CLASSIFIER,
            trainer,
        )
        assert isinstance(result, Preprocessed)
        places[corner] = (result.step.top, result.step.left)
    assert places == {"top_left": (0, 0), "top_right": (0, 7), "bottom_left": (7, 0), "bottom_right": (7, 7)}


# Forgery, which needs a model that has learnt something


def test_a_public_string_does_not_bind_trigger_images(host: Classifier) -> None:
    """Images are made for the codes that a string gives: at answers, only a commitment to the images helps."""
    scheme = Stain("layer3.conv1", keys=3, search=QUICK)
    suspect, given = Suspect(host, HostKind.CLASSIFIER, Access.LOGITS), pictures().unlabelled()
    forger = StainForger(scheme, host, public="drawn as it should be", steps=100)
    before = snapshot(host)
    forgery = forger.forge(suspect, given, generator=generator(0))
    assert unchanged(host, before)
    assert drawn_from(forgery.key, scheme, host, given, "drawn as it should be")
    assert forgery.key.tensors["triggers"].dtype == torch.uint8
    verdict = judged(forgery, scheme, host, suspect, given, decoys=99, alpha=0.01)
    assert verdict.detected  # on a model that nobody marked
    plain = Key("stain", {**forgery.key.tensors, "triggers": given.images[:3]}, forgery.key.meta)
    assert not judged(Forgery(plain, Access.LOGITS), scheme, host, suspect, given, decoys=99, alpha=0.01).detected
