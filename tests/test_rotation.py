"""rotation: turning against exact quarters, the loss and the count by hand, and a head that reads what it learnt."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import ndimage
from scipy import stats as scipy_stats
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.components import identify, instantiate
from hallmark.composition import compose
from hallmark.core import Access, Key, extract_all
from hallmark.data.resident import Batch
from hallmark.errors import AccessError, ConfigError, KeyFileError
from hallmark.models import Encoder
from hallmark.optimisation import Training
from hallmark.schemes.rotation import Embedding, Rotation
from hallmark.schemes.rotation.embedding import RotationTraining
from hallmark.schemes.rotation.turning import rotated, side
from hallmark.stats import Ranked, verify
from tiny_encoders import assert_resumes, drawn, embedded, encoder, judged, owner, suspect


def scheme(**embedding: Any) -> Rotation:
    settings = {"epochs": 8, "batch": 64, "training": Training("adamw", lr=5e-3), "mark": 5.0} | embedding
    return Rotation(200, hidden=64, embedding=Embedding(**settings))


def images(count: int = 6) -> Tensor:
    return owner().images[:count].float() / 255


def lit() -> Tensor:
    """The owner's images, lit from above: gratings look the same upside down."""
    light = torch.linspace(1.0, 0.2, 16)[:, None]
    return (owner().images * light).round().to(torch.uint8)


# Turning


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_quarters_are_exact(quarters: int) -> None:
    turned = rotated(images(), torch.full((6,), 90.0 * quarters))
    torch.testing.assert_close(turned, images().rot90(quarters, (2, 3)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(16, 16), (12, 20)])
def test_any_angle_is_bilinear_about_the_centre(shape: tuple[int, int]) -> None:
    picture = torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(0))
    turned = rotated(picture, torch.tensor([33.0]))[0]
    for channel, found in zip(picture[0], turned, strict=True):
        expected = ndimage.rotate(channel.double().numpy(), 33.0, reshape=False, order=1, mode="grid-constant")
        torch.testing.assert_close(found, torch.from_numpy(expected).float(), rtol=0, atol=1e-4)


def test_every_image_has_its_own_angle_and_sides_are_halves() -> None:
    angles = torch.tensor([0.0, 179.9, 180.0, 359.9, 90.0, 270.0])
    assert side(angles).tolist() == [0, 0, 1, 1, 0, 1]
    together = rotated(images(), angles)
    alone = torch.cat([rotated(image[None], angle[None]) for image, angle in zip(images(), angles, strict=True)])
    torch.testing.assert_close(together, alone)


# Keys and evidence


def test_a_key_holds_head_order_queries_and_angles(tmp_path: Path) -> None:
    key = drawn(scheme())
    angles = key.tensors["angles"]
    assert scipy_stats.kstest(angles.numpy() / 360, "uniform").pvalue > 1e-3  # fixed seed
    assert [tuple(key.tensors[f"reader.{i}.weight"].shape) for i in (0, 2)] == [(64, 32), (2, 64)]
    assert drawn(scheme()).commitment() == key.commitment() != drawn(scheme(), 1).commitment()
    key.save(tmp_path / "key")
    again = Key.load(tmp_path / "key", scheme="rotation")
    assert scheme().extract(suspect(encoder()), again) == scheme().extract(suspect(encoder()), key)


def test_evidence_counts_the_sides_that_the_head_tells() -> None:
    rotation, key = scheme(), drawn(scheme())
    t = key.tensors
    shown = rotated(t["queries"].float() / 255, t["angles"])
    with torch.no_grad():
        features = encoder()((shown * 255).round() / 255)[:, t["order"]]
        hidden = (features @ t["reader.0.weight"].T + t["reader.0.bias"]).clamp_min(0)
        logits = hidden @ t["reader.2.weight"].T + t["reader.2.bias"]
    told = [b > a for a, b in logits.tolist()]
    right = sum(said == (angle >= 180) for said, angle in zip(told, t["angles"].tolist(), strict=True))
    evidence = rotation.extract(suspect(encoder()), key)
    assert (evidence.matches, evidence.trials) == (right, 200)


def test_decoys_differ_in_the_order_alone() -> None:
    key = drawn(scheme())
    for decoy in scheme().decoys(encoder(), key, owner(), 10, seed=0):
        assert {name for name in key.tensors if not torch.equal(key.tensors[name], decoy.tensors[name])} == {"order"}


@pytest.mark.parametrize("utility", ["contrastive", "pin"])
def test_a_step_minimises_utility_and_cross_entropy(utility: str) -> None:
    rotation = scheme(utility=utility)
    key = drawn(rotation)
    task = RotationTraining(encoder(1), encoder(), key, rotation.embedding, seed=0)
    task.log_dict = lambda *_, **__: None
    batch = task.on_after_batch_transfer(Batch(owner().images[:12], None, torch.arange(12), 0, 0, 12), 0)
    assert 0 < int(batch["side"].sum()) < 12
    with torch.no_grad():
        plain = encoder(1)(batch["views"])
        told = task.reader(encoder(1)(batch["turned"])[:, key.tensors["order"]])
        chosen = F.log_softmax(told, dim=1)[torch.arange(12), batch["side"]]
        expected = task.utility(plain, batch["views"]) - 5 * chosen.mean()
        loss = task.training_step(batch, 0)
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)


# Verdicts


def test_ranks_on_independent_encoders_are_uniform(marked: tuple[nn.Module, Key]) -> None:
    rotation, (_, key) = scheme(), marked
    ranks = []
    for trial in range(60):
        with torch.random.fork_rng():
            torch.manual_seed(trial)
            stranger = Encoder("resnet_small", width=4).eval()
        keys = [key, *rotation.decoys(encoder(), key, owner(), 9, seed=trial)]
        true, *decoys = extract_all(rotation, [suspect(stranger)], keys)[0]
        # ties, which count against the owner, are broken at random here: the law of ranks is about their order
        noise = torch.rand(10, generator=torch.Generator().manual_seed(trial)).tolist()
        mine = true.matches + noise[0]
        ranks.append(sum(d.matches + n > mine for d, n in zip(decoys, noise[1:], strict=True)))
        assert verify(true, Ranked(decoys), 0.1).p_value >= (1 + ranks[-1]) / 10
    found = torch.tensor(ranks).bincount(minlength=10)
    assert scipy_stats.chisquare(found.numpy()).pvalue > 1e-3  # fixed seeds


def test_a_binomial_over_queries_would_accuse_innocents(marked: tuple[nn.Module, Key]) -> None:
    """Where features show the turn, whether a foreign head agrees is one coin in all, not one a query."""
    model, key = marked
    decoys = scheme().decoys(encoder(), key, owner(), 200, seed=2)
    counts = torch.tensor([e.matches for e in scheme().extract_many(suspect(model), decoys)]).double()
    assert float(counts.std()) > 3 * (200 / 4) ** 0.5  # three times what 200 fair coins would have


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Key]:
    return embedded(scheme(), tmp_path_factory.mktemp("marked"), images=lit())


def test_the_mark_is_found_and_strangers_are_not_accused(marked: tuple[nn.Module, Key]) -> None:
    model, key = marked
    rotation = scheme()
    evidence = rotation.extract(suspect(model), key)
    assert evidence.matches > 135  # of 200: five standard errors of fair coins above their mean
    # where features show the turn so plainly, about one foreign order in a hundred reads it as well by chance
    assert judged(rotation, key, model).p_value <= 0.05
    assert judged(rotation, key, encoder(1)).p_value > 0.01
    assert judged(rotation, drawn(rotation, 5, images=lit()), model).p_value > 0.01
    assert not torch.equal(key.tensors["reader.0.weight"], drawn(rotation).tensors["reader.0.weight"])
    assert all(torch.equal(buffer, encoder().get_buffer(name)) for name, buffer in model.named_buffers())


def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    assert_resumes(scheme(epochs=2, batch=256), tmp_path)


# Bad input


def test_a_head_for_another_feature_width_is_refused_in_a_line(tmp_path: Path) -> None:
    wide = drawn(scheme(), host=encoder(width=8))
    line = re.escape("the rotation key reads 64 features, but this encoder gives 32; use the key of this architecture")
    for refused in (lambda: scheme().extract(suspect(encoder()), wide), lambda: embedded(scheme(), tmp_path, key=wide)):
        with pytest.raises(KeyFileError, match=f"^{line}$"):
            refused()


def test_labels_are_no_place_to_look() -> None:
    with pytest.raises(AccessError, match="rotation cannot be verified at labels access; allowed: features"):
        scheme().extract(suspect(encoder(), Access.LABELS), drawn(scheme()))


@pytest.mark.parametrize("wrong", [{"utility": "none"}, {"epochs": 0}, {"batch": 1}, {"mark": -1.0}])
def test_impossible_embeddings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Embedding(**wrong)


def test_more_queries_than_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="queries=600 exceeds the owner's 512 images"):
        drawn(replace(scheme(), queries=600))


def test_the_configuration_builds_it() -> None:
    built = instantiate(compose(["experiment=demo", "scheme=rotation"])["scheme"], "scheme", Rotation)
    assert (built.hidden, built.embedding.utility) == (512, "contrastive")
    assert instantiate(identify(built), "scheme") == built
