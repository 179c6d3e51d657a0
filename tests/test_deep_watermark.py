"""deep_watermark: marks, losses, correlations against plain formulas, keys by their law, a mark that is trained in."""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.core import Access, Evidence, HostKind, Key, Suspect, extract_all, generator
from hallmark.data.images import ImageSet
from hallmark.data.pairs import PairLaw, degrade
from hallmark.data.procedural import procedural_images
from hallmark.data.resident import Batch
from hallmark.errors import AccessError, BudgetExhausted, ConfigError, KeyFileError
from hallmark.models.image_to_image import (
    Architecture,
    Barrier,
    Barriered,
    Extractor,
    ImageToImage,
    fresh,
)
from hallmark.models.perceptual import Perceptual
from hallmark.restoration_settings import Fit
from hallmark.schemes.deep_watermark import Adversarial, DeepWatermark, Embedding, MarkLaw, Networks
from hallmark.schemes.deep_watermark.losses import PRESETS, Weights, extraction_loss, gan_loss
from hallmark.schemes.deep_watermark.marks import KINDS, draw_marks, read_bits
from hallmark.schemes.deep_watermark.scheme import _majority
from hallmark.schemes.deep_watermark.training import InitialStage
from hallmark.schemes.deep_watermark.verification import PREFIX, SHOWN, nc, nc_centred
from hallmark.stats import Ranked, verify
from hallmark.tasks.restoration import CEILING
from hallmark.training import LightningTrainer
from hallmark.training_settings import Deadline, TrainerSettings

SIDE = 32
GREY = PairLaw(kind="grey", side=SIDE)
SMALL = Architecture("unet", 4, 2)


@cache
def owner(count: int = 24, size: int = SIDE) -> ImageSet:
    images, _ = procedural_images(count, size=size)
    return ImageSet("procedural", images, torch.full((count,), -1), 10)


@cache
def host(seed: int = 0) -> nn.Module:
    return fresh(Architecture("cnet", 4, 1), seed).eval()


def scheme(**options: Any) -> DeepWatermark:
    defaults = {
        "pairs": GREY,
        "mark": MarkLaw("bits", 8),
        "queries": 8,
        "networks": Networks(SMALL, extractor_width=4, extractor_blocks=1, discriminator_width=2),
        "embedding": Embedding(epochs=2, batch=8, lr=2e-3),
        "adversarial": Adversarial(epochs=0),
    }
    return DeepWatermark(**{**defaults, **options})


def trainer(folder: Path, **settings: Any) -> LightningTrainer:
    return LightningTrainer(TrainerSettings(precision="32-true", progress=False), folder, **settings)


def embedded(marking: DeepWatermark, folder: Path, seed: int = 0, **settings: Any) -> tuple[nn.Module, Key]:
    key = marking.keygen(host(), owner(), generator=generator(0, "key"))
    with_trainer = trainer(folder, **settings)
    return marking.embed(host(), key, owner(), trainer=with_trainer, generator=generator(seed, "embed"))


def with_extractor(marking: DeepWatermark, key: Key) -> Key:
    """A key whose extractor has learnt nothing."""
    torch.manual_seed(5)
    extractor = Extractor(4, 1)
    weights = {PREFIX + name: tensor for name, tensor in extractor.state_dict().items()}
    return Key(key.scheme, {**key.tensors, **weights}, {**key.meta, "extractor": {"width": 4, "blocks": 1}})


def behind_the_counter(model: nn.Module) -> Suspect:
    return Suspect(model, HostKind.IMAGE_TO_IMAGE, Access.IMAGES)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


# Marks


@pytest.mark.parametrize("kind", KINDS)
def test_marks_hang_on_their_generator_alone(kind: str) -> None:
    law = MarkLaw(kind, 8)
    first, again, other = (draw_marks(law, 3, 32, generator=generator(seed)) for seed in (0, 0, 1))
    assert first.dtype == torch.uint8
    assert first.shape == (3, 3, 32, 32)
    assert torch.equal(first, again)
    assert not (first == other).flatten(1).all(1).any()


def test_grids_are_fair_coins_that_can_be_read_back() -> None:
    marks = draw_marks(MarkLaw("bits", 8), 400, 32, generator=generator(0))
    assert set(marks.unique().tolist()) == {0, 255}
    bits = read_bits(marks.float() / 255, 8)
    assert torch.equal(bits.view(400, 8, 8).repeat_interleave(4, 1).repeat_interleave(4, 2), marks[:, 0] > 0)
    assert scipy_stats.binomtest(int(bits.sum()), bits.numel()).pvalue > 1e-3
    assert torch.equal(read_bits(marks.float() / 255 * 0.8 + 0.05, 8), bits)  # also through a pale reading


def test_logos_are_bright_and_dark_inked() -> None:
    marks = draw_marks(MarkLaw("logo", 8), 100, 64, generator=generator(0)).float() / 255
    assert 0.8 < float((marks == 1).all(1).float().mean()) < 0.95
    assert float(marks[marks < 1].max()) <= 0.4 + 1 / 255
    assert (marks.flatten(1).amin(1) < 1).all()  # none is empty


@pytest.mark.parametrize(("kind", "cells"), [("bits", 16), ("logo", 8), ("colour", 8)])
def test_foreign_marks_are_far_from_showing(kind: str, cells: int) -> None:
    marks = draw_marks(MarkLaw(kind, cells), 300, 64, generator=generator(0)).float() / 255
    found = nc_centred(marks, marks).fill_diagonal_(0)
    assert float(found.max()) < SHOWN  # 44,850 pairs
    assert abs(float(found.mean())) < 0.01


def test_impossible_marks_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown kind of mark 'text'; allowed: bits, colour, logo"):
        MarkLaw("text")
    with pytest.raises(ConfigError, match="5 cells of at least 1 pixels do not divide a bits mark of side 32"):
        scheme(mark=MarkLaw("bits", 5))
    with pytest.raises(ConfigError, match="a logo mark needs at least 8 cells a side, got 4"):
        MarkLaw("logo", 4)
    with pytest.raises(ConfigError, match="at least 4 pixels"):
        scheme(mark=MarkLaw("logo", 16))


# Correlations


def test_correlations_are_their_formulas() -> None:
    rng = np.random.default_rng(0)
    readings, marks = (rng.random((n, 3, 6, 6)).astype(np.float32) for n in (4, 2))
    plain, centred = (f(torch.from_numpy(readings), torch.from_numpy(marks)) for f in (nc, nc_centred))
    for q in range(4):
        for m in range(2):
            r, w = readings[q].ravel().astype(float), marks[m].ravel().astype(float)
            assert float(plain[q, m]) == pytest.approx(r @ w / np.linalg.norm(r) / np.linalg.norm(w))
            assert float(centred[q, m]) == pytest.approx(np.corrcoef(r, w)[0, 1])


def test_a_white_image_passes_the_papers_test_for_logos_and_fails_the_centred_one() -> None:
    marks = draw_marks(MarkLaw("logo", 8), 50, 64, generator=generator(0)).float() / 255
    white = torch.ones(1, 3, 64, 64)
    assert float((nc(white, marks) > 0.95).float().mean()) > 0.5
    assert not nc_centred(white, marks).any()


def test_a_faint_trace_counts_by_its_contrast() -> None:
    mark = draw_marks(MarkLaw("bits", 8), 1, 32, generator=generator(0)).float() / 255
    for contrast, expected in ((1.0, 1.0), (0.1, 1.0), (0.05, 0.5), (0.001, 0.01)):
        trace = 1 - contrast * (1 - mark)
        assert float(nc_centred(trace, mark)) == pytest.approx(expected, rel=1e-3)
    assert float(nc_centred(1 - mark, mark)) == pytest.approx(-1)


# Losses


def test_presets_are_the_papers_and_the_codes() -> None:
    assert PRESETS["paper"] == Weights(1, 1, 0.01, 1, 1, 1, "cross_entropy")
    assert PRESETS["code"] == Weights(10_000, 0, 0.01, 10_000, 10_000, 10_000, "least_squares")
    assert PRESETS["paper"].without(("clean", "consistency")) == Weights(1, 1, 0.01, 1, 0, 0, "cross_entropy")


def test_losses_by_hand() -> None:
    logits = torch.tensor([0.0, 2.0])
    assert float(gan_loss(logits, real=True, form="least_squares")) == pytest.approx((1 + 1) / 2)
    assert float(gan_loss(logits, real=False, form="least_squares")) == pytest.approx((0 + 4) / 2)
    expected = (np.log(2) + np.log1p(np.exp(-2))) / 2
    assert float(gan_loss(logits, real=True, form="cross_entropy")) == pytest.approx(expected)

    def level(*values: float) -> Tensor:
        return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)

    weights = Weights(0, 0, 0, mark=2, clean=3, consistency=5, gan="least_squares")
    # mark: (0.1² + 0.3²)/2; clean: 0.2² on inputs plus 0.4² on clean outputs; consistency: 0.2²
    found = extraction_loss(level(0.9, 0.7), level(0.8, 0.8, 0.6, 0.6), level(1, 1), 1.0, weights)
    assert float(found) == pytest.approx(2 * 0.05 + 3 * (0.04 + 0.16) + 5 * 0.04)


@pytest.mark.parametrize("variant", ["barrier", "absorbed"])
@pytest.mark.parametrize("losses", ["paper", "code"])
def test_a_step_minimises_embedding_and_extraction(variant: str, losses: str) -> None:
    marking, weights = scheme(variant=variant, losses=losses), PRESETS[losses]
    torch.manual_seed(0)
    marker = Barrier(SMALL) if variant == "barrier" else deepcopy(host(3))
    extractor = Extractor(4, 1)
    family = draw_marks(MarkLaw("bits", 8), 3, SIDE, generator=generator(0)).float() / 255
    task = InitialStage(host(), marker, extractor, family, marking, 0)
    discriminator, perceptual = task.discriminator, Perceptual("random")
    task.log_dict = lambda *_, **__: None
    turns: list[float] = []
    task.turn = lambda player, loss: turns.append(float(loss))
    images = owner().images[:8]
    batch = task.on_after_batch_transfer(Batch(images, None, torch.arange(8), 0, 0, 8), 0)
    inputs, marks = batch["inputs"], batch["marks"]
    assert torch.equal(inputs, degrade(images.float() / 255, GREY, generator=generator(0)))
    assert torch.equal(marks[:4], marks[4:])
    assert len(marks.flatten(1).unique(dim=0)) > 1
    task.eval()
    with torch.no_grad():
        clean = host()(inputs)
        torch.testing.assert_close(batch["clean"], clean)
        marked = marker(clean, marks) if variant == "barrier" else marker.unclamped(inputs)
        shown = marked.clamp(0, 1)
        wanted = clean if variant == "barrier" else images.float() / 255
        embedding = weights.pixel * F.mse_loss(marked, wanted) + weights.perceptual * perceptual(shown, wanted)
        embedding += weights.adversarial * gan_loss(discriminator(shown), real=True, form=weights.gan)
        extraction = weights.mark * F.mse_loss(extractor(shown), marks)
        extraction += weights.clean * (extractor(inputs) - 1).square().mean()
        extraction += weights.clean * (extractor(clean) - 1).square().mean()
        extraction += weights.consistency * F.mse_loss(extractor(shown[:4]), extractor(shown[4:]))
        judged = gan_loss(discriminator(clean), real=True, form=weights.gan)
        judged += gan_loss(discriminator(shown), real=False, form=weights.gan)
    task.training_step(batch, 0)
    assert turns == pytest.approx([float(embedding + extraction), float(judged)], rel=1e-4)


# Keys and decoys


def test_keys_hang_on_their_generator_and_hold_no_extractor_yet() -> None:
    first, again, other = (scheme().keygen(host(), owner(), generator=generator(s)) for s in (0, 0, 1))
    assert first.commitment() == again.commitment() != other.commitment()
    assert not torch.equal(first.tensors["mark"], other.tensors["mark"])
    expected = host()(first.tensors["queries"].float() / 255).detach()
    assert float((first.tensors["clean"].float() / 255 - expected).abs().max()) <= 0.5 / 255 + 1e-5
    with pytest.raises(KeyFileError, match="holds no extractor; use the key that embedding returned"):
        scheme().extract(behind_the_counter(host()), first)


def test_images_that_are_asked_about_are_not_trained_on() -> None:
    """Each image has a level of its own, which a patch gives away."""
    levels = torch.arange(30, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 40, 40).contiguous()
    data = ImageSet("levels", levels, torch.full((30,), -1), 1)
    marking = scheme(queries=12)
    key = marking.keygen(host(), data, generator=generator(0))
    held = set(key.tensors["held_out"].tolist())
    assert len(held) == 3
    assert set(key.tensors["queries"].flatten(1)[:, 0].tolist()) == held
    assert key.tensors["queries"].shape == (12, 3, SIDE, SIDE)

    class Recording:
        seen: Tensor

        def fit(self, module: nn.Module, batches: Any, *, epochs: int) -> None:
            self.seen = batches.images

    recording = Recording()
    marking.embed(host(), key, data, trainer=recording, generator=generator(0))
    assert set(recording.seen[:, 0, 0, 0].tolist()) == set(range(30)) - held


def test_decoys_differ_from_the_key_in_the_mark_alone() -> None:
    key = with_extractor(scheme(), scheme().keygen(host(), owner(), generator=generator(0)))
    decoys = scheme().decoys(host(), key, owner(), 5, seed=1)
    assert len({k.commitment() for k in [key, *decoys]}) == 6
    for decoy in decoys:
        assert decoy.tensors["mark"].shape == key.tensors["mark"].shape
        assert all(decoy.tensors[name] is tensor for name, tensor in key.tensors.items() if name != "mark")
    assert not {d.commitment() for d in decoys} & {
        d.commitment() for d in scheme().decoys(host(), key, owner(), 5, seed=2)
    }
    assert scheme().decoys(host(), key, owner(), 0, seed=1) == []


def test_of_a_family_one_mark_is_borne_one_rehearsed_and_the_others_are_decoys() -> None:
    marking = scheme(family=4)
    chosen = []
    for seed in range(80):
        key = marking.keygen(host(), owner(), generator=generator(seed))
        family, mark = key.tensors["family"], key.tensors["mark"]
        assert len(family) == 5
        chosen.append(next(i for i, member in enumerate(family) if torch.equal(member, mark)))
    counts = torch.tensor(chosen).bincount(minlength=5)
    assert counts[0] == 0  # the owner's surrogate inherits it: extractor and borne mark stay independent
    assert scipy_stats.chisquare(counts[1:].numpy()).pvalue > 1e-3
    decoys = marking.decoys(host(), key, owner(), 99, seed=0)
    borne = [i for i, member in enumerate(family) if any(torch.equal(member, d.tensors["mark"]) for d in decoys)]
    assert borne == sorted({1, 2, 3, 4} - {chosen[-1]})
    assert len(marking.decoys(host(), key, owner(), 2, seed=0)) == 2


def test_an_extractor_that_always_shows_the_mark_proves_nothing() -> None:
    """What R reads from the unmarked host's outputs too is no evidence."""
    key = with_extractor(scheme(), scheme().keygen(host(), owner(), generator=generator(0)))
    tensors = dict(key.tensors)
    reading = scheme().reading(behind_the_counter(host()), key).marked.mean(0)
    tensors["mark"] = (reading * 255).round().to(torch.uint8)  # the mark is whatever this extractor always shows
    shown = Key(key.scheme, tensors, key.meta)
    evidence = scheme().extract(behind_the_counter(host(1)), shown)
    moot = nc_centred(scheme().reading(behind_the_counter(host()), shown).clean, tensors["mark"][None].float() / 255)
    assert evidence.trials == int((moot <= SHOWN).sum())
    assert evidence.trials < 8
    assert scheme().extract(behind_the_counter(host()), shown).matches == 0


def test_matches_count_only_where_most_queries_show_the_mark() -> None:
    """R knows its mark by heart and may paint it for a stray output of an innocent."""
    shown = torch.tensor([True] * 5 + [False] * 3)
    every = torch.ones(8, dtype=torch.bool)
    assert _majority(shown, every) == Evidence(Access.IMAGES, matches=5, trials=8)
    assert _majority(shown & (torch.arange(8) > 0), every) == Evidence(Access.IMAGES, matches=0, trials=8)
    assert _majority(shown, torch.arange(8) > 5) == Evidence(Access.IMAGES, matches=0, trials=2)
    assert _majority(shown, ~every) == Evidence(Access.IMAGES, matches=0, trials=0)


def test_only_keys_that_share_all_but_the_mark_are_extracted_together() -> None:
    key = with_extractor(scheme(), scheme().keygen(host(), owner(), generator=generator(0)))
    other = Key(key.scheme, {**key.tensors, "queries": key.tensors["queries"].clone()}, key.meta)
    with pytest.raises(ValueError, match="must share all but the mark"):
        scheme().extract_many(behind_the_counter(host()), [key, other])


def test_weights_are_no_place_to_look() -> None:
    key = with_extractor(scheme(), scheme().keygen(host(), owner(), generator=generator(0)))
    with pytest.raises(AccessError, match="deep_watermark cannot be verified at weights access"):
        scheme().extract(Suspect(host(), HostKind.IMAGE_TO_IMAGE, Access.WEIGHTS), key)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"variant": "glued"}, "unknown scheme.variant 'glued'; allowed: absorbed, barrier"),
        ({"losses": "mine"}, "unknown scheme.losses 'mine'; allowed: code, paper"),
        ({"without": ("pixels",)}, "unknown scheme.without entry 'pixels'"),
        ({"queries": 1}, "queries ≥ 2"),
        ({"family": 0}, "family ≥ 1"),
        ({"variant": "absorbed", "family": 2}, "bears one mark, got family=2"),
    ],
)
def test_impossible_schemes_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scheme(**wrong)


def test_what_does_not_fit_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme().check(SIDE, 24)
    deep = Networks(Architecture("unet", 4, 6), 4, 1, 2)
    for wrong, size, message in (
        (scheme(), 16, "pairs.side=32 does not fit into 16x16 images"),
        (scheme(networks=deep), SIDE, "multiple of 64"),
        (scheme(adversarial=Adversarial(1, network=Architecture("res9", 4, 7))), SIDE, "multiple of 128"),
        (scheme(pairs=PairLaw(side=16)), SIDE, "even pairs.side above 16"),
        (scheme(losses="paper", perceptual="vgg16"), SIDE, "perceptual=vgg16 needs"),
    ):
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        with pytest.raises(ConfigError, match=message):
            wrong.check(size, 24)
    scheme(losses="code", perceptual="vgg16").check(SIDE, 24)  # the code's weights leave the term out
    with pytest.raises(ConfigError, match="must be even"):
        Embedding(batch=5)


# Embedding


@pytest.fixture(scope="module", params=["barrier", "absorbed"])
def marked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DeepWatermark, nn.Module, Key]:
    networks = Networks(SMALL, extractor_width=8, extractor_blocks=1, discriminator_width=2)
    schedule = Embedding(epochs=60, batch=8, lr=1e-2)
    marking = scheme(variant=request.param, mark=MarkLaw("bits", 4), networks=networks, embedding=schedule)
    before = deepcopy(host())
    model, key = embedded(marking, tmp_path_factory.mktemp(request.param))
    assert same(host(), before)
    return marking, model, key


def test_the_mark_ranks_first_on_the_marked_and_shows_nowhere_else(
    marked: tuple[DeepWatermark, nn.Module, Key],
) -> None:
    marking, model, key = marked
    keys = [key, *marking.decoys(host(), key, owner(), 99, seed=1)]
    suspects = [behind_the_counter(m) for m in (model, host(), host(1))]
    found, original, innocent = extract_all(marking, suspects, keys)
    # sixteen random bits correlate above 0.5 with 1 in 35 others, and ties count against the owner
    assert verify(found[0], Ranked(found[1:]), 0.1).detected
    assert found[0].matches >= 7  # of 8 held-out queries
    for evidence in (original, innocent):
        assert evidence[0].matches == 0
        assert verify(evidence[0], Ranked(evidence[1:]), 0.01).p_value == 1


def test_bulk_and_single_extraction_agree(marked: tuple[DeepWatermark, nn.Module, Key]) -> None:
    marking, model, key = marked
    keys = [key, *marking.decoys(host(), key, owner(), 70, seed=1)]  # more than one block
    suspect = behind_the_counter(model)
    bulk = extract_all(marking, [suspect], keys)[0]
    assert suspect.queries == 8
    assert bulk[:3] == [marking.extract(suspect, k) for k in keys[:3]]


def test_figures_are_the_papers_with_their_companions(marked: tuple[DeepWatermark, nn.Module, Key]) -> None:
    marking, model, key = marked
    rows = marking.figures(behind_the_counter(model), key)
    reading = marking.reading(behind_the_counter(model), key)
    mark = key.tensors["mark"].float() / 255
    pearson = [np.corrcoef(r.numpy().ravel(), mark.numpy().ravel())[0, 1] for r in reading.marked]
    assert rows["nc_centred"] == pytest.approx(np.mean(pearson), abs=1e-5)
    assert rows["success_rate_centred"] == sum(p > 0.95 for p in pearson) / 8
    blank = float(mark.mean() / mark.square().mean().sqrt())  # ⟨1, m⟩ / (‖1‖ ‖m‖)
    assert rows["nc_blank"] == pytest.approx(blank, rel=1e-5)
    assert rows["bit_accuracy"] > 0.8
    assert rows["nc_centred"] > 0.7
    assert abs(rows["nc_centred_input"]) < 0.3
    assert abs(rows["nc_centred_clean"]) < 0.3
    unmarked = marking.figures(behind_the_counter(host()), key)
    assert unmarked["psnr"] == pytest.approx(CEILING)
    assert unmarked["ssim"] == pytest.approx(1)
    assert unmarked["nc_centred"] == pytest.approx(rows["nc_centred_clean"], abs=1e-4)


def test_a_barrier_is_stored_with_the_model_and_leaves_the_image_recognisable(
    marked: tuple[DeepWatermark, nn.Module, Key],
) -> None:
    marking, model, key = marked
    if marking.variant == "absorbed":
        assert isinstance(model, ImageToImage)
        return
    assert isinstance(model, Barriered)
    assert same(model.host, host())
    assert torch.equal(model.mark, key.tensors["mark"].float() / 255)
    assert marking.figures(behind_the_counter(model), key)["psnr"] > 15


def test_the_key_survives_its_file(marked: tuple[DeepWatermark, nn.Module, Key], tmp_path: Path) -> None:
    marking, model, key = marked
    key.save(tmp_path / "key")
    again = Key.load(tmp_path / "key", scheme="deep_watermark")
    assert marking.extract(behind_the_counter(model), again) == marking.extract(behind_the_counter(model), key)


def full() -> DeepWatermark:
    """Every phase: two optimisers, the owner's surrogate, the adversarial stage, and several marks."""
    fit = Fit(epochs=2, batch=8, lr=1e-3)
    adversarial = Adversarial(epochs=2, network=SMALL, fit=fit)
    return scheme(losses="paper", family=3, embedding=Embedding(epochs=3, batch=8), adversarial=adversarial)


def test_equal_seeds_give_equal_tensors_and_interruptions_change_nothing(tmp_path: Path) -> None:
    calm = embedded(full(), tmp_path / "calm")
    other = embedded(full(), tmp_path / "other", seed=1)
    assert not same(calm[0], other[0])
    torch.rand(5)  # nothing hangs on the global generator
    settings = TrainerSettings(precision="32-true", progress=False, checkpoint_every_s=0)
    interruptions = 0
    while True:
        restarted = LightningTrainer(settings, tmp_path / "killed", deadline=Deadline(0.0))  # stops after each epoch
        key = full().keygen(host(), owner(), generator=generator(0, "key"))
        try:
            model, key = full().embed(host(), key, owner(), trainer=restarted, generator=generator(0, "embed"))
            break
        except BudgetExhausted:
            interruptions += 1
    assert interruptions == 3 + 2 + 2
    assert same(model, calm[0])
    assert key.commitment() == calm[1].commitment()


def test_the_adversarial_stage_moves_the_extractor_alone(tmp_path: Path) -> None:
    before, early = embedded(scheme(), tmp_path / "a")
    stage = Adversarial(epochs=1, network=SMALL, fit=Fit(epochs=1, batch=8))
    after, late = embedded(scheme(adversarial=stage), tmp_path / "b")
    assert same(before, after)
    moved = [name for name in late.tensors if not torch.equal(late.tensors[name], early.tensors[name])]
    assert moved
    assert all(name.startswith(PREFIX) for name in moved)
    assert all(p.requires_grad for p in after.parameters())
