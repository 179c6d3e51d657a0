"""Batches of data on the device: every row once an epoch, stateless randomness, equal shares."""

import pytest
import torch
from torch import Tensor

from hallmark.data.augment import ViewRecipe
from hallmark.data.resident import Batch, ResidentBatches, TwoViews
from hallmark.errors import ConfigError, DataError


def rows(count: int = 50) -> tuple[Tensor, Tensor]:
    """Images whose first pixel is their row, and labels likewise."""
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count)
    return images, torch.arange(count) * 10


def epoch(batches: ResidentBatches, number: int) -> list[Batch]:
    batches.set_epoch(number)
    return list(batches)


def test_an_epoch_holds_every_row_once() -> None:
    images, labels = rows()
    batches = ResidentBatches(images, labels=labels, batch=16, seed=1, drop_last=False)
    got = epoch(batches, 0)
    assert [len(batch.images) for batch in got] == [16, 16, 16, 2]
    assert len(batches) == 4
    indices = torch.cat([batch.indices for batch in got])
    assert indices.sort().values.tolist() == list(range(50))
    assert torch.equal(torch.cat([batch.images for batch in got]), images[indices])
    assert torch.equal(torch.cat([batch.labels for batch in got]), labels[indices])
    assert got[0].images.dtype == torch.uint8


def test_drop_last_keeps_whole_batches_of_distinct_rows() -> None:
    batches = ResidentBatches(rows()[0], batch=16, seed=1)
    got = epoch(batches, 0)
    assert len(batches) == len(got) == 3
    assert len(set(torch.cat([batch.indices for batch in got]).tolist())) == 48
    assert got[0].labels is None


def test_orders_differ_between_epochs_and_seeds_and_mix() -> None:
    images = rows()[0]
    orders = [epoch(ResidentBatches(images, batch=50, seed=s), e)[0].indices.tolist() for s in (1, 2) for e in range(3)]
    assert len({tuple(order) for order in orders}) == 6
    assert list(range(50)) not in orders


def test_steps_count_on_over_epochs() -> None:
    batches = ResidentBatches(rows()[0], batch=16, seed=1)
    assert [batch.step for number in range(3) for batch in epoch(batches, number)] == list(range(9))


def test_resumed_run_goes_on_as_if_never_stopped() -> None:
    images, labels = rows()
    views = TwoViews((ViewRecipe(), ViewRecipe(blur=0.5)), seed=1)
    whole = ResidentBatches(images, labels=labels, batch=16, seed=1)
    uninterrupted = [batch for number in range(4) for batch in epoch(whole, number)][6:]
    torch.rand(7)  # another process has another global state
    fresh = ResidentBatches(images, labels=labels, batch=16, seed=1)
    resumed = [batch for number in (2, 3) for batch in epoch(fresh, number)]
    for one, other in zip(uninterrupted, resumed, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.images, other.images)
        assert one.step == other.step
        assert torch.equal(views(one), views(other))


def test_iterating_again_gives_the_same_epoch() -> None:
    batches = ResidentBatches(rows()[0], batch=16, seed=1)
    batches.set_epoch(2)
    first, second = ([batch.indices.tolist() for batch in batches] for _ in range(2))
    assert first == second


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_hold_one_ranks_batches_and_views(world: int) -> None:
    images, labels = rows()
    views = TwoViews((ViewRecipe(), ViewRecipe(blur=0.5, solarise=0.5)), seed=3, size=10)
    alone = epoch(ResidentBatches(images, labels=labels, batch=16, seed=1), 1)
    ranks = [
        epoch(ResidentBatches(images, labels=labels, batch=16, seed=1, rank=rank, world=world), 1)
        for rank in range(world)
    ]
    for whole, *shares in zip(alone, *ranks, strict=True):
        assert [len(share.images) for share in shares] == [16 // world] * world
        assert {share.step for share in shares} == {whole.step}
        assert torch.equal(torch.cat([share.indices for share in shares]), whole.indices)
        assert torch.equal(torch.cat([share.labels for share in shares]), whole.labels)
        pairs = [views(share).chunk(2) for share in shares]
        union = torch.cat([pair[view] for view in (0, 1) for pair in pairs])
        torch.testing.assert_close(union, views(whole), rtol=0, atol=1e-6)


def test_views_differ_between_steps_and_seeds() -> None:
    batch = epoch(ResidentBatches(rows()[0], batch=16, seed=1), 0)[0]
    recipes = (ViewRecipe(), ViewRecipe())
    first = TwoViews(recipes, seed=1)(batch)
    assert first.shape == (32, 3, 8, 8)
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(TwoViews(recipes, seed=1)(batch._replace(step=1)), first)
    assert not torch.equal(TwoViews(recipes, seed=2)(batch), first)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(DataError, match=r"64.*50"):
        ResidentBatches(rows()[0], batch=64, seed=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch": 16, "world": 3}, "16.*3"),
        ({"batch": 0}, "batch of 0"),
        ({"batch": 16, "rank": 2, "world": 2}, "rank 2"),
        ({"batch": 16, "rank": 0, "world": 0}, "world of 0"),
        ({"batch": 16, "world": 2, "drop_last": False}, "drop_last"),
    ],
)
def test_unequal_shares_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ResidentBatches(rows()[0], seed=1, **wrong)


def test_wrong_images_and_labels_are_refused() -> None:
    images, labels = rows()
    with pytest.raises(DataError, match="float32"):
        ResidentBatches(images.float(), batch=16, seed=1)
    with pytest.raises(DataError, match=r"\(50, 1, 8, 8\)"):
        ResidentBatches(images[:, :1], batch=16, seed=1)
    with pytest.raises(DataError, match="49 labels"):
        ResidentBatches(images, labels=labels[:49], batch=16, seed=1)
