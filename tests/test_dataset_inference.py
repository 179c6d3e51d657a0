"""dataset_inference: mixtures against a formula, exchangeable halves, members that are found, strangers not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from hallmark.components import identify, instantiate
from hallmark.composition import compose
from hallmark.core import Access, Key, extract_all, generator
from hallmark.data.images import ImageSet
from hallmark.errors import AccessError, ConfigError, DataError, KeyFileError
from hallmark.schemes.dataset_inference import DatasetInference
from hallmark.schemes.dataset_inference.likelihood import log_likelihoods
from hallmark.stages.plan import plan
from hallmark.stats import Ranked, verify
from tiny_encoders import embedded, encoder, judged, owner, same, suspect

INFERENCE = DatasetInference(fit=120, judged=40, components=3)


def halves(seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """The owner's images, and others that no host saw: 400 and 112 of the same draw, at random."""
    mine, unseen = torch.randperm(512, generator=generator(seed, "halves")).split([400, 112])
    return owner().subset(mine), owner().subset(unseen)


def drawn(seed: int = 0) -> Key:
    mine, unseen = halves(seed)
    key = INFERENCE.keygen(encoder(), mine, generator=generator(seed, "key"))
    return INFERENCE.witness(key, unseen, generator=generator(seed, "witness"))


class Remembering(nn.Module):
    """An encoder whose features of the owner's 400 images lie closer together than those of other images."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder()
        self.known = {self.name(image) for image in halves()[0].images}

    @staticmethod
    def name(image: Tensor) -> bytes:
        return image.numpy().tobytes()

    def forward(self, images: Tensor) -> Tensor:
        features = self.encoder(images)
        seen = torch.tensor([self.name((x * 255).round().to(torch.uint8)) in self.known for x in images])
        noise = torch.randn(features.shape, generator=generator(len(images)))
        return features + torch.where(seen, 0.0, 0.5)[:, None] * noise * features.std(0)


# Likelihoods


def test_log_likelihoods_are_those_of_a_diagonal_mixture_on_the_sphere() -> None:
    rng = np.random.default_rng(0)
    fitted, held = rng.normal(3, 1, size=(200, 4)), rng.normal(size=(9, 4))
    found = log_likelihoods(torch.tensor(fitted).float(), torch.tensor(held).float(), 2, seed=7)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (fitted.astype("f4").astype(float), held)]
    mixture = GaussianMixture(2, covariance_type="diag", random_state=7, max_iter=1000).fit(unit[0])
    density = sum(
        weight * scipy_stats.multivariate_normal(mean, np.diag(cov)).pdf(unit[1])
        for weight, mean, cov in zip(mixture.weights_, mixture.means_, mixture.covariances_, strict=True)
    )
    np.testing.assert_allclose(found.numpy(), np.log(density), rtol=1e-3, atol=1e-3)


def test_a_length_does_not_matter_and_infinity_shows_nothing() -> None:
    rng = generator(0)
    fitted, held = torch.randn(50, 4, generator=rng), torch.randn(6, 4, generator=rng)
    found, scaled = (log_likelihoods(k * fitted, k * held, 2, seed=0) for k in (1, 4))
    torch.testing.assert_close(found, scaled)
    assert not log_likelihoods(fitted, held.fill_(torch.nan), 2, seed=0).any()


# Keys


def test_a_key_holds_disjoint_training_images_and_unseen_ones(tmp_path: Path) -> None:
    key, (mine, unseen) = drawn(), halves()
    fit, pool, member = (key.tensors[name] for name in ("fit", "judged", "member"))
    assert (len(fit), len(pool), int(member.sum())) == (120, 80, 40)
    ours, theirs = ({x.numpy().tobytes() for x in part.images} for part in (mine, unseen))
    training = [x.numpy().tobytes() for x in [*fit, *pool[member.bool()]]]
    assert len(set(training)) == 160  # no image twice
    assert set(training) <= ours
    assert {x.numpy().tobytes() for x in pool[~member.bool()]} <= theirs - ours
    assert drawn().commitment() == key.commitment() != drawn(1).commitment()
    key.save(tmp_path / "key")
    again = Key.load(tmp_path / "key", scheme="dataset_inference")
    one, other = (INFERENCE.extract(suspect(encoder()), k).scores for k in (key, again))
    assert torch.equal(one, other)


def test_decoys_are_other_halves_of_the_same_images() -> None:
    key = drawn()
    decoys, again = (INFERENCE.decoys(encoder(), key, owner(), 30, seed=1) for _ in range(2))
    assert [d.commitment() for d in decoys] == [d.commitment() for d in again]
    assert len({d.commitment() for d in [key, *decoys]}) == 31
    for decoy in decoys:
        assert int(decoy.tensors["member"].sum()) == 40
        assert decoy.tensors["judged"] is key.tensors["judged"]
    share = sum(decoy.tensors["member"].float() for decoy in decoys) / 30
    assert float((share - 0.5).abs().max()) < 5 * 0.5 / 30**0.5  # every image in about half of them


def test_the_statistic_is_the_difference_of_means_and_t_is_the_papers() -> None:
    key = drawn()
    likelihoods, member = INFERENCE.likelihoods(suspect(encoder()), key), key.tensors["member"].bool()
    inside, outside = likelihoods[member], likelihoods[~member]
    asked = suspect(encoder())
    evidence = INFERENCE.extract_many(asked, [key, *INFERENCE.decoys(encoder(), key, owner(), 9, seed=0)])
    assert asked.queries == 120 + 80  # once for all keys
    assert evidence[0].statistic() == pytest.approx(float(inside.mean() - outside.mean()))
    pooled = (inside.var() + outside.var()) / 2
    t = float((inside.mean() - outside.mean()) / (2 * pooled / 40).sqrt())
    figures = INFERENCE.figures(suspect(encoder()), key)
    assert figures == {"t_test_p": pytest.approx(float(scipy_stats.t.sf(t, 78)), rel=1e-6)}


# Verdicts


def test_who_remembers_the_images_is_found_and_strangers_are_not() -> None:
    key = drawn()
    assert judged(INFERENCE, key, Remembering()).p_value <= 0.01
    assert INFERENCE.figures(suspect(Remembering()), key)["t_test_p"] <= 0.01
    for stranger in (encoder(), encoder(1), encoder(2)):
        assert judged(INFERENCE, key, stranger).p_value > 0.01


def test_a_key_about_other_images_does_not_fit_who_remembers() -> None:
    _, unseen = halves()
    small = replace(INFERENCE, fit=40, judged=20)
    key = small.keygen(encoder(), unseen.subset(torch.arange(60)), generator=generator(0))
    key = small.witness(key, unseen.subset(torch.arange(60, 112)), generator=generator(1))
    assert judged(small, key, Remembering()).p_value > 0.01


def test_ranks_on_strangers_are_uniform() -> None:
    """Exact whatever the suspect, where which images were trained on was drawn at random: here anew for each trial.

    With one split for all trials the ranks pile up, since it is one draw, however many keys are taken from it.
    """
    ranks = []
    for trial in range(60):
        key = drawn(trial)
        keys = [key, *INFERENCE.decoys(encoder(), key, owner(), 9, seed=trial)]
        true, *decoys = extract_all(INFERENCE, [suspect(encoder())], keys)[0]
        ranks.append(round(10 * verify(true, Ranked(decoys), 0.1).p_value) - 1)
    counts = torch.tensor(ranks).bincount(minlength=10)
    assert scipy_stats.chisquare(counts.numpy()).pvalue > 1e-3  # fixed seeds


class Broken(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: Tensor) -> Tensor:
        return torch.full((len(images), 4), self.value)


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_an_encoder_that_always_answers_the_same_is_not_accused(value: float) -> None:
    assert judged(INFERENCE, drawn(), Broken(value), decoys=19).p_value == 1
    assert INFERENCE.figures(suspect(Broken(value)), drawn())["t_test_p"] > 0.4


def test_nothing_is_changed(tmp_path: Path) -> None:
    model, key = embedded(INFERENCE, tmp_path)
    assert model is not encoder()
    assert same(model, encoder())
    assert "member" not in key.tensors


# In an experiment


def test_the_embed_stage_is_told_of_unseen_images_and_other_schemes_are_not() -> None:
    def embeds(*words: str) -> list[Any]:
        planned = plan(compose(["experiment=wpe/main", "scale=smoke", *words]), lambda name: name)
        return [stage for stage in planned.stages if stage.kind == "embed"]

    for stage in embeds("scheme=dataset_inference"):
        assert stage.config["unseen"]["split"] == "test"
        assert stage.config["data"]["split"] == "train"
    assert all("unseen" not in stage.config for stage in embeds())


# Bad input


def test_training_images_alone_are_no_key() -> None:
    key = INFERENCE.keygen(encoder(), owner(), generator=generator(0))
    with pytest.raises(KeyFileError, match="the key holds no images that the host has not seen"):
        INFERENCE.extract(suspect(encoder()), key)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="need 160 images, but the owner has 159"):
        INFERENCE.check(16, 159)
    INFERENCE.check(16, 160)
    with pytest.raises(ConfigError, match=r"judged=40 exceeds the 39 images that no host saw.*test\.limit"):
        INFERENCE.check_unseen(39)
    key = INFERENCE.keygen(encoder(), owner(), generator=generator(0))
    with pytest.raises(ConfigError, match="exceeds the 10 images"):
        INFERENCE.witness(key, owner().subset(torch.arange(10)), generator=generator(0))


def test_unseen_images_of_another_size_are_refused() -> None:
    key = INFERENCE.keygen(encoder(), owner(), generator=generator(0))
    with pytest.raises(DataError, match="their sizes must be equal"):
        INFERENCE.witness(key, owner(64, 24), generator=generator(0))


@pytest.mark.parametrize("wrong", [{"fit": 5}, {"components": 0}, {"judged": 1}])
def test_impossible_settings_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=rf"scheme\.{next(iter(wrong))}"):
        DatasetInference(**wrong)


def test_labels_are_no_place_to_look() -> None:
    with pytest.raises(AccessError, match="dataset_inference cannot be verified at labels access; allowed: features"):
        INFERENCE.extract(suspect(encoder(), Access.LABELS), drawn())


def test_the_configuration_builds_it() -> None:
    built = instantiate(compose(["experiment=demo", "scheme=dataset_inference"])["scheme"], "scheme", DatasetInference)
    assert built.components == 10
    assert instantiate(identify(built), "scheme") == built
    assert not built.trains
