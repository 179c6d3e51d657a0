"""Keys made after the fact pass on innocent models; what helps is what nobody may choose, and the price of trying."""

import math
from functools import cache

import pandas as pd
import pytest
import torch
from torch import nn

from hallmark.attacks.forged import ForgedKeys
from hallmark.attacks.forging import (
    Forgery,
    StainForger,
    UchidaForger,
    drawn_from,
    judged,
    public_generator,
    search,
)
from hallmark.attacks.overwrite import OverwriteAttack
from hallmark.components import identify
from hallmark.core import Access, HostKind, Key, Marking, Suspect, generator
from hallmark.data.images import ImageSet
from hallmark.data.procedural import procedural_images
from hallmark.errors import AccessError, ConfigError
from hallmark.models import Classifier, Encoder
from hallmark.report.surveys import KEYS, forged_keys
from hallmark.schemes.stain_lock import Search, Stain
from hallmark.schemes.uchida import Uchida
from hallmark.schemes.uchida.scheme import Embedding
from stolen import differing, snapshot, unchanged

ALPHA, DECOYS = 0.01, 99
STAIN = Stain("layer3.conv1", keys=2, code_steps=30, search=Search(steps=30, restarts=1))
UCHIDA = Uchida(bits=32, layer="layer3.conv1", embedding=Embedding("posthoc", mark=100.0))
ANSWERS = [Access.FEATURES, Access.LOGITS, Access.LABELS]


@cache
def images(split: str = "train") -> ImageSet:
    pictures = procedural_images(32, size=16, split=split)[0]
    return ImageSet("procedural", pictures, torch.full((32,), -1), 10)


@cache
def innocent(kind: HostKind = HostKind.CLASSIFIER, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = Encoder("resnet_small", width=4)
        model = encoder if kind is HostKind.ENCODER else Classifier(encoder, 10)
        model.train()(images().images.float() / 255)
        return model.eval()


def suspect_at(access: Access, seed: int = 0) -> tuple[nn.Module, Suspect]:
    kind = HostKind.ENCODER if access is Access.FEATURES else HostKind.CLASSIFIER
    model = innocent(kind, seed)
    return model, Suspect(model, kind, access)


def p_value(forgery: Forgery, scheme: Stain | Uchida, model: nn.Module, suspect: Suspect) -> float:
    return judged(forgery, scheme, model, suspect, images(), decoys=DECOYS, alpha=ALPHA).p_value


@pytest.mark.parametrize("access", [Access.WEIGHTS, Access.FEATURES, Access.LOGITS])
def test_a_stain_is_forged_for_an_innocent_model(access: Access) -> None:
    model, suspect = suspect_at(access)
    before = snapshot(model)
    forgery = StainForger(STAIN, model).forge(suspect, images(), generator=generator(0))
    assert unchanged(model, before)
    assert p_value(forgery, STAIN, model, suspect) == 1 / (DECOYS + 1)  # as good as the test can say it
    exact = STAIN.extract(suspect, forgery.key).scores[:, 0]
    assert (exact > 25).all()  # and by the exact law too: each below e⁻²⁵
    # the key of an honest stranger, of the same neurons and images, is nothing on the same model
    honest = STAIN.keygen(model, images(), generator=generator(1))
    stranger = Forgery(Key("stain", forgery.key.tensors | honest.tensors, honest.meta), access)
    assert p_value(stranger, STAIN, model, suspect) > ALPHA
    assert not drawn_from(forgery.key, STAIN, model, images(), "a string that the forger names")


def test_labels_are_forged_too() -> None:
    model, suspect = suspect_at(Access.LABELS)
    forgery = StainForger(STAIN, model).forge(suspect, images(), generator=generator(0))
    evidence = STAIN.extract(suspect, forgery.key)
    assert (evidence.matches, evidence.trials) == (2, 2)


def test_the_right_access_is_needed() -> None:
    _, suspect = suspect_at(Access.LOGITS)
    with pytest.raises(AccessError):
        UchidaForger(UCHIDA).forge(suspect, images(), generator=generator(0))
    with pytest.raises(ConfigError, match="without a copy of the suspect"):
        StainForger(STAIN).forge(suspect, images(), generator=generator(0))
    with pytest.raises(ConfigError, match=r"scheme\.carrier=diff"):
        UchidaForger(Uchida(bits=8, layer="layer3.conv1", carrier="diff")).forge(
            suspect_at(Access.WEIGHTS)[1], images(), generator=generator(0)
        )


@pytest.mark.parametrize("message", ["random", "ones"])
def test_any_message_is_read_from_any_weights(message: str) -> None:
    scheme = Uchida(bits=32, layer="layer3.conv1", message=message)
    for seed in (0, 1):
        model, suspect = suspect_at(Access.WEIGHTS, seed)
        forgery = UchidaForger(scheme).forge(suspect, images(), generator=generator(seed))
        evidence = scheme.extract(suspect, forgery.key)
        assert (evidence.matches, evidence.trials) == (32, 32)
        honest = scheme.keygen(model, images(), generator=generator(seed))
        assert torch.equal(forgery.key.tensors["message"], honest.tensors["message"])
        # rows are turned, not made: nobody could tell from X alone
        assert torch.equal(forgery.key.tensors["carrier"].abs(), honest.tensors["carrier"].abs())
        assert p_value(forgery, scheme, model, suspect) == pytest.approx(2.0**-32 if message == "random" else 0.01)
        assert not drawn_from(forgery.key, scheme, model, images(), "a string")
        assert scheme.extract(Suspect(innocent(seed=7), HostKind.CLASSIFIER, Access.WEIGHTS), forgery.key).matches < 30


@pytest.mark.parametrize("scheme", [STAIN, UCHIDA], ids=lambda s: s.name)
def test_a_public_string_binds_what_is_drawn(scheme: Stain | Uchida) -> None:
    model, suspect = suspect_at(Access.WEIGHTS)
    key = scheme.keygen(model, images(), generator=public_generator("owner, 2026-01-01"))
    assert drawn_from(key, scheme, model, images(), "owner, 2026-01-01")
    assert not drawn_from(key, scheme, model, images(), "owner, 2026-01-02")
    marked, embedded = scheme.embed(model, key, images(), trainer=None, generator=generator(0))
    assert drawn_from(embedded, scheme, model, images(), "owner, 2026-01-01")  # what embedding adds is not drawn
    marked_suspect = Suspect(marked, HostKind.CLASSIFIER, Access.WEIGHTS)
    honest = Forgery(embedded, Access.WEIGHTS)
    assert p_value(honest, scheme, model, marked_suspect) <= ALPHA  # the defence costs an honest owner nothing
    assert p_value(honest, scheme, model, suspect) > ALPHA


def test_only_trying_is_left_and_it_finds_what_chance_gives() -> None:
    """The best of N public draws has p ≈ 1/N: below any level that N exceeds, far above what an honest mark reaches."""
    model, suspect = suspect_at(Access.WEIGHTS)
    tries = 300
    forgery = search(UCHIDA, model, suspect, images(), (f"try {i}" for i in range(tries)))
    assert forgery.tries == tries
    assert forgery.public is not None
    assert drawn_from(forgery.key, UCHIDA, model, images(), forgery.public)
    p = p_value(forgery, UCHIDA, model, suspect)
    # P(best of N below p) ≤ N p: below 1e-3/N once in a thousand; above 10/N once in e¹⁰, but for coins' coarse steps
    assert 1e-3 / tries < p < 10 / tries
    assert p <= ALPHA  # the trap: a level that tries can reach
    honest = UCHIDA.keygen(model, images(), generator=public_generator("owner"))
    marked, honest = UCHIDA.embed(model, honest, images(), trainer=None, generator=generator(0))
    of_owner = p_value(Forgery(honest, Access.WEIGHTS), UCHIDA, model, Suspect(marked, suspect.kind, Access.WEIGHTS))
    assert of_owner < 1e-6 * p  # so a level in between keeps the owner and stops this forger
    with pytest.raises(ConfigError, match="at least one public string"):
        search(UCHIDA, model, suspect, images(), [])


def test_searching_a_stain_by_exact_p() -> None:
    model, suspect = suspect_at(Access.WEIGHTS)
    single = Stain("layer3.conv1", keys=1, search=Search(steps=5, restarts=1))
    forgery = search(single, model, suspect, images(), map(str, range(60)))
    surprise = float(single.extract(suspect, forgery.key).scores[0, 0])
    assert math.log(60 / 10) < surprise < math.log(60 * 1000)  # −ln p of the best of 60, as above


def test_a_public_string_binds_directions_on_weights() -> None:
    """No image enters a verdict on weights, and the direction is not the forger's choice any more."""
    model, suspect = suspect_at(Access.WEIGHTS)
    bound = StainForger(STAIN, public="drawn as it should be").forge(suspect, images(), generator=generator(0))
    assert drawn_from(bound.key, STAIN, model, images(), "drawn as it should be")
    assert p_value(bound, STAIN, model, suspect) > ALPHA


# The other forgery: a second stain in somebody else's model


def stained() -> tuple[nn.Module, Key]:
    host = innocent()
    key = STAIN.keygen(host, images(), generator=generator(0, "key"))
    return STAIN.embed(host, key, images(), trainer=None, generator=generator(0, "embed"))


def test_a_thief_can_stain_a_stained_model() -> None:
    """Both stains are then found, or only the later: the model does not say whose came first, commitments do."""
    marked, key = stained()
    attack = OverwriteAttack(identify(STAIN), "keys", 2)
    assert attack.knows == {"scheme"}
    assert attack.hosts == STAIN.hosts
    assert attack.unit == "stain keys"
    victim = Suspect(marked, HostKind.CLASSIFIER, Access.WEIGHTS)
    before = snapshot(marked)
    rng = generator(3, "attack")
    twice = attack.apply(victim, images("test"), trainer=None, generator=rng)
    assert unchanged(marked, before)
    assert differing(marked, twice)
    # the thief's key, drawn as the attack draws it
    theirs = STAIN.keygen(marked, images("test"), generator=generator(rng.initial_seed(), "key"))
    suspect = Suspect(twice, HostKind.CLASSIFIER, Access.WEIGHTS)
    found = judged(Forgery(theirs, Access.WEIGHTS), STAIN, marked, suspect, images(), decoys=DECOYS, alpha=ALPHA)
    assert found.detected
    # a silent neuron is the one least heard: the second stain lands on the first and wipes it out
    assert sorted(theirs.meta["neurons"]) == sorted(key.meta["neurons"])
    assert not judged(
        Forgery(key, Access.WEIGHTS), STAIN, marked, suspect, images(), decoys=DECOYS, alpha=ALPHA
    ).detected
    # what is left is the order of commitments, and a model of the owner's that bears the first stain alone
    assert not judged(
        Forgery(theirs, Access.WEIGHTS), STAIN, marked, victim, images(), decoys=DECOYS, alpha=ALPHA
    ).detected
    assert key.commitment() != theirs.commitment()


def test_nothing_overwritten_is_the_identity() -> None:
    marked, _ = stained()
    victim = Suspect(marked, HostKind.CLASSIFIER, Access.WEIGHTS)
    attack = OverwriteAttack(identify(STAIN), "keys", 0)
    assert not differing(marked, attack.apply(victim, images("test"), trainer=None, generator=generator(0)))


def test_the_survey_of_forged_keys_says_what_helps() -> None:
    model = innocent()
    key = STAIN.keygen(model, images(), generator=generator(0))
    marked, key = STAIN.embed(model, key, images(), trainer=None, generator=generator(1))  # type: ignore[arg-type]
    marking = Marking(STAIN, marked, key)
    survey = ForgedKeys(tries=60, decoys=99, images=8)
    readings = survey.look(model, marking, images(), images("test"), generator=generator(2))
    found = {reading.unit: reading.value for reading in readings}
    for role in ("innocent", "stained"):
        assert found[f"{role}, weights, computed"] == found[f"{role}, logits, computed"] == 0.01
        assert found[f"{role}, weights, one public string"] > 0.01  # a draw like any other: false in one of a hundred
        assert found[f"{role}, weights, best of 60 strings"] < 0.1  # fails by chance once in 500
        assert (
            f"{role}, logits, one public string" in found
        )  # how far images for given codes lead depends on the network
    assert len(found) == 10
    table = forged_keys(
        pd.DataFrame([{**dict.fromkeys(KEYS, ""), "scheme": "stain", **vars(reading)} for reading in readings]), "t"
    )
    assert len(table.frame) == 10
    assert set(table.frame["model"]) == {"innocent", "stained"}
    with pytest.raises(ConfigError, match="tries, decoys and images ≥ 1, got 0, 999 and 64"):
        ForgedKeys(tries=0)
