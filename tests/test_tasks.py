"""Downstream tasks: heads against scikit-learn and each on its own, kNN against loops, hosts left untouched."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from hallmark.core import Measurement, generator
from hallmark.data.images import ImageSet
from hallmark.data.procedural import procedural_images
from hallmark.models import Classifier, Encoder
from hallmark.tasks.features import encode
from hallmark.tasks.finetune import FineTune
from hallmark.tasks.heads import HeadRecipe, train_head
from hallmark.tasks.probe import NearestNeighbours, Probe, accuracy, nearest_labels
from hallmark.training import LightningTrainer
from hallmark.training_settings import TrainerSettings

CLASSES = 4


def clusters(count: int, *, seed: int, spread: float = 1.0, dimension: int = 12) -> tuple[Tensor, Tensor]:
    """Gaussian clusters that overlap a little, on features of very different scale and offset."""
    rng = torch.Generator().manual_seed(99)
    centres = torch.randn(CLASSES, dimension, generator=rng)
    scale, offset = torch.rand(dimension, generator=rng) * 20 + 0.05, torch.randn(dimension, generator=rng) * 5
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=rng)
    x = centres[labels] + spread * torch.randn(count, dimension, generator=rng)
    return x * scale + offset, labels


def rate(head: nn.Module, features: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((head(features).argmax(1) == labels).float().mean())


# Heads


def test_a_linear_head_is_as_good_as_logistic_regression() -> None:
    (x, y), (tx, ty) = clusters(2000, seed=0), clusters(4000, seed=1)
    head = train_head(x, y, CLASSES, HeadRecipe(), generator=generator(0))
    mean, std = x.mean(0), x.std(0)
    reference = LogisticRegression(max_iter=2000).fit(((x - mean) / std).numpy(), y.numpy())
    expected = reference.score(((tx - mean) / std).numpy(), ty.numpy())
    assert 0.8 < expected < 0.99  # neither hopeless nor trivial
    # Two estimators of one optimum.  Their answers differ near the boundary alone: 0.015 is two standard errors of
    # an accuracy of 0.9 on 4000 samples, and the samples are the same for both.
    assert rate(head, tx, ty) == pytest.approx(expected, abs=0.015)


def test_a_hidden_layer_solves_what_a_linear_head_cannot() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 2, generator=rng)
    y = (x[:, 0] * x[:, 1] > 0).long()  # exclusive or
    linear = train_head(x, y, 2, HeadRecipe(), generator=generator(0))
    deep = train_head(x, y, 2, HeadRecipe(hidden=(32,)), generator=generator(0))
    assert rate(linear, x, y) < 0.65
    assert rate(deep, x, y) > 0.95


@pytest.mark.parametrize("hidden", [(), (16,)])
def test_heads_trained_together_equal_heads_trained_alone(hidden: tuple[int, ...]) -> None:
    x, y = clusters(600, seed=2, spread=1.5)
    recipe = HeadRecipe(hidden=hidden, rates=(1e-5, 3e-2, 1e-3), epochs=6, batch=128)
    together = train_head(x, y, CLASSES, recipe, generator=generator(3))
    alone = [train_head(x, y, CLASSES, replace(recipe, rates=(one,)), generator=generator(3)) for one in recipe.rates]
    held = torch.randperm(600, generator=generator(3))[:60]  # the first draw chooses the held-out share
    best = max(alone, key=lambda head: rate(head, x[held], y[held]))  # max keeps the first among equals, as argmax does
    assert best is not alone[0]
    for name, tensor in together.state_dict().items():
        # one wide product sums in another order than several narrow ones; Adam carries that on for 24 steps
        assert torch.allclose(tensor, best.state_dict()[name], rtol=0, atol=1e-4), name
        others = [head for head in alone if head is not best]
        assert not any(torch.allclose(tensor, head.state_dict()[name], rtol=0.01) for head in others)


def test_the_best_rate_wins_wherever_it_stands() -> None:
    x, y = clusters(600, seed=2)
    for rates in ((1e-2, 1e-7), (1e-7, 1e-2)):
        head = train_head(x, y, CLASSES, HeadRecipe(rates=rates, epochs=10, batch=128), generator=generator(4))
        assert rate(head, x, y) > 0.8


@pytest.mark.parametrize("hidden", [(), (8, 5)])
def test_folding_is_the_unfolded_formula(hidden: tuple[int, ...]) -> None:
    """The head on raw features is the head on standardised features: trained alike, x and (x − μ)/σ answer alike."""
    x, y = clusters(500, seed=5)
    mean, std = x.mean(0), x.std(0)
    recipe = HeadRecipe(hidden=hidden, rates=(1e-2,), epochs=4, batch=100)
    raw = train_head(x, y, CLASSES, recipe, generator=generator(6))
    standardised = train_head((x - mean) / std, y, CLASSES, recipe, generator=generator(6))  # folds a mean of 0, σ of 1
    probe, _ = clusters(50, seed=7)
    with torch.no_grad():
        expected, got = standardised((probe - mean) / std), raw(probe)
    assert expected.std() > 0.3
    # 30 steps of Adam on inputs that agree to float32 rounding
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-3)


def test_a_feature_that_never_moved_has_no_say() -> None:
    """A dead unit tells the training data apart from nothing; a first stir of it must not drown all other features."""
    x, y = clusters(600, seed=2)
    dead = torch.cat([x, torch.full((600, 1), 0.25)], dim=1)
    head = train_head(dead, y, CLASSES, HeadRecipe(epochs=10, batch=128), generator=generator(8))
    stirred = dead.clone()
    stirred[:, -1] += 0.1 * torch.randn(600, generator=torch.Generator().manual_seed(1))
    assert rate(head, dead, y) > 0.8
    # the initial weights of one input are about 0.1, beside logits of several units
    assert rate(head, stirred, y) > rate(head, dead, y) - 0.02


def test_heads_repeat_with_their_generator() -> None:
    x, y = clusters(300, seed=2)
    recipe = HeadRecipe(epochs=2, batch=64)
    one, same, other = (train_head(x, y, CLASSES, recipe, generator=generator(s))[0].weight for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


# k nearest neighbours


def naive_neighbours(queries: Tensor, bank: Tensor, labels: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    answers = []
    for query in queries.double():
        similar = [float(F.cosine_similarity(query, row, dim=0)) for row in bank.double()]
        nearest = sorted(range(len(bank)), key=lambda i: -similar[i])[:k]
        votes = torch.zeros(classes, dtype=torch.float64)
        for i in nearest:
            votes[labels[i]] += torch.tensor(similar[i] / temperature, dtype=torch.float64).exp()
        answers.append(int(votes.argmax()))
    return torch.tensor(answers)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (5, 0.1), (20, 0.5), (500, 0.1)])
def test_neighbours_vote_as_the_formula_says(k: int, temperature: float) -> None:
    bank, labels = clusters(120, seed=0, spread=2)
    queries, _ = clusters(40, seed=1, spread=2)
    got = nearest_labels(queries, bank, labels, CLASSES, k=k, temperature=temperature, block=7)
    assert torch.equal(got, naive_neighbours(queries, bank, labels, CLASSES, k, temperature))
    assert len(got.unique()) > 1


# Tasks on encoders


def images(count: int, split: str = "train") -> ImageSet:
    return ImageSet("procedural", *procedural_images(count, classes=CLASSES, size=12, split=split), CLASSES)


def colours(count: int, *, seed: int) -> ImageSet:
    """Noise whose mean colour says the class, which even an untrained encoder shows."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=rng)
    means = torch.tensor([[90, 120, 150], [150, 120, 90], [120, 150, 90], [120, 90, 150]])
    noise = torch.randint(-60, 61, (count, 3, 12, 12), generator=rng)
    return ImageSet("colours", (means[labels][:, :, None, None] + noise).to(torch.uint8), labels, CLASSES)


def host() -> Encoder:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        encoder = Encoder("resnet_small", width=8).train()
        for _ in range(20):
            encoder(images(128).images.float() / 255)
    return encoder.eval()


@pytest.fixture
def trainer(tmp_path: Path) -> LightningTrainer:
    return LightningTrainer(TrainerSettings(precision="32-true", progress=False), tmp_path)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_features_are_those_of_evaluation_mode_and_leave_no_trace() -> None:
    encoder, shown = host(), images(40).images
    encoder.train()
    encoder.backbone.stem[1].eval()
    before, modes = state(encoder), [m.training for m in encoder.modules()]
    features = encode(encoder, shown, batch=16)
    assert equal(state(encoder), before)
    assert [m.training for m in encoder.modules()] == modes
    with torch.no_grad():
        expected = encoder.eval()(shown.float() / 255)
    assert features.dtype == torch.float32
    # bfloat16 keeps 8 bits, through nine convolutions: a few hundredths of the features' own size
    assert float((features - expected).norm() / expected.norm()) < 0.05


def test_a_probe_learns_and_leaves_the_encoder_untouched(trainer: LightningTrainer) -> None:
    encoder, train, test = host(), colours(400, seed=0), colours(200, seed=1)
    before = state(encoder)
    classifier = Probe().transfer(encoder, train, trainer=trainer, generator=generator(0))
    (figure,) = Probe().measure(encoder, classifier, train, test)
    assert equal(state(encoder), before)
    assert classifier.encoder is encoder
    assert figure.metric == "accuracy"
    assert figure.value > 0.8  # chance is 0.25
    assert (figure.n, figure.count) == (200, round(figure.value * 200))
    answers = classifier.head(encode(encoder, test.images)).argmax(1)
    assert figure.count == int((answers == test.labels).sum())


def test_an_mlp_probe_has_its_hidden_layer(trainer: LightningTrainer) -> None:
    probe = Probe("mlp_probe", HeadRecipe(hidden=(8,), epochs=2))
    classifier = probe.transfer(host(), images(100), trainer=trainer, generator=generator(0))
    assert [type(m).__name__ for m in classifier.head] == ["Linear", "ReLU", "Linear"]
    assert classifier.hidden == (8,)
    assert probe.name == "mlp_probe"


def test_knn_measures_the_neighbours_vote(trainer: LightningTrainer) -> None:
    encoder, train, test = host(), images(200), images(100, "test")
    before, task = state(encoder), NearestNeighbours(k=7)
    assert task.transfer(encoder, train, trainer=trainer, generator=generator(0)) is None
    (figure,) = task.measure(encoder, None, train, test)
    bank, queries = encode(encoder, train.images), encode(encoder, test.images)
    expected = naive_neighbours(queries, bank, train.labels, CLASSES, 7, 0.1)
    assert figure.metric == "knn_accuracy"
    assert figure.count == int((expected == test.labels).sum())
    assert equal(state(encoder), before)


def test_fine_tuning_trains_everything_but_the_host(trainer: LightningTrainer) -> None:
    encoder, train, test = host(), images(200), images(100, "test")
    before = state(encoder)
    task = FineTune(epochs=1, batch=32, recipe=HeadRecipe(epochs=2))
    classifier = task.transfer(encoder, train, trainer=trainer, generator=generator(0))
    assert equal(state(encoder), before)
    assert isinstance(classifier, Classifier)
    assert not classifier.training
    after = state(classifier.encoder)
    assert not any(torch.equal(after[name], before[name]) for name in before)  # BatchNorm statistics too
    (figure,) = task.measure(encoder, classifier, train, test)
    assert figure.count == int((encode(classifier, test.images).argmax(1) == test.labels).sum())


def test_equal_seeds_transfer_equally(tmp_path: Path) -> None:
    def once(name: str, seed: int) -> dict[str, Tensor]:
        trainer = LightningTrainer(TrainerSettings(precision="32-true", progress=False), tmp_path / name)
        task = FineTune(epochs=1, batch=32, recipe=HeadRecipe(epochs=1))
        return state(task.transfer(host(), images(64), trainer=trainer, generator=generator(seed)))

    assert equal(once("a", 0), once("b", 0))
    assert not equal(once("c", 0), once("d", 1))


def test_tasks_refuse_what_they_cannot_work_on(trainer: LightningTrainer) -> None:
    with pytest.raises(TypeError, match="needs an Encoder, got Linear"):
        Probe().transfer(nn.Linear(2, 2), images(10), trainer=trainer, generator=generator(0))
    with pytest.raises(TypeError, match="NoneType"):
        Probe().measure(host(), None, images(10), images(10))
    with pytest.raises(TypeError, match="None"):
        FineTune().measure(host(), None, images(10), images(10))


def test_accuracy_counts() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [5.0, 4.0]])
    assert accuracy(logits, torch.tensor([0, 1, 1])) == Measurement("accuracy", 2 / 3, 2, 3)
    assert accuracy(torch.tensor([1, 1]), torch.tensor([1, 0]), "knn_accuracy").metric == "knn_accuracy"
