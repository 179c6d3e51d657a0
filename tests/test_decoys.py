"""Decoys that are made once a mark and drawn from for each suspect."""

import torch

from hallmark.core import Key
from hallmark.stages import decoys

KEY = Key("toy", {"secret": torch.arange(4), "queries": torch.ones(2, 3)}, {"row": 7})
MADE = [Key("toy", {"secret": torch.arange(4) + n, "queries": torch.ones(2, 3)}, {"row": n}) for n in range(1, 31)]


def test_what_was_saved_comes_back_and_what_is_shared_is_not_saved_again(tmp_path) -> None:
    decoys.save(MADE, KEY, tmp_path)
    assert [key.commitment() for key in decoys.load(tmp_path, KEY)] == [key.commitment() for key in MADE]
    assert (tmp_path / decoys.TENSORS).stat().st_size < 30 * 4 * 8 + 200  # secrets of four integers, and a header


def test_decoys_share_in_memory_what_they_shared(tmp_path) -> None:
    decoys.save(MADE, KEY, tmp_path)
    assert all(key.tensors["queries"] is KEY.tensors["queries"] for key in decoys.load(tmp_path, KEY))


def test_what_one_decoy_alone_has_of_its_own_is_kept_for_all(tmp_path) -> None:
    twin = Key("toy", KEY.tensors, {"row": 8})  # differs from the true key in nothing but its row
    decoys.save([twin, MADE[0]], KEY, tmp_path)
    assert [key.commitment() for key in decoys.load(tmp_path, KEY)] == [twin.commitment(), MADE[0].commitment()]


def test_no_decoys_are_no_trouble(tmp_path) -> None:
    decoys.save([], KEY, tmp_path)
    assert decoys.load(tmp_path, KEY) == []


def test_groups_are_disjoint_and_of_the_sizes_asked_for() -> None:
    first, second = decoys.draw(MADE, (12, 9), seed=0)
    rows = [key.meta["row"] for key in [*first, *second]]
    assert (len(first), len(second), len(set(rows))) == (12, 9, 21)


def test_each_suspect_draws_its_own() -> None:
    drawn = {seed: tuple(key.meta["row"] for key in decoys.draw(MADE, (12,), seed=seed)[0]) for seed in range(50)}
    assert len(set(drawn.values())) == 50
    assert drawn[3] == tuple(key.meta["row"] for key in decoys.draw(MADE, (12,), seed=3)[0])
    uses = torch.tensor([sum(row in rows for rows in drawn.values()) for row in range(1, 31)]).float()
    assert (uses - 20).abs().max() < 4 * (50 * 0.4 * 0.6) ** 0.5  # binomial, 50 draws of 12 in 30
