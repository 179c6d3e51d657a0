"""uchida: carriers, loss and reading against numpy, the mark in every situation, its null, its limits."""

from collections import Counter
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize
from scipy import stats as scipy_stats
from torch import Tensor, nn

from blind import Blind
from hallmark.components import identify, instantiate
from hallmark.composition import compose
from hallmark.core import Access, Evidence, HostKind, Key, Suspect, extract_all, generator
from hallmark.data.augment import ViewRecipe
from hallmark.data.images import ImageSet
from hallmark.data.procedural import procedural_images
from hallmark.data.resident import Batch
from hallmark.errors import AccessError, ConfigError, DataError, KeyFileError
from hallmark.models import Classifier, Encoder
from hallmark.models.layers import find_layer
from hallmark.optimisation import Training
from hallmark.schemes.uchida import Embedding, Uchida
from hallmark.schemes.uchida.carriers import CARRIERS, draw_carrier, project
from hallmark.schemes.uchida.embedding import MarkTraining
from hallmark.schemes.uchida.filters import filter_mean, filter_shape, shift_filters
from hallmark.schemes.uchida.posthoc import nearest
from hallmark.schemes.uchida.regulariser import mark_loss, read, right_bits
from hallmark.stats import Binomial, Ranked, verify
from hallmark.training import LightningTrainer
from hallmark.training_settings import TrainerSettings

CLASSES, SIZE = 4, 8
HOST = "group2.conv2"
BITS = 48
"""M of the tiny host's layer is 144, so that diff carriers have room."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@cache
def owner(count: int = 256) -> ImageSet:
    images, labels = procedural_images(count, classes=CLASSES, size=SIZE)
    return ImageSet("procedural", images, labels, CLASSES)


@cache
def host(kind: type[nn.Module] = Classifier, seed: int = 0, width: int = 1) -> nn.Module:
    """An untrained network whose BatchNorm statistics are those of the images; never changed by any test."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        net: nn.Module = Encoder("wrn10", width=width)
        net = net if kind is Encoder else Classifier(net, CLASSES)
        for _ in range(30):
            net.train()(owner().images[:64].float() / 255)
    return net.eval()


def scheme(carrier: str = "random", situation: str = "finetune", bits: int = BITS, **options: Any) -> Uchida:
    """The paper's scheme with a heavy hand, so that a few dozen steps suffice."""
    fields = {f: options.pop(f) for f in ("layer", "message") if f in options}
    # λ by the number of weights that a bit can lean on: a row of direct X has one, of random X all 144
    mark = {"random": 0.3, "diff": 6.0, "direct": 6.0}[carrier]
    embedding = {"mark": mark, "epochs": 5, "training": Training("sgd", 0.1, 5e-4, "steps")} | options
    return Uchida(bits, carrier=carrier, embedding=Embedding(situation=situation, **embedding), **fields)


def suspect(model: nn.Module) -> Suspect:
    kind = HostKind.ENCODER if isinstance(model, Encoder) else HostKind.CLASSIFIER
    return Suspect(model, kind, Access.WEIGHTS)


def errors(model: nn.Module, key: Key) -> int:
    """Wrong bits."""
    evidence = Uchida().extract(suspect(model), key)
    return evidence.trials - evidence.matches


def loss_of(model: nn.Module, key: Key) -> float:
    return Uchida().figures(suspect(model), key)["embed_loss"]


def weight_of(model: nn.Module) -> Tensor:
    return find_layer(model, HOST).weight.detach()


# Carriers


def dense(kind: str, carrier: Tensor, size: int) -> np.ndarray:
    """X written out, by the paper's words: one 1 in a row; one +1 and one −1; or Gaussian."""
    if kind == "random":
        return carrier.double().numpy()
    matrix = np.zeros((len(carrier), size))
    for row, places in zip(matrix, carrier.tolist(), strict=True):
        for sign, place in zip((1, -1), places, strict=kind == "diff"):
            row[place] = sign
    return matrix


@pytest.mark.parametrize("kind", CARRIERS)
def test_a_projection_is_the_matrix_product(kind: str) -> None:
    carrier, weights = draw_carrier(kind, 20, 60, generator=generator(0)), normal(60).double()
    expected = dense(kind, carrier, 60) @ weights.numpy()
    np.testing.assert_allclose(project(carrier, weights).numpy(), expected, rtol=0, atol=1e-12)
    assert project(carrier, weights.float()).dtype == torch.float32


@pytest.mark.parametrize(("kind", "row"), [("direct", {1.0: 1}), ("diff", {1.0: 1, -1.0: 1})])
def test_places_are_drawn_without_replacement(kind: str, row: dict[float, int]) -> None:
    matrix = dense(kind, draw_carrier(kind, 30, 60, generator=generator(1)), 60)
    assert all(Counter(r[r != 0].tolist()) == row for r in matrix)
    assert np.abs(matrix).sum(0).max() == 1  # no weight serves two bits


@pytest.mark.parametrize("kind", ["direct", "diff"])
def test_places_are_uniform(kind: str) -> None:
    places = torch.cat([draw_carrier(kind, 4, 12, generator=generator(i)).flatten() for i in range(500)])
    # 4 or 8 of 12 without replacement: every place is taken in 4/12 or 8/12 of 500 draws
    share = len(places) / 12 / 500
    spread = (500 * share * (1 - share)) ** 0.5
    assert (places.bincount(minlength=12) - 500 * share).abs().max() < 4.5 * spread


def test_random_carriers_are_gaussian_and_have_no_limit() -> None:
    carrier = draw_carrier("random", 200, 50, generator=generator(2))
    assert (carrier.shape, carrier.dtype) == ((200, 50), torch.float32)
    assert scipy_stats.kstest(carrier.flatten().numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize(("kind", "most"), [("direct", 61), ("diff", 30)])
def test_places_must_suffice(kind: str, most: int) -> None:
    draw_carrier(kind, most, 61, generator=generator(0))
    with pytest.raises(ConfigError, match=f"bits={most + 1} is too many for a {kind} carrier.*room for {most} bits"):
        draw_carrier(kind, most + 1, 61, generator=generator(0))


# The host layer


def test_the_filter_mean_of_each_layer_type() -> None:
    layers = {
        nn.Conv2d(3, 5, (2, 4)): lambda w: w.mean(0),
        nn.Conv2d(4, 6, 3, groups=2): lambda w: w.mean(0),
        nn.ConvTranspose2d(3, 5, 2): lambda w: w.mean(1),  # the weight is (inputs, outputs, S, S)
        nn.Linear(7, 3): lambda w: w.mean(0),
    }
    for layer, mean in layers.items():
        expected = mean(layer.weight.detach().double().numpy())
        np.testing.assert_allclose(filter_mean(layer).detach().numpy(), expected.reshape(-1), rtol=0, atol=1e-7)
        assert filter_shape(layer) == expected.shape


def test_memory_format_does_not_change_the_order() -> None:
    layer = nn.Conv2d(3, 5, 2)
    before = filter_mean(layer).detach().clone()
    after = filter_mean(layer.to(memory_format=torch.channels_last)).detach()
    torch.testing.assert_close(after, before, rtol=0, atol=1e-7)  # float32 sums of five in another order


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 5, 2), nn.ConvTranspose2d(3, 5, 2), nn.Linear(12, 5)])
def test_every_filter_is_shifted_alike(layer: nn.Module) -> None:
    weight, mean, change = layer.weight.detach().clone(), filter_mean(layer).detach(), normal(12)
    shift_filters(layer, change)
    torch.testing.assert_close(filter_mean(layer).detach(), mean + change, rtol=0, atol=1e-6)
    moved = layer.weight.detach() - weight
    # with the same mean, equal shifts are the least: ‖Δ‖² = L ‖d‖²
    assert float(moved.square().sum()) == pytest.approx(5 * float(change.square().sum()), rel=1e-5)


def test_a_layer_is_found_by_the_end_of_its_name() -> None:
    classifier, encoder = host(), host(Encoder)
    assert find_layer(classifier, HOST) is classifier.encoder.backbone.group2.conv2
    assert find_layer(classifier, f"encoder.backbone.{HOST}") is classifier.encoder.backbone.group2.conv2
    assert find_layer(encoder, HOST) is encoder.backbone.group2.conv2
    assert find_layer(encoder, "backbone.conv1") is encoder.backbone.conv1
    assert find_layer(classifier, "head.0") is classifier.head[0]


def test_an_unknown_layer_is_answered_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"unknown layer 'conv9'; allowed: encoder.backbone.conv1, .*group4.shortcut"):
        find_layer(host(), "conv9")
    with pytest.raises(ConfigError, match=r"unknown layer 'roup2\.conv2'"):  # parts of a name are whole words
        find_layer(host(), "roup2.conv2")
    with pytest.raises(ConfigError, match=r"'conv2' is ambiguous, .*group2.conv2, .*group4.conv2 end in it"):
        find_layer(host(), "conv2")
    with pytest.raises(ConfigError, match=r"unknown layer 'group2\.bn1'"):
        find_layer(host(), "group2.bn1")


# Loss and reading


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("kind", CARRIERS)
def test_loss_and_errors_by_the_papers_formulas(kind: str) -> None:
    uchida = scheme(kind)
    key = uchida.keygen(host(), owner(), generator=generator(3))
    w = weight_of(host()).double().numpy().mean(0).reshape(-1)
    responses = dense(kind, key.tensors["carrier"], 144) @ w
    b, y = key.tensors["message"].numpy(), sigmoid(responses)
    summed = -(b * np.log(y) + (1 - b) * np.log(1 - y)).sum()
    np.testing.assert_allclose(read(host(), key).numpy(), responses, rtol=0, atol=1e-7)
    assert float(mark_loss(read(host(), key), key.tensors["message"])) == pytest.approx(summed, rel=1e-6)
    wrong = int(((responses >= 0) != b).sum())
    assert uchida.extract(suspect(host()), key) == Evidence(Access.WEIGHTS, matches=BITS - wrong, trials=BITS)
    assert uchida.figures(suspect(host()), key) == {"embed_loss": pytest.approx(summed / BITS, rel=1e-6)}


def test_a_response_of_zero_reads_as_one() -> None:
    assert right_bits(torch.tensor([0.0, -0.0, -1e-9, 1e-9]), torch.tensor([1, 1, 1, 1], dtype=torch.uint8)) == 3


def test_a_silent_layer_gives_away_no_loss() -> None:
    emptied = deepcopy(host())
    find_layer(emptied, HOST).weight.data.zero_()
    key = scheme().keygen(host(), owner(), generator=generator(0))
    assert loss_of(emptied, key) == pytest.approx(np.log(2))  # ln 2 a bit, whatever T: a mean, not a sum


# Keys


@pytest.mark.parametrize("kind", CARRIERS)
def test_a_key_repeats_with_its_generator(kind: str) -> None:
    one, same, other = (scheme(kind).keygen(host(), None, generator=generator(s)) for s in (5, 5, 6))
    assert one.commitment() == same.commitment() != other.commitment()
    assert one.meta == {"carrier": kind, "layer": HOST, "shape": [16, 3, 3]}
    assert one.tensors["message"].dtype == torch.uint8


def test_messages_are_random_or_all_ones() -> None:
    drawn = [scheme().keygen(host(), None, generator=generator(i)).tensors["message"] for i in range(100)]
    # 4800 fair coins: five standard errors
    assert abs(float(torch.stack(drawn).float().mean()) - 0.5) < 5 * 0.5 / 4800**0.5
    assert scheme(message="ones").keygen(host(), None, generator=generator(0)).tensors["message"].all()


@pytest.mark.parametrize("kind", CARRIERS)
def test_decoys_are_real_keys_of_the_same_law(kind: str, tmp_path: Path) -> None:
    uchida = scheme(kind)
    key = uchida.keygen(host(), None, generator=generator(0))
    decoys = uchida.decoys(host(), key, None, 30, seed=1)
    assert len({k.commitment() for k in (key, *decoys)}) == 31
    assert all(k.meta == key.meta for k in decoys)
    for name in ("carrier", "message"):
        assert all(k.tensors[name].shape == key.tensors[name].shape for k in decoys)
        assert all(not torch.equal(k.tensors[name], key.tensors[name]) for k in decoys)
    decoys[0].save(tmp_path / "key")
    assert Key.load(tmp_path / "key", scheme="uchida").commitment() == decoys[0].commitment()


def test_capacity_is_the_carriers_limit() -> None:
    for kind, bits in (("direct", 145), ("diff", 73)):
        with pytest.raises(ConfigError, match="this layer has 144 weights a filter"):
            scheme(kind, bits=bits).keygen(host(), None, generator=generator(0))
    assert len(scheme(bits=500).keygen(host(), None, generator=generator(0)).tensors["message"]) == 500


# The null


def test_thresholds_are_those_of_fair_coins() -> None:
    """Fewest right bits of 256 at p ≤ 1e-3, 1e-6, 1e-9 and 1e-12."""
    evidence = Evidence(Access.WEIGHTS, matches=256, trials=256)
    found = [verify(evidence, Binomial(0.5), alpha).threshold for alpha in (1e-3, 1e-6, 1e-9, 1e-12)]
    assert found == [154, 167, 176, 184]


@pytest.mark.parametrize("message", ["random", "ones"])
@pytest.mark.parametrize("kind", CARRIERS)
def test_only_gaussian_carriers_of_random_bits_are_coins(kind: str, message: str) -> None:
    expected = 0.5 if (kind, message) == ("random", "random") else None
    assert scheme(kind, message=message).chance == expected


def test_innocent_weights_make_exact_coins() -> None:
    """2000 fresh keys on one unmarked network: the counts follow Binomial(48, ½)."""
    uchida = scheme()
    keys = uchida.decoys(host(), uchida.keygen(host(), None, generator=generator(0)), None, 2000, seed=7)
    counts = np.array([e.matches for e in uchida.extract_many(suspect(host()), keys)])
    edges = [-1, 18, 20, 21, 22, 23, 24, 25, 26, 27, 29, 48]
    observed, _ = np.histogram(counts, bins=np.array(edges) + 0.5)
    expected = 2000 * np.diff(scipy_stats.binom(BITS, 0.5).cdf(edges))
    assert scipy_stats.chisquare(observed, expected).pvalue > 1e-3  # fixed seed; coins fail one in a thousand
    accused = sum(
        verify(Evidence(Access.WEIGHTS, matches=int(c), trials=BITS), Binomial(0.5), 0.01).detected for c in counts
    )
    attained = scipy_stats.binom.sf(scipy_stats.binom.isf(0.01, BITS, 0.5), BITS, 0.5)  # at most 0.01, by discreteness
    assert scipy_stats.binomtest(accused, 2000, attained).pvalue > 1e-3


def test_without_gaussian_carriers_ones_are_no_coins() -> None:
    """A layer whose mean weights are positive says "ones" to any direct key: the rank does not accuse, a coin would."""
    uchida = scheme("direct", message="ones")
    leaning = deepcopy(host())
    find_layer(leaning, HOST).weight.data.abs_()
    key = uchida.keygen(leaning, None, generator=generator(0))
    decoys = uchida.decoys(leaning, key, None, 99, seed=1)
    true, *others = extract_all(uchida, [suspect(leaning)], [key, *decoys])[0]
    assert true.matches == BITS
    assert verify(true, Ranked(others), 0.01).p_value == 1
    assert verify(true, Binomial(0.5), 0.01).p_value < 1e-12


def test_extraction_in_bulk_agrees() -> None:
    uchida = scheme()
    keys = [uchida.keygen(host(), None, generator=generator(i)) for i in range(5)]
    suspects = [suspect(host()), suspect(host(seed=1))]
    single = [[uchida.extract(s, k) for k in keys] for s in suspects]
    assert extract_all(uchida, suspects, keys) == single == [uchida.extract_many(s, keys) for s in suspects]


def test_only_weights_show_the_mark() -> None:
    key = scheme().keygen(host(), None, generator=generator(0))
    for access in (Access.FEATURES, Access.LOGITS, Access.LABELS):
        with pytest.raises(AccessError, match=f"uchida cannot be verified at {access} access; allowed: weights"):
            scheme().extract(Suspect(host(), HostKind.CLASSIFIER, access), key)


def test_a_key_of_another_shape_is_refused() -> None:
    key = scheme().keygen(host(), None, generator=generator(0))
    wide = host(width=2)
    line = r"made for filters of shape \(16, 3, 3\), but those of layer 'group2.conv2' have \(32, 3, 3\)"
    with pytest.raises(KeyFileError, match=line):
        scheme().extract(suspect(wide), key)
    for situation in ("posthoc", "distill"):
        with pytest.raises(KeyFileError, match=line):
            scheme(situation=situation).embed(wide, key, owner(), trainer=Unused(), generator=generator(0))
    with pytest.raises(ConfigError, match=r"unknown layer 'group2.conv2'; allowed: backbone.layer1.conv1, "):
        scheme().extract(suspect(Encoder("resnet_small", width=4)), key)


# Post hoc


class Unused:
    """A trainer, or data, for those who promise to leave it alone."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")


@pytest.mark.parametrize("kind", CARRIERS)
@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_the_nearest_mark_is_the_minimum(kind: str, strength: float) -> None:
    carrier, start = draw_carrier(kind, 20, 60, generator=generator(0)), normal(60).double()
    message = torch.randint(0, 2, (20,), generator=generator(1), dtype=torch.uint8)
    matrix, b = dense(kind, carrier, 60), message.numpy()

    def cost(d: np.ndarray) -> tuple[float, np.ndarray]:
        y = sigmoid(matrix @ (start.numpy() + d))
        value = d @ d / 2 - strength * (b * np.log(y) + (1 - b) * np.log(1 - y)).sum()
        return value, d + strength * matrix.T @ (y - b)

    found = nearest(start, carrier, message, strength).numpy()
    best = optimize.minimize(cost, np.zeros(60), jac=True, method="BFGS", options={"gtol": 1e-9})
    assert cost(found)[0] <= best.fun + 1e-9
    np.testing.assert_allclose(found, best.x, rtol=0, atol=1e-6)
    assert np.abs(cost(found)[1]).max() < 1e-5  # the gradient vanishes


@pytest.mark.parametrize(
    ("weight", "distance", "loss", "error"), [(0, 0.0, 1.066, 0.531), (1, 0.184, 0.609, 0.324), (10, 1.652, 0.171, 0)]
)
def test_table_4_weighs_the_mean_over_bits(weight: float, distance: float, loss: float, error: float) -> None:
    """Its λ = 1 writes a third of the bits, which a loss summed over 256 of them would all write: see the method card.

    Weights of length 2 have E_R = 1.066; which 576 weights these are is drawn here, so figures agree within a quarter.
    """
    start = 2 * torch.nn.functional.normalize(normal(576).double(), dim=0)
    carrier, message = normal(256, 576, seed=1), torch.ones(256)
    change = nearest(start, carrier, message, weight / 256)
    responses = project(carrier, start + change)
    assert float(change.square().sum()) / 2 == pytest.approx(distance, rel=0.25)
    assert float(mark_loss(responses, message)) / 256 == pytest.approx(loss, rel=0.25)
    # 256 bits: three standard errors
    assert 1 - right_bits(responses, message) / 256 == pytest.approx(error, abs=3 * (error * (1 - error) / 256) ** 0.5)
    summed = nearest(start, carrier, message, 1.0)
    assert right_bits(project(carrier, start + summed), message) == 256


@pytest.mark.parametrize("kind", CARRIERS)
@pytest.mark.parametrize("model", [Classifier, Encoder])
def test_post_hoc_moves_one_layer_and_asks_for_nothing(kind: str, model: type[nn.Module]) -> None:
    uchida = scheme(kind, "posthoc", mark=10.0)
    before = {name: tensor.clone() for name, tensor in host(model).state_dict().items()}
    key = uchida.keygen(host(model), Unused(), generator=generator(0))
    marked, returned = uchida.embed(host(model), key, Unused(), trainer=Unused(), generator=generator(0))
    assert returned is key
    assert errors(marked, key) == 0
    assert not marked.training
    after, now = marked.state_dict(), host(model).state_dict()
    assert all(torch.equal(now[name], before[name]) for name in before)
    assert {name.split("backbone.")[1] for name in before if not torch.equal(after[name], before[name])} == {
        "group2.conv2.weight"
    }


# What a mark in the weights survives


@cache
def wide_mark(kind: str = "random") -> tuple[nn.Module, Key]:
    """256 bits in the paper's layer of 64 filters, post hoc."""
    uchida = scheme(kind, "posthoc", bits=256, mark=10.0)
    key = uchida.keygen(host(width=4), None, generator=generator(0))
    marked, _ = uchida.embed(host(width=4), key, None, trainer=Unused(), generator=generator(0))
    return marked, key


def edited(change: Any) -> tuple[int, int]:
    """Wrong bits before and after an edit of the host layer's weight."""
    marked, key = wide_mark()
    other = deepcopy(marked)
    with torch.no_grad():
        weight = find_layer(other, HOST).weight
        weight.copy_(change(weight.clone()))
    return errors(marked, key), errors(other, key)


def test_the_order_of_output_filters_is_free() -> None:
    order = torch.randperm(64, generator=generator(1))
    assert edited(lambda w: w[order]) == (0, 0)


def test_the_order_of_input_channels_is_not() -> None:
    order = torch.randperm(64, generator=generator(1))
    before, after = edited(lambda w: w[:, order])
    assert before == 0
    assert abs(after - 128) < 4 * 8  # four standard deviations of 256 coins


def test_positive_rescaling_of_input_channels_costs_few_bits() -> None:
    scale = torch.exp2(4 * torch.rand(64, generator=generator(1)) - 2)[None, :, None, None]  # log-uniform, ¼ … 4
    before, after = edited(lambda w: w * scale)
    assert before == 0
    assert 0 < after < 0.15 * 256  # the fact sheet measured 0.060 on synthetic weights


# Training


def train(
    uchida: Uchida, folder: Path, *, kind: type[nn.Module] = Classifier, data: Any = None, seed: int = 0
) -> tuple[nn.Module, Key]:
    data = owner() if data is None else data
    key = uchida.keygen(host(kind), data, generator=generator(0, "key"))
    trainer = LightningTrainer(TrainerSettings(precision="32-true", progress=False), folder)
    return uchida.embed(host(kind), key, data, trainer=trainer, generator=generator(seed, "embed"))


def labels_for(situation: str, kind: type[nn.Module]) -> Any:
    """Data with labels only where they may be read."""
    return owner() if kind is Classifier and situation in ("train", "finetune") else Blind(owner().images)


SITUATIONS = [("train", Classifier), ("finetune", Classifier), ("distill", Classifier)]
SITUATIONS += [("finetune", Encoder), ("distill", Encoder)]


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(("situation", "kind"), SITUATIONS)
def test_every_bit_is_written_in_every_situation(
    carrier: str, situation: str, kind: type[nn.Module], tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in host(kind).state_dict().items()}
    uchida = scheme(carrier, situation)
    model, key = train(uchida, tmp_path, kind=kind, data=labels_for(situation, kind))
    assert errors(model, key) == 0
    assert isinstance(model, kind)
    assert not model.training
    unmarked, marked = (loss_of(m, key) for m in (host(kind), model))
    assert marked < 0.8 * unmarked
    assert all(torch.equal(tensor, before[name]) for name, tensor in host(kind).state_dict().items())
    foreign = uchida.decoys(host(kind), key, None, 200, seed=1)
    found = [e.matches for e in uchida.extract_many(suspect(model), foreign)]
    assert max(found) < BITS  # a key that nobody wrote is not there
    # 200 · 48 coins; bits of one direct or diff key are drawn without replacement and lean on each other a little
    assert abs(np.mean(found) - BITS / 2) < 5 * (BITS / 4 / 200) ** 0.5


def test_training_starts_afresh_and_fine_tuning_does_not(tmp_path: Path) -> None:
    def likeness(situation: str) -> float:
        model, _ = train(scheme(situation=situation, epochs=1, mark=0.0), tmp_path / situation)
        layer = "encoder.backbone.group4.conv2.weight"
        a, b = (m.get_parameter(layer).detach().flatten().double() for m in (model, host()))
        return float(torch.corrcoef(torch.stack([a, b]))[0, 1])

    assert abs(likeness("train")) < 5 / 36_864**0.5  # unrelated weights
    assert likeness("finetune") > 0.5


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Key]:
    """A classifier marked while it learnt its task."""
    return train(scheme(situation="train", mark=0.02, epochs=16), tmp_path_factory.mktemp("taught"))


def answers(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(owner().images.float() / 255)


def test_the_task_is_learnt_beside_the_mark(taught: tuple[nn.Module, Key]) -> None:
    model, key = taught
    assert errors(model, key) == 0
    right = (answers(model).argmax(1) == owner().labels).float().mean()
    assert right > 0.6  # four classes; measured 0.82


def test_distilling_keeps_answers_and_features(taught: tuple[nn.Module, Key], tmp_path: Path) -> None:
    teacher, _ = taught
    uchida = scheme(situation="distill", training=Training("sgd", 0.01, 5e-4, "steps"), mark=2.0, epochs=8)
    for original in (teacher, teacher.encoder):
        key = uchida.keygen(original, None, generator=generator(1))
        trainer = LightningTrainer(
            TrainerSettings(precision="32-true", progress=False), tmp_path / original._get_name()
        )
        model, _ = uchida.embed(original, key, Blind(owner().images), trainer=trainer, generator=generator(0))
        assert errors(model, key) == 0
        now, then = answers(model), answers(original)
        assert torch.cosine_similarity(now, then).mean() > 0.95  # measured 0.98 of logits and of features


def test_frozen_batch_norm_keeps_its_statistics(tmp_path: Path) -> None:
    training = Training("adamw", lr=1e-3)
    for mode in ("frozen", "train"):
        uchida = scheme(situation="distill", batch_norm=mode, training=training, epochs=1)
        model, _ = train(uchida, tmp_path / mode, kind=Encoder, data=Blind(owner().images))
        name = "backbone.group2.bn1.running_mean"
        assert torch.equal(model.get_buffer(name), host(Encoder).get_buffer(name)) == (mode == "frozen")


def test_equal_seeds_give_equal_tensors(tmp_path: Path) -> None:
    uchida = scheme(situation="train", epochs=1)
    first, _ = train(uchida, tmp_path / "a")
    torch.rand(5)  # nothing hangs on the global generator
    second, _ = train(uchida, tmp_path / "b")
    third, _ = train(uchida, tmp_path / "c", seed=1)
    one, same, other = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (first, second, third))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(("situation", "kind"), SITUATIONS)
def test_a_step_minimises_task_and_mark(carrier: str, situation: str, kind: type[nn.Module]) -> None:
    """The loss and its gradient at the host layer, against numpy: the sum over bits, times λ, reaches every filter."""
    uchida = scheme(carrier, situation, mark=3.0)
    key = uchida.keygen(host(kind), None, generator=generator(0))
    net, original = deepcopy(host(kind, seed=1)), host(kind)
    labelled = kind is Classifier and situation in ("train", "finetune")
    task = MarkTraining(net, None if labelled else original, key, uchida.embedding, seed=0)
    task.log = task.log_dict = lambda *_, **__: None
    labels = owner().labels[:16] if labelled else None
    batch = task.on_after_batch_transfer(Batch(owner().images[:16], labels, torch.arange(16), 0, 0, 16), 0)
    views = batch[0]
    assert views.shape == (16, 3, SIZE, SIZE)
    with torch.no_grad():
        now, then = (m(views).double().numpy() for m in (net, original))
    if labelled:
        utility = -np.log(softmax(now)[np.arange(16), labels.numpy()]).mean()
    elif kind is Classifier:
        utility = -(softmax(then) * np.log(softmax(now))).sum(1).mean()
    else:
        cosine = (now * then).sum(1) / np.linalg.norm(now, axis=1) / np.linalg.norm(then, axis=1)
        utility = 1 - cosine.mean() + ((now - then) ** 2).sum() / (then**2).sum()
    matrix, b = dense(carrier, key.tensors["carrier"], 144), key.tensors["message"].numpy()
    y = sigmoid(matrix @ weight_of(net).double().numpy().mean(0).reshape(-1))
    mark = -(b * np.log(y) + (1 - b) * np.log(1 - y)).sum()
    assert float(task.training_step(batch, 0)) == pytest.approx(utility + 3 * mark, rel=1e-5)
    free = MarkTraining(net, None if labelled else original, key, replace(uchida.embedding, mark=0.0), seed=0)
    free.log = free.log_dict = lambda *_, **__: None
    gradients = []
    for module in (task, free):
        net.zero_grad()
        module.training_step(batch, 0).backward()
        gradients.append(find_layer(net, HOST).weight.grad.clone().double().numpy())
    each = (3 * matrix.T @ (y - b)).reshape(16, 3, 3) / 16  # a sixteenth for each of 16 filters
    np.testing.assert_allclose(gradients[0] - gradients[1], np.broadcast_to(each, (16, 16, 3, 3)), rtol=0, atol=1e-4)


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def test_an_encoder_cannot_be_trained_on_labels() -> None:
    uchida = scheme(situation="train")
    key = uchida.keygen(host(Encoder), None, generator=generator(0))
    with pytest.raises(ConfigError, match=r"situation=train trains a classifier .* use distill, finetune or posthoc"):
        uchida.embed(host(Encoder), key, owner(), trainer=Unused(), generator=generator(0))


@pytest.mark.parametrize("situation", ["train", "finetune"])
def test_labels_must_be_there(situation: str) -> None:
    uchida = scheme(situation=situation)
    key = uchida.keygen(host(), None, generator=generator(0))
    with pytest.raises(DataError, match="needs labels, and 256 of 256 images have none; use distill or posthoc"):
        uchida.embed(host(), key, owner().unlabelled(), trainer=Unused(), generator=generator(0))


# Configuration


def test_the_configuration_builds_the_papers_scheme() -> None:
    built = instantiate(compose(["experiment=demo", "scale=paper", "scheme=uchida"])["scheme"], "scheme", Uchida)
    assert built == Uchida(embedding=Embedding(epochs=built.embedding.epochs))  # the scale sets the epochs
    assert built.embedding.training == Training("sgd", 0.1, 5e-4, "steps")
    assert (built.embedding.mark, built.embedding.batch) == (0.01, 64)
    assert isinstance(built.embedding.view, ViewRecipe)
    assert identify(built)["embedding"]["training"]["lr"] == 0.1
    assert instantiate(identify(built), "scheme") == built


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"carrier": "pigeon"}, "unknown scheme.carrier 'pigeon'; allowed: diff, direct, random"),
        ({"message": "zeros"}, "unknown scheme.message 'zeros'; allowed: ones, random"),
        ({"bits": 0}, "scheme.bits must be at least 1, got 0"),
    ],
)
def test_impossible_schemes_are_refused(wrong: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        Uchida(**wrong)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (
            {"situation": "pray"},
            "unknown scheme.embedding.situation 'pray'; allowed: distill, finetune, posthoc, train",
        ),
        ({"mark": -1.0}, "mark must be a finite number of at least 0, got -1.0"),
        ({"mark": float("nan")}, "got nan"),
        ({"epochs": 0}, "epochs ≥ 1 and batch ≥ 2, got 0 and 64"),
        ({"batch": 1}, "got 200 and 1"),
        ({"batch_norm": "off"}, "unknown scheme.embedding.batch_norm 'off'"),
        ({"batch_norm": "frozen"}, "fresh weights have no statistics"),
    ],
)
def test_impossible_embeddings_are_refused(wrong: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        Embedding(**wrong)


@pytest.mark.parametrize("situation", ["train", "finetune"])
def test_other_classes_get_a_new_head(situation: str, tmp_path: Path) -> None:
    """Table 6 (b): the host was trained on another domain."""
    before, uchida = host(), scheme(situation=situation)
    key = uchida.keygen(before, None, generator=generator(0))
    other = ImageSet("other", owner().images, owner().labels, 7)
    trainer = LightningTrainer(TrainerSettings(progress=False), tmp_path)
    marked, _ = uchida.embed(before, key, other, trainer=trainer, generator=generator(0))
    assert (before.classes, marked.classes, marked(torch.rand(2, 3, 16, 16)).shape[1]) == (4, 7, 7)


@pytest.mark.parametrize("kind", CARRIERS)
def test_samples_are_what_the_papers_figures_draw(kind: str) -> None:
    scheme = Uchida(bits=BITS, carrier=kind, embedding=Embedding("posthoc", mark=1.0))
    key = scheme.keygen(host(), None, generator=generator(3, "key"))
    marked, key = scheme.embed(host(), key, owner(), trainer=None, generator=generator(0))
    samples = scheme.samples(Suspect(marked, HostKind.CLASSIFIER, Access.WEIGHTS), key)
    assert tuple(samples) == scheme.sampled
    layer = find_layer(marked, HOST).weight.detach().double()
    assert torch.equal(samples["weights"], layer.flatten())
    answers = 1 / (1 + np.exp(-project(key.tensors["carrier"], layer.mean(0).flatten()).numpy()))
    expected = np.where(key.tensors["message"].numpy() == 1, answers, 1 - answers)
    assert samples["responses"].numpy() == pytest.approx(expected)
    assert (samples["responses"] >= 0.5).all()  # every bit is right
