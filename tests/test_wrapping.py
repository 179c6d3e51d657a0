"""Steps around a model: exact operations, one image at a time; such models are stored, judged and used as before."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from hallmark.attacks.preprocess import Postprocess, Preprocess
from hallmark.components import identify, instantiate
from hallmark.core import Access, Attack, HostKind, Suspect, generator
from hallmark.data.procedural import procedural_images
from hallmark.errors import ConfigError, StoreError
from hallmark.models import Classifier, Encoder, files
from hallmark.models.image_to_image import Architecture, fresh
from hallmark.models.inference import Answering
from hallmark.models.kinds import kind_of
from hallmark.models.steps import BLURS, FILTERS, Blur, Filter, Stamp, build_step
from hallmark.models.wrapping import Postprocessed, Preprocessed, Wrapper, bare
from hallmark.schemes.uchida import Uchida
from hallmark.schemes.uchida.scheme import Embedding
from hallmark.stages.judge import judge
from hallmark.tasks.classification import Classification
from hallmark.tasks.finetune import FineTune
from hallmark.tasks.heads import HeadRecipe
from hallmark.tasks.probe import Probe
from hallmark.training import LightningTrainer
from hallmark.training_settings import TrainerSettings
from stolen import CLASSES, attacked, data, differing, snapshot, unchanged, victim

AMOUNTS = {"noise": 8, "gaussian": 1.0, "jpeg": 60, "resize": 0.5, "depth": 4, "crop": 2, "shift": 2, "occlude": 3}
ANSWERS = {"noise": 0.3, "rounding": 0.5, "top": 20}
ATTACKS: list[Attack] = [
    *(Preprocess(operation, amount) for operation, amount in AMOUNTS.items()),
    *(Postprocess(operation, amount) for operation, amount in ANSWERS.items()),
]


@pytest.fixture
def trainer(tmp_path: Path) -> LightningTrainer:
    return LightningTrainer(TrainerSettings(precision="32-true", progress=False), tmp_path)


def images(count: int = 6, size: int = 12) -> Tensor:
    return procedural_images(count, size=size)[0].float() / 255


def model_of(kind: HostKind) -> nn.Module:
    if kind is HostKind.IMAGE_TO_IMAGE:
        return fresh(Architecture("unet", width=4, depth=2), 0).eval()
    return victim(kind)


def name_of(attack: Attack) -> str:
    return f"{attack.name} {attack.unit}"


# Steps


def filtered(name: str, amount: float, x: Tensor, seed: int = 0) -> Tensor:
    return Filter(name, amount, seed)(x)


def test_filters_do_what_they_say() -> None:
    x = images()
    assert torch.equal(filtered("shift", 2, x)[:, :, 2:, 2:], x[:, :, :-2, :-2])
    assert torch.equal(filtered("shift", 2, x)[:, :, 0], filtered("shift", 2, x)[:, :, 2])  # the edge is repeated
    middle = functional.resize(x[:, :, 2:-2, 2:-2], list(x.shape[2:]), antialias=True)
    assert torch.allclose(filtered("crop", 2, x), middle.clamp(0, 1), atol=1e-6)
    with pytest.raises(ConfigError, match="leaves nothing of"):
        filtered("crop", min(x.shape[2:]) / 2, x)
    covered = filtered("occlude", 3, x)
    assert (covered[:, :, :3, :3] == 0.5).all()
    assert torch.equal(covered[:, :, 3:], x[:, :, 3:])
    assert torch.equal(filtered("depth", 7, x), (x >= 0.5).float())
    for bits in (1, 4):
        assert len(filtered("depth", bits, x).unique()) <= 2 ** (8 - bits)
        assert (filtered("depth", bits, x) - x).abs().max() <= 0.5 / (2 ** (8 - bits) - 1) + 1e-6
    eight = (x * 255).round().to(torch.uint8)
    assert torch.equal(filtered("jpeg", 60, x)[2], functional.jpeg(eight[2], quality=40).float() / 255)
    assert torch.allclose(filtered("gaussian", 1.0, x), functional.gaussian_blur(x, [7, 7], [1.0, 1.0]))
    flat = torch.full_like(x, 0.25)
    for name in ("gaussian", "resize", "crop", "shift"):
        assert torch.allclose(filtered(name, AMOUNTS[name], flat), flat, atol=1e-6)  # nothing to blur or move


def test_noise_has_its_size_and_belongs_to_seed_and_image() -> None:
    x = torch.full((2, 3, 64, 64), 0.5)
    x[1] += 0.25 / 255  # 8 bits see the same image
    noise = filtered("noise", 8, x) - x
    # 12288 draws: the standard deviation is known to 1/√24576 = 0.6 %; four of these
    assert float(noise[0].std()) * 255 == pytest.approx(8, rel=0.026)
    assert abs(float(noise[0].mean())) * 255 < 4 * 8 / 12288**0.5
    assert torch.allclose(noise[0], noise[1], atol=1e-6)
    assert not torch.allclose(filtered("noise", 8, x[:1], seed=1) - x[:1], noise[:1], atol=1e-3)
    other = filtered("noise", 8, x[:1] + 2 / 255) - x[:1] - 2 / 255
    correlation = torch.corrcoef(torch.stack([noise[0].flatten(), other.flatten()]))[0, 1]
    assert abs(float(correlation)) < 4 / 12288**0.5


@pytest.mark.parametrize(("name", "amount"), AMOUNTS.items())
def test_an_image_is_treated_for_itself(name: str, amount: float) -> None:
    x = images()
    together = filtered(name, amount, x)
    assert together.shape == x.shape
    assert 0 <= together.min() <= together.max() <= 1
    assert not torch.equal(together, x)
    assert torch.equal(together, filtered(name, amount, x))
    # a blur of one image may round differently from a blur of six
    assert torch.allclose(filtered(name, amount, x.flip(0)).flip(0), together, atol=1e-6)
    assert torch.allclose(torch.cat([filtered(name, amount, one) for one in x.split(1)]), together, atol=1e-6)
    assert filtered(name, 0, x) is x
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(filtered(name, amount, x), together, atol=1e-6)  # images have eight bits
    assert filtered(name, amount, x[:0]).shape == x[:0].shape


def test_answers_are_blurred_as_said() -> None:
    answers = torch.randn(5, 10, generator=torch.Generator().manual_seed(0)) * 3 + 1
    spread = answers.std(1, correction=0, keepdim=True)
    top = Blur("top", 7)(answers)
    assert torch.equal(top.topk(3).values, answers.topk(3).values)
    assert torch.equal((top == top.amin(1, keepdim=True)).sum(1), torch.full((5,), 8))  # nothing tells the rest apart
    assert torch.equal(Blur("top", 50)(answers).unique(dim=1), answers.amax(1, keepdim=True))
    rounded = Blur("rounding", 0.5)(answers) / (0.5 * spread)
    assert torch.allclose(rounded, rounded.round(), atol=1e-4)
    assert ((rounded - answers / (0.5 * spread)).abs() <= 0.5 + 1e-4).all()
    noise = Blur("noise", 0.3)(answers) - answers
    assert 0.15 < float((noise / spread).std()) < 0.45  # 0.3, from fifty draws: five standard errors
    assert torch.equal(Blur("noise", 0.3)(answers[3:4])[0], Blur("noise", 0.3)(answers)[3])
    for name in BLURS:
        assert Blur(name, 0)(answers) is answers


def test_a_stamp_changes_its_rectangle_alone() -> None:
    stamp, x = Stamp(2, 3, top=4, left=5), images()
    stamp.patch.copy_(torch.randint(0, 256, (3, 2, 3), generator=torch.Generator().manual_seed(0)))
    stamped = stamp(x)
    assert torch.equal((stamped[:, :, 4:6, 5:8] * 255).round(), stamp.patch.float().expand(6, -1, -1, -1))
    stamped[:, :, 4:6, 5:8] = x[:, :, 4:6, 5:8]
    assert torch.equal(stamped, x)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Preprocess("sharpen", 1), "unknown preprocess operation 'sharpen'"),
        (lambda: Preprocess("jpeg", 100), "0 … 99, got 100"),
        (lambda: Preprocess("resize", 1.0), r"0 … 0\.95, got 1\.0"),
        (lambda: Preprocess("depth", 2.5), r"whole amount.*got 2\.5"),
        (lambda: Preprocess("noise", -1), "at least 0, got -1"),
        (lambda: Preprocess("gaussian", float("inf")), "finite.*got inf"),
        (lambda: Postprocess("mean", 1), "unknown postprocess operation 'mean'"),
        (lambda: Postprocess("top", 1.5), "whole amount"),
        (lambda: build_step({"step": "hat"}), "unknown step 'hat'"),
        (lambda: build_step({}), "unknown step None"),
    ],
)
def test_impossible_steps_are_refused(make: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make()


# Wrapped models


@pytest.mark.parametrize("kind", list(HostKind))
@pytest.mark.parametrize("attack", ATTACKS, ids=name_of)
def test_a_wrapped_model_is_one_of_its_kind(
    attack: Attack, kind: HostKind, trainer: LightningTrainer, tmp_path: Path
) -> None:
    if kind not in attack.hosts:
        assert kind is HostKind.DETECTOR or (kind, attack.unit) == (HostKind.IMAGE_TO_IMAGE, "top answers withheld")
        return
    model, x = model_of(kind), images()
    before = snapshot(model)
    wrapped = attacked(attack, model, kind, trainer)
    assert unchanged(model, before)
    assert isinstance(wrapped, Wrapper)
    assert kind_of(wrapped) is kind
    assert not differing(model, bare(wrapped))
    with torch.no_grad():
        answers = wrapped(x)
        expected = model(wrapped.step(x)) if isinstance(wrapped, Preprocessed) else wrapped.step(model(x))
        assert torch.equal(answers, expected)
        assert not torch.allclose(answers, model(x), atol=1e-4)
    folder = tmp_path / "stored"
    folder.mkdir()
    files.save(wrapped, folder)
    loaded = files.load(folder)
    assert type(loaded) is type(wrapped)
    assert files.describe(loaded) == files.describe(wrapped) == json.loads((folder / "model.json").read_text())
    with torch.no_grad():
        assert torch.equal(loaded(x), answers)
        if attack.name == "preprocess":  # an answer that was rounded or withheld may flip with the last bit
            assert torch.allclose(Answering(wrapped)(x), answers, atol=1e-4)


@pytest.mark.parametrize("kind", list(HostKind))
def test_an_amount_of_nothing_is_the_identity(kind: HostKind, trainer: LightningTrainer) -> None:
    model = victim(kind)
    for attack in [*(Preprocess(name, 0) for name in FILTERS), *(Postprocess(name, 0) for name in BLURS)]:
        assert attack.strength == 0
        result = attacked(attack, model, kind, trainer)
        assert not isinstance(result, Wrapper)
        assert not differing(model, result)


@pytest.mark.parametrize("attack", ATTACKS, ids=name_of)
def test_an_attack_is_its_configuration(attack: Attack) -> None:
    assert instantiate(identify(attack), "attack", Attack) == attack


def test_wrappers_nest_and_keep_the_patch(tmp_path: Path) -> None:
    stamp, model = Stamp(3, 3), victim(HostKind.CLASSIFIER)
    stamp.patch += 200
    nested = Postprocessed(Preprocessed(Preprocessed(model, Filter("noise", 4, seed=7)), stamp), Blur("top", 1)).eval()
    files.save(nested, tmp_path)
    loaded = files.load(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(images()), nested(images()))
        assert torch.equal(loaded.features(images()), nested.features(images()))
    assert int(loaded.model.step.patch[0, 0, 0]) == 200
    assert bare(loaded) is loaded.model.model.model
    assert nested.classes == CLASSES


def test_a_damaged_description_is_refused(tmp_path: Path) -> None:
    files.save(Preprocessed(victim(HostKind.ENCODER), Filter("jpeg", 20)), tmp_path)
    described = json.loads((tmp_path / "model.json").read_text())
    for damage in ({"before": {"step": "hat"}}, {"before": {"step": "filter"}}, {"inside": {}}):
        (tmp_path / "model.json").write_text(json.dumps(described | damage))
        with pytest.raises(StoreError, match="does not fit its description"):
            files.load(tmp_path)
    del described["before"]
    (tmp_path / "model.json").write_text(json.dumps(described))
    with pytest.raises(StoreError, match="does not fit its description"):
        files.load(tmp_path)


def test_tasks_use_a_wrapped_model(trainer: LightningTrainer, tmp_path: Path) -> None:
    encoder, labelled = victim(HostKind.ENCODER), data()
    blind = Preprocessed(encoder, Filter("occlude", 12)).eval()  # sees nothing at all
    recipe = HeadRecipe(epochs=5)
    heads = {}
    for name, host in (("sees", encoder), ("blind", blind)):
        task = Probe(recipe=recipe)
        downstream = task.transfer(host, labelled, trainer=trainer, generator=generator(0))
        (heads[name],) = task.measure(host, downstream, labelled, labelled)
        folder = tmp_path / name
        folder.mkdir()
        files.save_downstream(downstream, host, folder)
        assert isinstance(files.load_downstream(folder, host), Classifier)
    shares = labelled.labels.bincount() / len(labelled)
    assert min(abs(heads["blind"].value - share) for share in shares.tolist()) < 1e-6  # one answer for all
    assert heads["sees"].value > heads["blind"].value + 0.1
    (blind_accuracy,) = Classification().measure(
        Preprocessed(Classifier(encoder, CLASSES), Filter("occlude", 12)), None, labelled, labelled
    )
    assert blind_accuracy.value <= float(shares.max()) + 1e-6
    tuned = FineTune(epochs=1, recipe=recipe).transfer(blind, labelled, trainer=trainer, generator=generator(0))
    (measured,) = FineTune().measure(blind, tuned, labelled, labelled)
    assert measured.value <= float(shares.max()) + 1e-6
    folder = tmp_path / "tuned"
    folder.mkdir()
    files.save_downstream(tuned, blind, folder)
    again = files.load_downstream(folder, blind)
    with torch.no_grad():
        assert torch.allclose(again(images()), tuned(images()), atol=1e-6)


def test_weights_are_read_behind_the_wrapper() -> None:
    """A step before the network hides no weight: who holds the weights takes it off."""
    scheme = Uchida(bits=16, layer="layer2.conv2", embedding=Embedding("posthoc", mark=100.0))
    host, owned = victim(HostKind.ENCODER), data().unlabelled()
    key = scheme.keygen(host, owned, generator=generator(0))
    marked, key = scheme.embed(host, key, owned, trainer=None, generator=generator(0))
    wrapped = Preprocessed(marked, Filter("gaussian", 2.0)).eval()
    config = {"decoys": 0, "trials": 0, "alpha": 0.001, "seed": 0}
    judgements = judge(scheme, key, host, wrapped, {}, owned, config, purpose="test", reference=marked)
    assert [(j["access"], j["detected"]) for j in judgements] == [("weights", True), ("weights_aligned", True)]
    assert Suspect(wrapped, HostKind.ENCODER, Access.FEATURES).features(images()).shape == (6, wrapped.num_features)
    assert isinstance(bare(wrapped), Encoder)
