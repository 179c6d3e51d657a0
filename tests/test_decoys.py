"""Decoys that are kept: what is stored of them, and how suspects draw from them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hallmark.core import Key, generator
from hallmark.stages import decoys

SHARED = torch.arange(4096, dtype=torch.int32)


def key(n: int) -> Key:
    """Query images that all keys share, a perturbation of its own, and a place that says which key it is."""
    own = torch.randn(3, 4, generator=generator(n, "perturbation"))
    return Key("fake", {"queries": SHARED, "perturbation": own}, {"row": n})


@pytest.fixture
def made() -> list[Key]:
    return [key(n) for n in range(1, 31)]


def test_decoys_come_back_as_they_were_and_share_what_they_shared(tmp_path: Path, made: list[Key]) -> None:
    true = key(0)
    decoys.save(made, true, tmp_path)
    found = decoys.load(tmp_path, true)
    assert [decoy.commitment() for decoy in found] == [decoy.commitment() for decoy in made]
    assert all(decoy.tensors["queries"] is true.tensors["queries"] for decoy in found)
    assert set(load_file(tmp_path / decoys.TENSORS)) == {"perturbation"}


def test_what_one_decoy_alone_has_of_its_own_is_kept_for_all(tmp_path: Path) -> None:
    true = key(0)
    twin, other = Key("fake", true.tensors, {"row": 1}), key(2)  # the first differs in nothing but its place
    decoys.save([twin, other], true, tmp_path)
    assert [d.commitment() for d in decoys.load(tmp_path, true)] == [twin.commitment(), other.commitment()]


def test_no_decoys_are_no_trouble(tmp_path: Path) -> None:
    decoys.save([], key(0), tmp_path)
    assert decoys.load(tmp_path, key(0)) == []


def rows(groups: list[list[Key]]) -> list[list[int]]:
    return [[decoy.meta["row"] for decoy in group] for group in groups]


def test_groups_have_their_sizes_and_nobody_is_in_two(made: list[Key]) -> None:
    first, second = rows(decoys.draw(made, (12, 8), seed=5))
    assert (len(first), len(second)) == (12, 8)
    assert len({*first, *second}) == 20
    assert {*first, *second} <= {decoy.meta["row"] for decoy in made}


def test_a_suspect_always_draws_the_same_and_another_suspect_others(made: list[Key]) -> None:
    draws = {seed: rows(decoys.draw(made, (12, 8), seed=seed)) for seed in range(20)}
    assert rows(decoys.draw(made, (12, 8), seed=7)) == draws[7]
    assert len({str(groups) for groups in draws.values()}) == len(draws)


def test_every_decoy_is_drawn_equally_often(made: list[Key]) -> None:
    count = torch.zeros(31)
    for seed in range(600):
        for row in rows(decoys.draw(made, (10, 0), seed=seed))[0]:
            count[row] += 1
    # Binomial(600, 1/3) for each of the 30: mean 200, standard deviation 11.5; five of these
    assert (count[1:] - 200).abs().max() < 58
