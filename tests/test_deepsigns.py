"""deepsigns: activations and losses against numpy, the mark in every situation, its coins, its limits."""

from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from torch import Tensor, nn

from hallmark.attacks.overwrite import OverwriteAttack
from hallmark.components import identify, instantiate
from hallmark.composition import compose
from hallmark.core import Access, Evidence, HostKind, Key, Suspect, extract_all, generator
from hallmark.data.images import ImageSet
from hallmark.data.procedural import procedural_images
from hallmark.data.resident import Batch
from hallmark.errors import AccessError, ConfigError, DataError, KeyFileError
from hallmark.models import Classifier, Encoder
from hallmark.optimisation import Training
from hallmark.schemes.deepsigns import DeepSigns, Embedding
from hallmark.schemes.deepsigns.activations import answer, width
from hallmark.schemes.deepsigns.embedding import DeepSignsTraining, gathering_loss
from hallmark.stats import Binomial, verify
from hallmark.training import LightningTrainer
from hallmark.training_settings import TrainerSettings

CLASSES, SIZE, BITS, TRIGGERS = 4, 8, 32, 40
CONV = "group3.conv2"


@cache
def owner() -> ImageSet:
    return ImageSet("procedural", *procedural_images(256, classes=CLASSES, size=SIZE), CLASSES)


@cache
def host(seed: int = 0, width: int = 1) -> Classifier:
    """An untrained network whose BatchNorm statistics are those of the images; never changed by any test."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        net = Classifier(Encoder("wrn10", width=width), CLASSES)
        for _ in range(10):
            net.train()(owner().images[:64].float() / 255)
    return net.eval()


def scheme(situation: str = "finetune", layer: str = "features", **options: Any) -> DeepSigns:
    """A hand three times as heavy as the demonstration's, so that a few dozen steps suffice."""
    quick: dict[str, Any] = {"mark": 0.03, "epochs": 12, "training": Training("sgd", 0.03, 0.0, "steps")}
    embedding = Embedding(situation=situation, **quick | options)
    return DeepSigns(bits=BITS, layer=layer, triggers=TRIGGERS, embedding=embedding)


def suspect(model: nn.Module, access: Access = Access.WEIGHTS) -> Suspect:
    return Suspect(model, HostKind.CLASSIFIER, access)


def drawn(layer: str = "features", seed: int = 0, net: Classifier | None = None) -> Key:
    return scheme(layer=layer).keygen(net or host(), owner(), generator=generator(seed, "key"))


def train(deepsigns: DeepSigns, folder: Path, seed: int = 0) -> tuple[nn.Module, Key]:
    key = deepsigns.keygen(host(), owner(), generator=generator(0, "key"))
    trainer = LightningTrainer(TrainerSettings(precision="32-true", progress=False), folder)
    return deepsigns.embed(host(), key, owner(), trainer=trainer, generator=generator(seed, "embed"))


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Key]:
    """A classifier marked in fine-tuning."""
    return train(scheme(), tmp_path_factory.mktemp("marked"))


# Keys and reading


def test_trigger_images_are_of_the_chosen_classes() -> None:
    key = drawn()
    images, chosen = key.tensors["images"], key.meta["classes"]
    assert images.shape == (2, TRIGGERS // 2, 3, SIZE, SIZE)
    assert len(set(chosen)) == 2
    of = {image.numpy().tobytes(): int(label) for image, label in zip(owner().images, owner().labels, strict=True)}
    for label, own in zip(chosen, images, strict=True):
        assert {of[image.numpy().tobytes()] for image in own} == {label}
        assert len({image.numpy().tobytes() for image in own}) == len(own)
    assert {tuple(drawn(seed=s).meta["classes"]) for s in range(40)} == {
        (a, b) for a in range(CLASSES) for b in range(CLASSES) if a != b
    }  # a fixed seed


@pytest.mark.parametrize("layer", ["features", CONV, "head.0"])
def test_bits_and_loss_by_the_papers_formulas(layer: str) -> None:
    bits = 4 if layer == "head.0" else BITS
    deepsigns = replace(scheme(layer=layer), bits=bits)
    key = deepsigns.keygen(host(), owner(), generator=generator(0, "key"))
    net = host()
    seen: list[Tensor] = []
    module = {"features": net.encoder, CONV: net.encoder.backbone.group3.conv2, "head.0": net.head[0]}[layer]
    hook = module.register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad():
        net(key.tensors["images"].flatten(0, 1).float() / 255)
    hook.remove()
    values = seen[0].double().numpy()
    values = values.mean((2, 3)) if values.ndim == 4 else values
    mu = np.stack([values[:20].mean(0), values[20:].mean(0)])
    z, b = mu @ key.tensors["projection"].double().numpy(), key.tensors["message"].numpy()
    assert z.shape == b.shape == (2, bits // 2)
    right = int(((z >= 0) == b).sum())
    assert deepsigns.extract(suspect(net), key) == Evidence(Access.WEIGHTS, matches=right, trials=bits)
    y = 1 / (1 + np.exp(-z))
    loss = -(b * np.log(y) + (1 - b) * np.log(1 - y)).mean()
    assert deepsigns.figures(suspect(net), key) == {"embed_loss": pytest.approx(loss, rel=1e-4)}


def test_features_suffice_for_features_alone() -> None:
    key = drawn()
    at_weights, at_features = (scheme().extract(suspect(host(), a), key) for a in (Access.WEIGHTS, Access.FEATURES))
    assert at_weights.matches == at_features.matches
    assert at_features.access is Access.FEATURES
    assert scheme().access == {Access.WEIGHTS, Access.FEATURES}
    for layer, refused in (("features", Access.LOGITS), ("features", Access.LABELS), (CONV, Access.FEATURES)):
        with pytest.raises(AccessError, match=f"deepsigns cannot be verified at {refused} access"):
            scheme(layer=layer).extract(suspect(host(), refused), drawn(layer))


def test_widths_of_layers() -> None:
    assert width(host(), "features") == 64
    assert width(host(), CONV) == 32
    assert width(host(), "head.0") == CLASSES
    logits, seen = answer(host(), torch.rand(5, 3, SIZE, SIZE), CONV)
    assert (logits.shape, seen.shape) == ((5, CLASSES), (5, 32))
    assert not host().encoder.backbone.group3.conv2._forward_hooks  # nothing stays behind


# The null


def test_a_key_nobody_wrote_makes_exact_coins() -> None:
    """2000 fresh keys on one unmarked network: the counts follow Binomial(32, ½)."""
    deepsigns = scheme()
    keys = deepsigns.decoys(host(), drawn(), None, 2000, seed=7)
    found = np.array([e.matches for e in deepsigns.extract_many(suspect(host()), keys)])
    edges = [-1, 11, 13, 14, 15, 16, 17, 18, 20, 32]
    observed, _ = np.histogram(found, bins=np.array(edges) + 0.5)
    expected = 2000 * np.diff(scipy_stats.binom(BITS, 0.5).cdf(edges))
    assert scipy_stats.chisquare(observed, expected).pvalue > 1e-3  # fixed seed; coins fail one in a thousand
    accused = sum(
        verify(Evidence(Access.WEIGHTS, matches=int(m), trials=BITS), Binomial(0.5), 0.01).detected for m in found
    )
    attained = scipy_stats.binom.sf(scipy_stats.binom.isf(0.01, BITS, 0.5), BITS, 0.5)  # at most 0.01, by discreteness
    assert scipy_stats.binomtest(accused, 2000, attained).pvalue > 1e-3


def test_coins_do_not_hang_on_the_suspect() -> None:
    """Silent, constant and NaN activations are read as something; a random message agrees by chance alone."""
    silent, broken = deepcopy(host()), deepcopy(host())
    silent.encoder.backbone.bn.weight.data.zero_()
    silent.encoder.backbone.bn.bias.data.zero_()
    broken.encoder.backbone.bn.bias.data.fill_(float("nan"))
    keys = scheme().decoys(host(), drawn(), None, 500, seed=3)
    for net in (silent, broken):
        found = [e.matches for e in scheme().extract_many(suspect(net), keys)]
        assert abs(np.mean(found) - BITS / 2) < 4 * (BITS / 4 / 500) ** 0.5  # four standard errors
        assert not np.isnan(found).any()


def test_decoys_share_the_images_and_nothing_secret() -> None:
    key = drawn()
    decoys = scheme().decoys(host(), key, owner().unlabelled(), 30, seed=1)
    assert len({k.commitment() for k in (key, *decoys)}) == 31
    for decoy in decoys:
        assert decoy.tensors["images"] is key.tensors["images"]
        assert not torch.equal(decoy.tensors["projection"], key.tensors["projection"])
        assert not torch.equal(decoy.tensors["message"], key.tensors["message"])
    assert scheme().chance == 0.5


def test_extraction_in_bulk_agrees() -> None:
    keys = [drawn(seed=s) for s in range(3)]
    keys += scheme().decoys(host(), keys[0], None, 3, seed=1)
    suspects = [suspect(host()), suspect(host(seed=1), Access.FEATURES)]
    single = [[scheme().extract(s, k) for k in keys] for s in suspects]
    assert extract_all(scheme(), suspects, keys) == single


# Training


@pytest.mark.parametrize("layer", ["features", CONV])
@pytest.mark.parametrize("labelled", [True, False])
def test_a_step_minimises_task_gathering_and_mark(labelled: bool, layer: str) -> None:
    deepsigns = scheme(layer=layer, mark=3.0, pull=0.7, triggers=24)
    key = drawn(layer)
    net = deepcopy(host(seed=1))
    task = DeepSignsTraining(net, None if labelled else host(), key, deepsigns.embedding, seed=0)
    task.log = task.log_dict = lambda *_, **__: None
    batch = Batch(owner().images[:16], owner().labels[:16], torch.arange(16), 0, 0, 16)
    views, labels = task.on_after_batch_transfer(batch, 0)
    triggers = task.triggers(0)
    assert triggers.shape == (2, 12, 3, SIZE, SIZE)
    with torch.no_grad():
        now, then = net(views).double().numpy(), host()(views).double().numpy()
        seen = np.stack([answer(net, own, layer)[1].double().numpy() for own in triggers])
    utility = -np.log(softmax(now)[np.arange(16), labels.numpy()]).mean()
    if not labelled:
        utility = -(softmax(then) * np.log(softmax(now))).sum(1).mean()
    mu, b = seen.mean(1), key.tensors["message"].numpy()
    pull = np.mean([((x - m) ** 2).sum() for own, m in zip(seen, mu, strict=True) for x in own])
    y = 1 / (1 + np.exp(-(mu @ key.tensors["projection"].double().numpy())))
    mark = -(b * np.log(y) + (1 - b) * np.log(1 - y)).sum()
    loss = task.training_step((views, labels), 0)
    assert float(loss) == pytest.approx(utility + 0.7 * pull + 3 * mark, rel=1e-4)


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def test_each_step_sees_other_triggers_of_every_class() -> None:
    key = drawn()
    task = DeepSignsTraining(deepcopy(host()), None, key, scheme(triggers=10).embedding, seed=0)
    of = {image.numpy().tobytes(): c for c in (0, 1) for image in key.tensors["images"][c]}
    for step in range(5):
        levels = (task.triggers(step) * 255).round().to(torch.uint8)
        assert [[of[image.numpy().tobytes()] for image in own] for own in levels] == [[0] * 5, [1] * 5]
        assert len({image.numpy().tobytes() for image in levels.flatten(0, 1)}) == 10
    assert not torch.equal(task.triggers(0), task.triggers(1))
    assert float(gathering_loss(torch.ones(2, 5, 3), torch.zeros(2, 3))) == 3


@pytest.mark.parametrize(
    ("situation", "layer"),
    [("train", "features"), ("finetune", "features"), ("distill", "features"), ("distill", CONV)],
)
def test_the_message_is_written_in_every_situation(situation: str, layer: str, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in host().state_dict().items()}
    deepsigns = scheme(situation, layer)
    model, key = train(deepsigns, tmp_path)
    levels = [Access.WEIGHTS, Access.FEATURES] if layer == "features" else [Access.WEIGHTS]
    for access in levels:
        found = deepsigns.extract(suspect(model, access), key)
        assert found.matches == BITS
        assert verify(found, Binomial(0.5), 1e-4).detected
        assert not verify(deepsigns.extract(suspect(host(), access), key), Binomial(0.5), 1e-3).detected
    foreign = [
        e.matches for e in deepsigns.extract_many(suspect(model), deepsigns.decoys(host(), key, None, 500, seed=1))
    ]
    assert abs(np.mean(foreign) - BITS / 2) < 4 * (BITS / 4 / 500) ** 0.5  # wrong keys: four standard errors
    assert abs(np.std(foreign) - (BITS / 4) ** 0.5) < 4 * (BITS / 4) ** 0.5 / 1000**0.5
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in host().state_dict().items())


def test_the_mark_is_in_the_class_and_not_in_the_images(marked: tuple[nn.Module, Key]) -> None:
    """Other images of the chosen classes gather round the same centres; images of other classes need not."""
    model, key = marked
    shown = {image.numpy().tobytes() for image in key.tensors["images"].flatten(0, 1)}
    unseen = torch.tensor([image.numpy().tobytes() not in shown for image in owner().images])
    rows = [((owner().labels == c) & unseen).nonzero().flatten()[:20] for c in key.meta["classes"]]
    other = Key(key.scheme, {**key.tensors, "images": owner().images[torch.stack(rows)]}, key.meta)
    assert scheme().extract(suspect(model), other).matches >= 26  # 32 coins: p < 3e-4


def test_the_key_survives_its_file(marked: tuple[nn.Module, Key], tmp_path: Path) -> None:
    model, key = marked
    key.save(tmp_path / "key")
    again = Key.load(tmp_path / "key", scheme="deepsigns")
    assert again.commitment() == key.commitment()
    assert scheme().extract(suspect(model), again) == scheme().extract(suspect(model), key)


def test_equal_seeds_give_equal_tensors(tmp_path: Path) -> None:
    deepsigns = scheme("train", epochs=1)
    first, _ = train(deepsigns, tmp_path / "a")
    torch.rand(5)  # nothing hangs on the global generator
    second, _ = train(deepsigns, tmp_path / "b")
    third, _ = train(deepsigns, tmp_path / "c", seed=1)
    one, same, other = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (first, second, third))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_thief_can_write_a_second_mark(marked: tuple[nn.Module, Key], tmp_path: Path) -> None:
    """With trigger images and classes of its own, chosen by its own labels."""
    model, key = marked
    attack = OverwriteAttack(identify(scheme()), varied="bits", amount=16)
    assert (attack.unit, attack.needs_labels, attack.hosts) == ("deepsigns bits", True, {HostKind.CLASSIFIER})
    trainer = LightningTrainer(TrainerSettings(precision="32-true", progress=False), tmp_path)
    other = attack.apply(suspect(model), owner(), trainer=trainer, generator=generator(0, "attack"))
    assert isinstance(other, Classifier)
    assert scheme().extract(suspect(other), key).trials == BITS
    with pytest.raises(DataError, match="labels are withheld"):
        attack.apply(suspect(model), owner().unlabelled(), trainer=trainer, generator=generator(0, "attack"))


# Refusals


class Unused:
    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")


def test_withheld_labels_are_refused() -> None:
    with pytest.raises(DataError, match="chooses trigger images by their class, and labels are withheld"):
        scheme().keygen(host(), owner().unlabelled(), generator=generator(0))
    with pytest.raises(DataError, match="needs labels, and 256 of 256 images have none; use distill"):
        scheme().embed(host(), drawn(), owner().unlabelled(), trainer=Unused(), generator=generator(0))


def test_too_few_images_or_classes_are_refused() -> None:
    with pytest.raises(DataError, match="takes 100 images of class"):
        DeepSigns(bits=BITS, triggers=200).keygen(host(), owner(), generator=generator(0))
    with pytest.raises(ConfigError, match="classes=8 exceeds the 4 classes of the images"):
        DeepSigns(bits=32, classes=8, triggers=40).keygen(host(), owner(), generator=generator(0))
    with pytest.raises(ConfigError, match="triggers=40 exceeds the owner's 30 images"):
        scheme().check(32, 30)


def test_what_does_not_fit_the_host_is_refused() -> None:
    with torch.device("meta"):
        blank = Classifier(Encoder("wrn10", width=1), 2)
    DeepSigns(bits=128).check_host(blank)
    with pytest.raises(ConfigError, match="bits=130 is too many: 64 activations of 'features' have room for 64 bits a"):
        DeepSigns(bits=130).check_host(blank)
    with pytest.raises(ConfigError, match=r"unknown layer 'conv9'; allowed: encoder.backbone.conv1, .*group4.shortcut"):
        DeepSigns(layer="conv9").check_host(blank)
    with pytest.raises(ConfigError, match=r"deepsigns marks classifiers, .*not Encoder"):
        DeepSigns().check_host(blank.encoder)


@pytest.mark.parametrize("access", [Access.WEIGHTS, Access.FEATURES])
def test_a_key_of_another_width_is_refused(access: Access) -> None:
    line = "made for 64 activations, but 'features' has 128; use the key of this architecture"
    with pytest.raises(KeyFileError, match=line):
        scheme().extract(suspect(host(width=2), access), drawn())
    with pytest.raises(KeyFileError, match=line):
        scheme().embed(host(width=2), drawn(), owner(), trainer=Unused(), generator=generator(0))


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"bits": 33}, "scheme.bits=33 cannot be shared equally by scheme.classes=2"),
        ({"triggers": 0}, "scheme.triggers=0 cannot be shared equally"),
        ({"classes": 0}, "by scheme.classes=0"),
        ({"classes": 4, "embedding": Embedding(triggers=3)}, "embedding.triggers=3 gives some of 4 classes no image"),
    ],
)
def test_impossible_schemes_are_refused(wrong: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        DeepSigns(**wrong)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"situation": "posthoc"}, "unknown scheme.embedding.situation 'posthoc'; allowed: distill, finetune, train"),
        ({"pull": -1.0}, "pull must be a finite number of at least 0, got -1.0"),
        ({"triggers": 0}, "embedding.triggers must be at least 1, got 0"),
        ({"mark": float("nan")}, "got nan"),
    ],
)
def test_impossible_embeddings_are_refused(wrong: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        Embedding(**wrong)


def test_the_configuration_builds_the_scheme() -> None:
    built = instantiate(compose(["experiment=demo", "scale=paper", "scheme=deepsigns"])["scheme"], "scheme", DeepSigns)
    assert (built.embedding.mark, built.embedding.pull, built.layer) == (0.01, 0.01, "features")
    assert instantiate(identify(built), "scheme") == built
