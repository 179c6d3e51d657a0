"""sslguard: losses against loops, the three turns, keys and orders, a mark that is found and a copy that bears it."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats as scipy_stats
from torch import Tensor, nn

from hallmark.alternating import frozen
from hallmark.components import identify, instantiate
from hallmark.composition import compose
from hallmark.core import Access, HostKind, Key, extract_all, generator
from hallmark.data.resident import Batch
from hallmark.errors import AccessError, ConfigError, KeyFileError
from hallmark.models import Encoder
from hallmark.optimisation import Training
from hallmark.schemes.sslguard import Embedding, SSLGuard
from hallmark.schemes.sslguard.embedding import GuardTraining
from hallmark.schemes.sslguard.loss import secret_loss
from hallmark.stages.judge import judge
from hallmark.stats import Ranked, verify
from tiny_encoders import assert_resumes, drawn, embedded, encoder, judged, owner, same, suspect


def scheme(**embedding: Any) -> SSLGuard:
    fast = {"training": Training("adamw", lr=2e-3, weight_decay=1e-4), "networks": Training("adamw", lr=5e-3)}
    return SSLGuard(32, hidden=64, secret=32, embedding=Embedding(**{"epochs": 5, "batch": 64, **fast} | embedding))


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))


def mean_cosine(rows: Tensor, secret: Tensor) -> float:
    return sum(cosine(row, secret) for row in rows) / len(rows)


# Losses


def test_the_secret_loss_is_the_papers_sum() -> None:
    rng = generator(0)
    told, kept = ([torch.randn(5, 7, generator=rng) for _ in range(n)] for n in (2, 4))
    secret = torch.randn(7, generator=rng)
    # −Σ c(told) + Σ c(kept)², each c the mean cosine of a batch; float32 leaves about 1e-6
    expected = sum(mean_cosine(x, secret) ** 2 for x in kept) - sum(mean_cosine(x, secret) for x in told)
    assert float(secret_loss(told, kept, secret)) == pytest.approx(expected, rel=0, abs=2e-6)
    assert float(secret_loss([3 * secret[None]], [torch.zeros(1, 7)], secret)) == pytest.approx(-1, abs=1e-6)


def training(guard: SSLGuard, key: Key) -> tuple[GuardTraining, Tensor]:
    task = GuardTraining(encoder(1).requires_grad_(True), encoder(), key, guard.embedding, seed=0)
    views = task.on_after_batch_transfer(Batch(owner().images[:12], None, torch.arange(12), 0, 0, 12), 0)
    return task, views


def test_each_turn_minimises_its_own_terms() -> None:
    guard = scheme()
    key = drawn(guard)
    task, clean = training(guard, key)
    task.shadow.eval()
    marked, original, shadow = (net.eval() for net in (task.marked, encoder(), task.shadow))
    pattern, mask, order = key.tensors["trigger"].float() / 255, key.tensors["mask"].bool(), key.tensors["order"]
    shown = torch.where(mask, pattern, clean)
    secret = key.tensors["secret"]

    def c(network: nn.Module, images: Tensor) -> float:
        with torch.no_grad():
            decoded = task.decoder(network(images)[:, order])
        return mean_cosine(decoded, secret)

    expected = -c(marked, shown) - c(shadow, shown) + c(original, shown) ** 2
    expected += sum(c(network, clean) ** 2 for network in (original, marked, shadow))
    assert float(task.decoder_loss(clean)) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    utility, mark = task.encoder_losses(clean)
    assert float(mark) == pytest.approx(c(marked, clean) ** 2 - c(marked, shown), rel=1e-4, abs=1e-5)
    with torch.no_grad():
        now, then = marked(clean), original(clean)
        angle = 1 - sum(cosine(a, b) for a, b in zip(now, then, strict=True)) / len(now)
        length = float(((now - then) ** 2).sum() / (then**2).sum())
        imitated = 1 - sum(cosine(a, b) for a, b in zip(shadow.train()(clean), now, strict=True)) / len(now)
    assert float(utility) == pytest.approx(angle + length, rel=1e-4)
    assert float(task.shadow_loss(clean)) == pytest.approx(imitated, rel=1e-4)


def test_the_decoders_turn_reaches_trigger_and_decoder_alone() -> None:
    guard = scheme()
    task, clean = training(guard, drawn(guard))
    with frozen(task.marked), frozen(task.shadow.eval()):
        task.decoder_loss(clean).backward()
    assert task.levels.grad is not None
    assert not task.levels.grad[~task.mask].any()  # what the mask leaves out shows nowhere
    assert task.levels.grad[task.mask].any()
    assert all(p.grad is not None for p in task.decoder.parameters())
    assert all(p.grad is None for network in (task.marked, task.shadow) for p in network.parameters())


@pytest.mark.parametrize("start", ["fresh", "host"])
def test_the_shadow_starts_where_it_is_told(start: str) -> None:
    guard = scheme(shadow=start)
    task, _ = training(guard, drawn(guard))
    assert same(task.shadow, encoder()) == (start == "host")
    again, _ = training(guard, drawn(guard))
    assert same(task.shadow, again.shadow)


# Keys and decoys


def test_a_key_follows_the_papers_law(tmp_path: Path) -> None:
    key = drawn(scheme())
    trigger, mask, secret, order = (key.tensors[name] for name in ("trigger", "mask", "secret", "order"))
    assert (trigger.dtype, trigger.shape) == (torch.uint8, (3, 16, 16))
    assert (int(trigger.min()), int(trigger.max())) == (0, 255)  # stretched to the whole range
    share = float(mask.float().mean())
    assert abs(share - 0.35) < 5 * (0.35 * 0.65 / mask.numel()) ** 0.5  # five standard errors
    assert secret.shape == (32,)
    assert sorted(order.tolist()) == list(range(encoder().num_features))
    shapes = [tuple(key.tensors[f"reader.{i}.weight"].shape) for i in (0, 2, 4)]
    assert shapes == [(64, 32), (32, 64), (32, 32)]
    assert drawn(scheme()).commitment() == key.commitment() != drawn(scheme(), 1).commitment()
    key.save(tmp_path / "key")
    again = Key.load(tmp_path / "key", scheme="sslguard")
    assert again.commitment() == key.commitment()
    one, other = (scheme().extract(suspect(encoder()), k) for k in (key, again))
    assert torch.equal(one.scores, other.scores)


def test_decoys_differ_in_the_order_alone() -> None:
    key = drawn(scheme())
    decoys, again = (scheme().decoys(encoder(), key, owner(), 20, seed=3) for _ in range(2))
    assert [d.commitment() for d in decoys] == [d.commitment() for d in again]
    assert len({d.commitment() for d in [key, *decoys]}) == 21
    for decoy in decoys:
        assert {name for name in key.tensors if not torch.equal(key.tensors[name], decoy.tensors[name])} == {"order"}


def test_evidence_is_the_cosine_of_decoded_triggered_queries() -> None:
    guard, key = scheme(), drawn(scheme())
    t, mask = key.tensors, key.tensors["mask"].bool()
    with torch.no_grad():
        x = encoder()(torch.where(mask, t["trigger"], t["queries"]).float() / 255)[:, t["order"]]
        for layer in (0, 2, 4):
            x = x @ t[f"reader.{layer}.weight"].T + t[f"reader.{layer}.bias"]
            x = x if layer == 4 else x.clamp_min(0)
    expected = torch.tensor([cosine(row, t["secret"]) for row in x])
    scores = guard.extract(suspect(encoder()), key).scores
    torch.testing.assert_close(scores[:, 0], expected, rtol=1e-4, atol=1e-4)
    assert not scores[:, 1].any()
    figures = guard.figures(suspect(encoder()), key)
    assert figures == {
        "wsr": pytest.approx(float((expected > 0.5).float().mean())),
        "response": pytest.approx(float(expected.mean()), abs=1e-4),
    }


def test_many_keys_are_read_as_one_by_one_and_asked_once() -> None:
    guard, key = scheme(), drawn(scheme())
    keys = [key, *guard.decoys(encoder(), key, owner(), 5, seed=0), drawn(guard, 1)]
    asked = suspect(encoder())
    together = extract_all(guard, [asked], keys)[0]
    assert asked.queries == 2 * 32  # those of the key and its decoys, and those of the other key
    for evidence, other in zip(together, keys, strict=True):
        torch.testing.assert_close(evidence.scores, guard.extract(suspect(encoder()), other).scores)


def test_ranks_on_independent_encoders_are_uniform() -> None:
    """Exact on encoders from random weights of their own, whatever decoder, trigger and secret are."""
    guard, key = scheme(), drawn(scheme())
    ranks = []
    for trial in range(60):
        with torch.random.fork_rng():
            torch.manual_seed(trial)
            stranger = Encoder("resnet_small", width=4).eval()
        keys = [key, *guard.decoys(encoder(), key, owner(), 9, seed=trial)]
        true, *decoys = extract_all(guard, [suspect(stranger)], keys)[0]
        ranks.append(round(10 * verify(true, Ranked(decoys), 0.1).p_value) - 1)
    counts = torch.tensor(ranks).bincount(minlength=10)
    assert scipy_stats.chisquare(counts.numpy()).pvalue > 1e-3  # fixed seeds


# The mark


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Key]:
    return embedded(scheme(), tmp_path_factory.mktemp("marked"))


def test_the_mark_is_found_and_nobody_else_is_accused(marked: tuple[nn.Module, Key]) -> None:
    model, key = marked
    guard = scheme()
    assert judged(guard, key, model).p_value <= 0.01
    assert guard.figures(suspect(model), key)["wsr"] > 0.9
    untrained = {name: key.tensors[name] for name in ("secret", "mask", "order", "queries")}
    assert all(torch.equal(untrained[name], drawn(guard).tensors[name]) for name in untrained)
    for name in ("trigger", "reader.0.weight"):
        assert not torch.equal(key.tensors[name], drawn(guard).tensors[name])
    for innocent in (encoder(), encoder(1), encoder(2)):
        assert judged(guard, key, innocent).p_value > 0.01
        assert guard.figures(suspect(innocent), key)["wsr"] < 0.1
    assert judged(guard, drawn(guard, 5), model).p_value > 0.01


def test_batch_norm_keeps_its_statistics(marked: tuple[nn.Module, Key]) -> None:
    model, _ = marked
    assert all(torch.equal(buffer, encoder().get_buffer(name)) for name, buffer in model.named_buffers())
    assert all(not torch.equal(p, encoder().get_parameter(name)) for name, p in model.named_parameters())


def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    assert_resumes(scheme(epochs=2, batch=256), tmp_path)


# Bad input


def test_a_decoder_for_another_feature_width_is_refused_in_a_line(tmp_path: Path) -> None:
    guard = scheme()
    wide = drawn(guard, host=encoder(width=8))
    line = re.escape("the sslguard key reads 64 features, but this encoder gives 32; use the key of this architecture")
    for refused in (
        lambda: guard.extract(suspect(encoder()), wide),
        lambda: guard.figures(suspect(encoder()), wide),
        lambda: embedded(guard, tmp_path, key=wide),
    ):
        with pytest.raises(KeyFileError, match=f"^{line}$"):
            refused()


def test_a_copy_of_another_width_is_not_accused() -> None:
    guard = scheme()
    config = {"decoys": 19, "trials": 2, "alpha": 0.05, "seed": 0}
    found = judge(guard, drawn(guard), encoder(), encoder(width=8), {}, owner(), config, purpose="narrow")
    assert [(j["access"], j["p_value"], j["detected"]) for j in found] == [("features", 1.0, False)]


def test_weights_and_labels_are_no_place_to_look() -> None:
    for access in (Access.WEIGHTS, Access.LABELS):
        with pytest.raises(AccessError, match=f"sslguard cannot be verified at {access} access; allowed: features"):
            scheme().extract(suspect(encoder(), access), drawn(scheme()))


@pytest.mark.parametrize("wrong", [{"queries": 1}, {"hidden": 0}, {"secret": 1}, {"density": 0.0}, {"density": 1.5}])
def test_impossible_schemes_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SSLGuard(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"shadow": "moon"}, {"epochs": 0}, {"batch": 1}, {"mark": -1.0}, {"trigger_lr": -0.1}]
)
def test_impossible_embeddings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Embedding(**wrong)


def test_more_queries_than_images_are_refused() -> None:
    guard = replace(scheme(), queries=600)
    with pytest.raises(ConfigError, match="queries=600 exceeds the owner's 512 images"):
        drawn(guard)
    with pytest.raises(ConfigError, match="queries=600"):
        guard.check(16, 512)


def test_the_configuration_is_the_papers_decoder_and_mask() -> None:
    built = instantiate(compose(["experiment=demo", "scheme=sslguard"])["scheme"], "scheme", SSLGuard)
    assert (built.hidden, built.secret, built.density) == (512, 256, 0.35)
    assert instantiate(identify(built), "scheme") == built
    assert built.hosts == {HostKind.ENCODER}
