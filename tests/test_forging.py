"""A key of every scheme is made for an innocent model; which of them a public string admits."""

from dataclasses import fields, replace
from functools import cache
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from hallmark.attacks.forged import PUBLIC, ForgedKeys
from hallmark.attacks.forging import (
    FORGERS,
    Forgery,
    RIGAForger,
    drawn_from,
    judged,
    members,
    pixels,
    public_generator,
    queries,
    readers,
    search,
)
from hallmark.attacks.forging.pixels import adapted, grown, replaced
from hallmark.core import Access, HostKind, Marking, Scheme, Suspect, generator
from hallmark.data.images import ImageSet
from hallmark.data.pairs import PairLaw
from hallmark.data.procedural import procedural_images
from hallmark.errors import AccessError, ConfigError
from hallmark.models import Classifier, Encoder
from hallmark.models.image_to_image import Architecture, fresh
from hallmark.models.kinds import kind_of
from hallmark.report.matrix.forging import facts
from hallmark.report.surveys import KEYS, forged_keys
from hallmark.schemes.awencoder import AWEncoder
from hallmark.schemes.awencoder.perturbation import PerturbationLaw
from hallmark.schemes.awencoder.scheme import Embedding as AWEmbedding
from hallmark.schemes.dataset_inference import DatasetInference
from hallmark.schemes.deep_watermark import DeepWatermark, MarkLaw, Networks
from hallmark.schemes.deepsigns import DeepSigns
from hallmark.schemes.riga import RIGA
from hallmark.schemes.rotation import Rotation
from hallmark.schemes.sslguard import SSLGuard
from hallmark.schemes.sslwm import SSLWM
from hallmark.schemes.stain_lock import Lock, Search, Stain
from hallmark.schemes.trigger import TriggerLaw
from hallmark.schemes.uchida import Uchida
from hallmark.schemes.wpe import WPE
from stolen import snapshot, unchanged

ALPHA, DECOYS = 0.01, 99
SIDE = 32
WPE_SCHEME = WPE(queries=16)
LOCK = Lock("layer1.conv1", tolerance=0.99, search=Search(steps=30, restarts=1))
SCHEMES: dict[str, tuple[Scheme, HostKind, Access]] = {
    "uchida": (Uchida(bits=32, layer="layer3.conv1"), HostKind.CLASSIFIER, Access.WEIGHTS),
    "uchida of an encoder": (Uchida(bits=32, layer="layer3.conv1"), HostKind.ENCODER, Access.WEIGHTS),
    "riga": (RIGA(bits=32, layer="layer3.conv2", hidden=32), HostKind.CLASSIFIER, Access.WEIGHTS),
    "deepsigns": (DeepSigns(bits=32, triggers=16), HostKind.CLASSIFIER, Access.WEIGHTS),
    "deepsigns by features": (DeepSigns(bits=32, triggers=16), HostKind.CLASSIFIER, Access.FEATURES),
    "stain": (Stain("layer3.conv1", keys=2, search=Search(steps=5, restarts=1)), HostKind.CLASSIFIER, Access.WEIGHTS),
    "stain by answers": (Stain("layer3.conv1", keys=2), HostKind.CLASSIFIER, Access.LOGITS),
    "lock": (LOCK, HostKind.CLASSIFIER, Access.WEIGHTS),
    "lock by answers": (LOCK, HostKind.CLASSIFIER, Access.LOGITS),
    "wpe": (WPE_SCHEME, HostKind.ENCODER, Access.FEATURES),
    "wpe, direction": (replace(WPE_SCHEME, reading="direction"), HostKind.ENCODER, Access.FEATURES),
    "sslwm": (SSLWM(trigger=TriggerLaw(size=6), queries=16), HostKind.ENCODER, Access.FEATURES),
    "awencoder": (
        AWEncoder(
            queries=16, perturbation=PerturbationLaw(images=16, steps=4, batch=8), embedding=AWEmbedding(foreign=1)
        ),
        HostKind.ENCODER,
        Access.FEATURES,
    ),
    "sslguard": (SSLGuard(queries=16, hidden=64, secret=16), HostKind.ENCODER, Access.FEATURES),
    "rotation": (Rotation(queries=32, hidden=64), HostKind.ENCODER, Access.FEATURES),
    "dataset_inference": (DatasetInference(fit=60, judged=40, components=3), HostKind.ENCODER, Access.FEATURES),
    "deep_watermark": (
        DeepWatermark(
            pairs=PairLaw("rain", side=SIDE),
            mark=MarkLaw("bits", 8),
            queries=16,
            networks=Networks(Architecture("unet", 4, 2), extractor_width=4, extractor_blocks=1),
        ),
        HostKind.IMAGE_TO_IMAGE,
        Access.IMAGES,
    ),
}
FREE = {"riga", "sslguard", "rotation", "dataset_inference", "deep_watermark"}
"""Schemes whose computed key is one that a public string gives."""
BOUND = {"uchida", "uchida of an encoder", "stain", "lock"}
"""Where a public string leaves nothing to make."""


@cache
def images(count: int = 256, side: int = 16) -> ImageSet:
    return ImageSet("procedural", *procedural_images(count, size=side, split="test"), 10)


@cache
def innocent(kind: HostKind, seed: int = 0) -> nn.Module:
    if kind is HostKind.IMAGE_TO_IMAGE:
        return fresh(Architecture("cnet", 4, 1), seed).eval()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        encoder = Encoder("resnet_small", width=4)
        model = encoder if kind is HostKind.ENCODER else Classifier(encoder, 10)
        model.train()
        for _ in range(20):  # BatchNorm statistics that fit the images
            model(images().images[:64].float() / 255)
    return model.eval()


def given(name: str, seed: int = 0) -> tuple[Scheme, nn.Module, Suspect, ImageSet]:
    scheme, kind, access = SCHEMES[name]
    model = innocent(kind, seed)
    own = images(side=SIDE + 8) if kind is HostKind.IMAGE_TO_IMAGE else images()
    forger = FORGERS[scheme.name](scheme)
    theirs = forger.presented(grown(own, max(forger.needed(DECOYS), 32), generator=generator(1)))
    return scheme, model, Suspect(model, kind, access), theirs  # type: ignore[return-value]


def p_value(forgery: Forgery, scheme: Scheme, model: nn.Module, suspect: Suspect, own: ImageSet) -> float:
    return judged(forgery, scheme, model, suspect, own, decoys=DECOYS, alpha=ALPHA).p_value


def admitted(forgery: Forgery, scheme: Scheme, model: nn.Module, own: ImageSet, public: str = PUBLIC) -> bool:
    return drawn_from(forgery.key, scheme, forgery.original or model, forgery.images or own, public)  # type: ignore[arg-type]


@cache
def forged(name: str, public: str | None) -> Forgery:
    scheme, model, suspect, own = given(name)
    before = snapshot(model)
    forgery = FORGERS[scheme.name](scheme, model, public).forge(suspect, own, generator=generator(0))
    assert unchanged(model, before)  # it is only looked at
    assert all(p.requires_grad for p in model.parameters())
    return forgery


@pytest.mark.parametrize("name", SCHEMES)
def test_a_key_is_computed_for_an_innocent_model(name: str) -> None:
    scheme, model, suspect, own = given(name)
    forgery = forged(name, PUBLIC if scheme.name in FREE else None)
    assert FORGERS[scheme.name].gains is (scheme.name not in FREE)
    assert forgery.key.scheme == scheme.name
    assert p_value(forgery, scheme, model, suspect, own) <= ALPHA
    assert admitted(forgery, scheme, model, own) is (scheme.name in FREE)
    assert not admitted(forgery, scheme, model, own, "another string")


@pytest.mark.parametrize("name", [name for name in SCHEMES if name not in ("stain by answers", "lock by answers")])
def test_the_key_of_an_honest_stranger_is_nothing_there(name: str) -> None:
    """A draw like any other: at this level one in a hundred would pass."""
    scheme, model, suspect, own = given(name)
    if scheme.name == "deep_watermark":
        key = forged(name, PUBLIC).key  # what is drawn alone holds no extractor; a fresh mark under the forger's
        key = scheme.decoys(model, key, own, 1, seed=7)[0]
    else:
        key = scheme.keygen(model, own, generator=generator(5))
        key = scheme.witness(key, images(300).subset(torch.arange(200, 300)), generator=generator(6))
    assert p_value(Forgery(key, suspect.access), scheme, model, suspect, own) > ALPHA


@pytest.mark.parametrize("name", [name for name in SCHEMES if SCHEMES[name][0].name not in FREE])
def test_a_public_string_binds_what_is_drawn_and_nothing_else(name: str) -> None:
    scheme, model, suspect, own = given(name)
    forgery = forged(name, PUBLIC)
    assert admitted(forgery, scheme, model, own)
    assert (p_value(forgery, scheme, model, suspect, own) > ALPHA) is (name in BOUND)


@pytest.mark.parametrize("name", ["wpe", "sslwm", "awencoder", "deepsigns"])
def test_nobody_sees_what_was_done_to_the_images(name: str) -> None:
    *_, own = given(name)
    found = forged(name, PUBLIC).images
    assert found is not None
    shown = own.images[: len(found)].int()
    assert 0 < int((found.images.int() - shown).abs().max()) <= 8
    assert torch.equal(own.images, given(name)[3].images)


def test_what_embedding_trains_no_draw_decides() -> None:
    places = (("riga", "extractor.0.weight"), ("sslguard", "reader.0.weight"), ("rotation", "reader.2.bias"))
    for name, trained in places:
        scheme, model, _, own = given(name)
        key = scheme.keygen(model, own, generator=public_generator(PUBLIC))
        assert not torch.equal(key.tensors[trained], forged(name, PUBLIC).key.tensors[trained])
        for tensor, free in ((trained, True), ("message" if name == "riga" else "queries", False)):
            other = replace(key, tensors={**key.tensors, tensor: key.tensors[tensor] + 1})
            assert drawn_from(other, scheme, model, own, PUBLIC) is free


def test_an_honest_lock_is_what_a_public_string_gives() -> None:
    scheme, model, _, own = given("lock")
    key = scheme.keygen(model, own, generator=public_generator("owner, 2026-01-01"))
    _, embedded = scheme.embed(model, key, own, trainer=None, generator=generator(0))  # type: ignore[arg-type]
    assert drawn_from(embedded, scheme, model, own, "owner, 2026-01-01")
    assert not drawn_from(embedded, scheme, model, own, "owner, 2026-01-02")
    wider = replace(embedded, tensors={**embedded.tensors, "directions": torch.zeros(1, 1, 3)})
    assert not drawn_from(wider, scheme, model, own, "owner, 2026-01-01")


def test_likelier_images_are_called_training_images() -> None:
    scheme, _, suspect, own = given("dataset_inference")
    key = forged("dataset_inference", PUBLIC).key
    pairs = scheme.extract(suspect, key).scores
    assert pairs is not None
    assert pairs[:, 0].mean() > pairs[:, 1].mean()
    whole = {image.numpy().tobytes() for image in own.images}
    assert all(image.numpy().tobytes() in whole for name in ("fit", "judged") for image in key.tensors[name])


def test_images_are_adapted_within_a_bound() -> None:
    start = images(4).images
    goal = torch.zeros_like(start).float()

    def loss(x: Tensor) -> Tensor:
        return (x - goal).square().sum()

    like = nn.Linear(1, 1)
    near = adapted(start, loss, steps=20, like=like)
    assert torch.equal(near, (start.int() - 8).clamp_min(0).byte())  # the optimum within the bound
    assert torch.equal(adapted(start, loss, steps=80, like=like, radius=1.0), torch.zeros_like(start))


def test_a_data_set_grows_and_keeps_places() -> None:
    few = images(8)
    more = grown(few, 20, generator=generator(0))
    assert len(more) == 20
    assert torch.equal(more.images[8:16], more.images[:8].roll(1, 3))
    assert torch.equal(more.labels[16:], more.labels[:4])
    assert len(grown(few, 5, generator=generator(0))) == 5
    put = replaced(few, few.images[2:4], 255 - few.images[2:4])
    assert torch.equal(put.images[2:4], 255 - few.images[2:4])
    assert torch.equal(put.images[4:], few.images[4:])


def test_forgers_refuse_what_they_cannot_see() -> None:
    for name, (scheme, kind, access) in SCHEMES.items():
        blind = Suspect(innocent(kind), kind, Access.IMAGES if kind is HostKind.IMAGE_TO_IMAGE else Access.WEIGHTS)
        if blind.access not in scheme.access:
            with pytest.raises(AccessError):
                FORGERS[scheme.name](scheme).forge(blind, images(), generator=generator(0))
        elif access is not Access.WEIGHTS and scheme.name not in FREE:
            with pytest.raises(ConfigError, match="without a copy of the suspect"):
                FORGERS[scheme.name](scheme).forge(given(name)[2], images(), generator=generator(0))


def survey_of(name: str, **settings: Any) -> tuple[dict[str, float], dict[str, float]]:
    scheme, model, *_ = given(name)
    own = images(96, SIDE + 8 if kind_of(model) is HostKind.IMAGE_TO_IMAGE else 16)
    other = innocent(kind_of(model), 3)
    survey = ForgedKeys(**{"tries": 4, "decoys": 19, "rule": True, **settings})
    assert survey.work(scheme, kind_of(model), len(own)) > 0
    found = survey.look(
        model, Marking(scheme, other, forged(name, PUBLIC).key), own.unlabelled(), own, generator=generator(2)
    )
    by_metric = [{r.unit: r.value for r in found if r.metric == m} for m in ("forged_p", "forged_drawn")]
    return by_metric[0], by_metric[1]


@pytest.mark.parametrize(
    ("name", "level", "forgers"),
    [
        ("riga", "weights", ["computed", "best of 4 strings"]),
        ("wpe", "features", ["computed", "one public string", "best of 4 strings"]),
        ("dataset_inference", "features", ["computed"]),
        ("deep_watermark", "images", ["computed"]),
    ],
)
def test_the_survey_forges_for_every_kind_of_host(name: str, level: str, forgers: list[str]) -> None:
    values, drawn = survey_of(name)
    assert list(values) == [f"{role}, {level}, {how}" for role in ("innocent", "marked") for how in forgers]
    assert values[f"innocent, {level}, computed"] == 0.05
    assert drawn[f"innocent, {level}, computed"] == float(name != "wpe")
    assert all(drawn[unit] == 1 for unit in drawn if not unit.endswith("computed"))
    assert all(p.requires_grad for p in innocent(SCHEMES[name][1]).parameters())


def test_without_the_rule_nobody_asks_what_is_drawn() -> None:
    values, drawn = survey_of("riga", rule=False, tries=1)
    assert len(values) == 4
    assert drawn == {}


def rows_of(**units: tuple[float, float]) -> pd.DataFrame:
    about = {**dict.fromkeys(KEYS, ""), "experiment": "matrix/x", "seed": 0}
    found = [{**about, "scheme": "none", "metric": "alpha", "value": 0.01, "unit": ""}]
    for place, (p, drawn) in units.items():
        scheme, forger = place.split("__")
        unit = f"innocent, weights, {forger.replace('_', ' ')}"
        for metric, value in (("forged_p", p), ("forged_drawn", drawn)):
            found.append({**about, "scheme": scheme, "metric": metric, "value": value, "unit": unit})
    return pd.DataFrame(found)


def test_the_report_says_whom_the_rule_stops() -> None:
    rows = rows_of(
        uchida__computed=(1e-9, 0),
        uchida__one_public_string=(0.4, 1),
        uchida__best_of_9_strings=(0.005, 1),
        riga__computed=(0.01, 1),
        riga__best_of_9_strings=(0.2, 1),
    )
    table = forged_keys(rows, "t")
    assert table.heads[-2:] == ["p-value", "drawn from a seed"]
    assert {(line[1], line[-3]): line[-1] for line in table.texts()} == {
        ("uchida", "computed"): "no",
        ("uchida", "one public string"): "yes",
        ("uchida", "best of 9 strings"): "yes",
        ("riga", "computed"): "yes",
        ("riga", "best of 9 strings"): "yes",
    }
    (line,) = facts(rows)
    assert "passes for 2 of 2 schemes" in line
    assert "made for the model, for 1 of 2" in line
    assert "trying strings alone for 1 of 2" in line
    assert facts(rows[rows["metric"] == "alpha"]) == ()


def test_riga_trains_on_one_model_and_reads_no_other() -> None:
    scheme, _, suspect, own = given("riga")
    forgery = RIGAForger(scheme, public=PUBLIC).forge(suspect, own, generator=generator(0))  # type: ignore[arg-type]
    other = innocent(HostKind.CLASSIFIER, 9)
    assert scheme.extract(suspect, forgery.key).matches == 32
    assert scheme.extract(Suspect(other, HostKind.CLASSIFIER, Access.WEIGHTS), forgery.key).matches < 32


@pytest.mark.parametrize("name", ["riga", "rotation", "sslguard"])
def test_who_tries_networks_compares_them_with_decoys_of_his_own(name: str) -> None:
    """By raw statistics the most partial network would win, which is so in every order, and rank anywhere."""
    scheme, model, suspect, own = given(name)
    strings = [f"string {number}" for number in range(60)]
    chosen = search(scheme, model, suspect, own, strings, compared=FORGERS[name].compared)
    verdict = judged(chosen, scheme, model, suspect, own, decoys=99, alpha=0.01)
    assert (
        verdict.p_value <= 0.2
    )  # the best of 60 by an estimate from 19 decoys; one string has more in four cases of five


def test_trying_needs_no_image() -> None:
    scheme, model, suspect, own = given("wpe")
    forgery = search(scheme, model, suspect, own, map(str, range(20)))
    assert forgery.tries == 20
    assert admitted(forgery, scheme, model, own, forgery.public or "")


def test_forgers_that_change_make_a_new_version_of_the_survey() -> None:
    """Names of stages do not hold what forgers do: where one of these numbers changes, ``version`` has to rise."""
    made = {
        name: {field.name: field.default for field in fields(forger) if field.name not in ("scheme", "model", "public")}
        for name, forger in FORGERS.items()
    }
    tried = {name: (forger.most_tries, forger.compared) for name, forger in FORGERS.items()}
    assert ForgedKeys.version == 2
    assert made == {
        "uchida": {},
        "riga": {"steps": 100},
        "deepsigns": {"steps": 60},
        "stain": {"steps": 200},
        "lock": {"side": 8, "steps": 200},
        "wpe": {"steps": 40},
        "sslwm": {"steps": 40},
        "awencoder": {"steps": 40, "longer": 4},
        "sslguard": {"steps": 100},
        "rotation": {"steps": 100},
        "dataset_inference": {},
        "deep_watermark": {"steps": 200, "batch": 8, "lr": 2e-3},
    }
    limits = {"lock": (50, 0), "awencoder": (20, 0), "dataset_inference": (0, 0), "deep_watermark": (0, 0)}
    limits |= dict.fromkeys(("riga", "sslguard", "rotation"), (None, 19))
    assert tried == {name: limits.get(name, (None, 0)) for name in FORGERS}
    assert (members.POOL, pixels.RADIUS, queries.FOREIGN, readers.ORDERS) == (2, 8 / 255, 8, 8)
