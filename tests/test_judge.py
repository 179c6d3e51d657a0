"""What the verify stage says of a mark in weights: as they are, after alignment, and where the key does not fit."""

from typing import Any

import pytest
import torch
from torch import nn

from hallmark.attacks.obfuscate import InsertNeurons, Permute
from hallmark.core import Key, generator
from hallmark.data.images import ImageSet
from hallmark.models import Classifier, Encoder
from hallmark.schemes.uchida import Uchida
from hallmark.schemes.uchida.scheme import Embedding
from hallmark.stages.judge import judge
from obfuscated import NoTrainer, attacked

SCHEME = Uchida(bits=64, layer="layer3.conv1", embedding=Embedding("posthoc", mark=1.0))
CONFIG = {"decoys": 0, "trials": 50, "alpha": 0.001, "seed": 0}
OWNER = ImageSet("blank", torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.full((4,), -1), 5)


def classifier(seed: int) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(Encoder("resnet_small", width=4), 5).eval()


@pytest.fixture(scope="module")
def owner() -> tuple[nn.Module, nn.Module, Key]:
    """Host, marked host and key."""
    host = classifier(0)
    key = SCHEME.keygen(host, OWNER, generator=generator(0, "key"))
    marked, key = SCHEME.embed(host, key, OWNER, trainer=NoTrainer(), generator=generator(0, "embed"))
    return host, marked, key


def verdicts(owner: tuple[nn.Module, nn.Module, Key], subject: nn.Module, *, purpose: str = "a") -> dict[str, Any]:
    host, marked, key = owner
    found = judge(SCHEME, key, host, subject, {}, OWNER, CONFIG, purpose=purpose, reference=marked)
    return {judgement["access"]: judgement for judgement in found}


def test_alignment_brings_a_permuted_mark_back(owner) -> None:
    found = verdicts(owner, attacked(owner[1], Permute(1.0)))
    assert not found["weights"]["detected"]
    assert 20 <= found["weights"]["matches"] <= 44  # 64 coins, three standard deviations
    assert found["weights_aligned"]["matches"] == 64
    assert found["weights_aligned"]["detected"]


def test_alignment_accuses_no_stranger(owner) -> None:
    for stranger in (owner[0], *(classifier(seed) for seed in range(1, 6))):
        assert not any(judgement["detected"] for judgement in verdicts(owner, stranger).values())


def test_weights_of_another_shape_show_no_mark_until_they_are_aligned(owner) -> None:
    found = verdicts(owner, attacked(owner[1], InsertNeurons(0.5, "split")))
    assert (found["weights"]["p_value"], found["weights"]["detected"], found["weights"]["null_p"]) == (1.0, False, [])
    assert found["weights_aligned"]["detected"]


def test_suspects_share_no_trial_keys(owner) -> None:
    first, again, other = (verdicts(owner, owner[0], purpose=name)["weights"]["null_p"] for name in "aab")
    assert first == again
    assert first != other
