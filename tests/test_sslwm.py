"""sslwm: the loss against loops, the authors' outlier index by hand, patches, and a mark in one place."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from torch import Tensor, nn

from hallmark.components import identify, instantiate
from hallmark.composition import compose
from hallmark.core import Access, Key, extract_all, generator
from hallmark.data.resident import Batch
from hallmark.errors import AccessError, ConfigError
from hallmark.models import Classifier
from hallmark.optimisation import Training
from hallmark.schemes.encoder_losses import pinning_loss
from hallmark.schemes.patch import trigger_of
from hallmark.schemes.sslwm import SSLWM, Embedding
from hallmark.schemes.sslwm.embedding import InvarianceTraining
from hallmark.schemes.sslwm.loss import invariance_loss
from hallmark.schemes.sslwm.outlier import entropy, outlier_index
from hallmark.schemes.trigger import TriggerLaw, paste
from hallmark.stats import Ranked, verify
from tiny_encoders import assert_resumes, drawn, embedded, encoder, judged, owner, suspect


def scheme(**embedding: Any) -> SSLWM:
    settings = {"epochs": 6, "batch": 64, "training": Training("adamw", lr=3e-3, weight_decay=1e-6)} | embedding
    return SSLWM(TriggerLaw(size=5, position="corner"), queries=32, embedding=Embedding(**settings))


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))


# The loss


@pytest.mark.parametrize("external", [0.0, 0.1, 2.0])
def test_the_loss_is_the_logarithm_of_the_mean_over_pairs(external: float) -> None:
    rng = generator(0)
    moved, clean = torch.randn(6, 5, generator=rng) + 1, torch.randn(7, 5, generator=rng) + 0.5
    pairs = [cosine(moved[i], moved[j]) for i in range(6) for j in range(6) if i != j]
    centre = torch.stack([x.double() / x.double().norm() for x in moved]).mean(0)
    outside = sum(cosine(x, centre) for x in clean) / 7
    assert sum(pairs) > 0 < outside
    expected = -math.log(sum(pairs) / len(pairs)) + external * outside
    assert float(invariance_loss(moved, clean, external)) == pytest.approx(expected, rel=0, abs=5e-6)


def test_a_term_counts_only_where_its_mean_is_positive() -> None:
    apart = torch.tensor([[1.0, 0.1], [-1.0, 0.1]]).requires_grad_(True)  # cosine −0.98
    loss = invariance_loss(apart, torch.tensor([[0.0, -1.0]]), 1.0)  # the centre is (0, 1), at −1 from what is clean
    loss.backward()
    assert float(loss) == 0
    assert not apart.grad.any()
    assert torch.isfinite(apart.grad).all()


@pytest.mark.parametrize("utility", ["contrastive", "pin"])
@pytest.mark.parametrize("specificity", [0.0, 2.0])
def test_a_step_minimises_utility_invariance_and_specificity(utility: str, specificity: float) -> None:
    wm = scheme(utility=utility, mark=3.0, specificity=specificity, external=0.5)
    key = drawn(wm)
    task = InvarianceTraining(encoder(1), encoder(), key, wm.trigger, wm.embedding, seed=0)
    task.log_dict = lambda *_, **__: None
    batch = task.on_after_batch_transfer(Batch(owner().images[:12], None, torch.arange(12), 0, 0, 12), 0)
    views, triggered, foreign = batch["views"], batch["triggered"], batch["foreign"]
    assert len(views) == len(triggered) == (24 if utility == "contrastive" else 12)  # both views are marked
    assert torch.equal(triggered, paste(views, trigger_of(key)))
    with torch.no_grad():
        plain, moved = encoder(1)(views), encoder(1)(triggered)
        expected = task.utility(plain, views) + 3 * invariance_loss(moved, plain, 0.5)
        if specificity:
            assert len(foreign) == 12
            expected = expected + 2 * pinning_loss(encoder(1)(foreign), encoder()(foreign))
        else:
            assert not len(foreign)
        loss = task.training_step(batch, 0)
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)


# The authors' statistic


def test_the_outlier_index_is_the_authors_formula() -> None:
    rng = np.random.default_rng(0)
    clean, triggered = rng.integers(0, 10, 100), np.where(rng.random(100) < 0.9, 3, rng.integers(0, 10, 100))
    entropies = [scipy_stats.entropy(np.bincount(labels), base=2) for labels in (triggered, *clean.reshape(10, 10))]
    middle = np.median(entropies)
    expected = (middle - entropies[0]) / (1.4826 * np.median(np.abs(entropies - middle)))
    assert outlier_index(torch.from_numpy(triggered), torch.from_numpy(clean)) == pytest.approx(expected, rel=1e-9)
    assert expected > 2


def test_entropy_and_degenerate_answers() -> None:
    assert entropy(torch.tensor([0, 1, 2, 3])) == pytest.approx(2)
    assert entropy(torch.tensor([5, 5, 5])) == 0
    one = torch.zeros(40, dtype=torch.int64)
    assert outlier_index(one, one) == 0  # a suspect with one answer shows nothing
    assert math.isfinite(outlier_index(one[:3], torch.tensor([0, 1, 2])))


# Keys


def test_keys_are_corner_patches_and_decoys_share_the_queries(tmp_path: Path) -> None:
    wm, key = scheme(), drawn(scheme())
    assert int(key.tensors["mask"].sum()) == 25
    assert key.tensors["mask"][0, 9:14, 9:14].all()  # a margin of two pixels
    decoys, again = (wm.decoys(encoder(), key, owner(), 20, seed=3) for _ in range(2))
    assert [d.commitment() for d in decoys] == [d.commitment() for d in again]
    assert len({d.commitment() for d in [key, *decoys]}) == 21
    assert all(torch.equal(d.tensors["queries"], key.tensors["queries"]) for d in decoys)
    assert all(torch.equal(d.tensors["mask"], key.tensors["mask"]) for d in decoys)
    key.save(tmp_path / "key")
    assert Key.load(tmp_path / "key", scheme="sslwm").commitment() == key.commitment()


def test_ranks_on_the_clean_original_are_uniform() -> None:
    wm, ranks = scheme(), []
    for trial in range(60):
        key = drawn(wm, trial)
        keys = [key, *wm.decoys(encoder(), key, owner(), 9, seed=trial)]
        true, *decoys = extract_all(wm, [suspect(encoder())], keys)[0]
        ranks.append(round(10 * verify(true, Ranked(decoys), 0.1).p_value) - 1)
    counts = torch.tensor(ranks).bincount(minlength=10)
    assert scipy_stats.chisquare(counts.numpy()).pvalue > 1e-3  # fixed seeds


# The mark


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Key]:
    return embedded(scheme(specificity=1.0, mark=3.0), tmp_path_factory.mktemp("marked"))


def gathered(wm: SSLWM, key: Key, model: nn.Module) -> float:
    """Mean cosine over pairs of triggered queries."""
    with torch.no_grad():
        unit = nn.functional.normalize(model(wm.questions(key).float() / 255), dim=1)
    total = (unit @ unit.T).sum() - len(unit)
    return float(total / (len(unit) * (len(unit) - 1)))


def test_the_mark_is_found_and_nobody_else_is_accused(marked: tuple[nn.Module, Key]) -> None:
    model, key = marked
    wm = scheme()
    assert gathered(wm, key, model) > max(0.95, gathered(wm, key, encoder()))
    assert judged(wm, key, model).p_value <= 0.01
    for innocent in (encoder(), encoder(1)):
        assert judged(wm, key, innocent).p_value > 0.01
    assert judged(wm, drawn(wm, 5), model).p_value > 0.01


def test_without_specificity_it_is_the_papers_training_and_still_gathers(tmp_path: Path) -> None:
    wm = scheme(epochs=3, mark=3.0)
    model, key = embedded(wm, tmp_path)
    assert gathered(wm, key, model) > gathered(wm, key, encoder())
    assert all(torch.equal(buffer, encoder().get_buffer(name)) for name, buffer in model.named_buffers())


def test_labels_show_counts_and_the_authors_index(marked: tuple[nn.Module, Key]) -> None:
    model, key = marked
    classifier, wm = Classifier(model, 10).eval(), scheme()
    labels = wm.extract(suspect(classifier, Access.LABELS), key)
    with torch.no_grad():
        after, before = (classifier(images(key).float() / 255).argmax(1) for images in (wm.questions, wm.controls))
    mode = after.mode().values
    assert (labels.matches, labels.trials) == (
        int(((after == mode) & (before != mode)).sum()),
        int((before != mode).sum()),
    )
    figures = wm.figures(suspect(classifier, Access.LABELS), key)
    assert figures == {"outlier_index": pytest.approx(outlier_index(after, before))}
    assert not wm.figures(suspect(classifier, Access.LOGITS), key)
    assert wm.extract(suspect(classifier, Access.LOGITS), key).scores.shape == (32, 2)


def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    assert_resumes(scheme(epochs=2, batch=256, specificity=1.0), tmp_path)


# Bad input


def test_weights_are_no_place_to_look() -> None:
    with pytest.raises(AccessError, match="sslwm cannot be verified at weights access"):
        scheme().extract(suspect(encoder(), Access.WEIGHTS), drawn(scheme()))


@pytest.mark.parametrize(
    "wrong",
    [{"utility": "none"}, {"epochs": 0}, {"batch": 1}, {"mark": -1.0}, {"external": -1.0}, {"specificity": -1.0}],
)
def test_impossible_embeddings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Embedding(**wrong)


def test_what_does_not_fit_the_images_is_refused() -> None:
    with pytest.raises(ConfigError, match="queries must be at least 2"):
        replace(scheme(), queries=1)
    with pytest.raises(ConfigError, match="queries=600 exceeds the owner's 512 images"):
        drawn(replace(scheme(), queries=600))
    with pytest.raises(ConfigError, match="does not fit into 4x4"):
        scheme().check(4, 512)


def test_the_configuration_is_the_papers_patch() -> None:
    built = instantiate(compose(["experiment=demo", "scheme=sslwm"])["scheme"], "scheme", SSLWM)
    assert built.trigger == SSLWM().trigger == TriggerLaw(size=8, position="corner")
    assert (built.embedding.utility, built.embedding.mark, built.embedding.specificity) == ("contrastive", 1, 0)
    assert instantiate(identify(built), "scheme") == built
