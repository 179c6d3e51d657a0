"""Alignment puts a suspect's channels back where the reference has them, without favouring innocent suspects."""

from collections.abc import Sequence
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from hallmark.alignment import align
from hallmark.attacks.obfuscate import InsertNeurons, Permute, Rescale
from hallmark.attacks.prune import prune
from hallmark.core import Attack
from hallmark.errors import ConfigError
from hallmark.models import Classifier, Encoder
from hallmark.models.channels import channelwise
from hallmark.models.tracing import channel_groups
from obfuscated import NETWORKS, answers, attacked, made, pictures

KINDS = ("zero", "clique", "split")
EXACT: list[Sequence[Attack]] = [
    [Permute(1)],
    [Rescale(4)],
    [Permute(1), Rescale(4)],
    *([InsertNeurons(0.5, kind), Rescale(2), Permute(1)] for kind in KINDS),
    [
        InsertNeurons(0.5, "clique", 3),
        InsertNeurons(0.5, "split", 3),
        Rescale(2),
        Permute(1),
        InsertNeurons(0.5, "zero"),
    ],
]


def farthest(model: nn.Module, other: nn.Module) -> float:
    """The largest difference between two tensors of a name, relative to the largest entry."""
    state = other.state_dict()
    gaps = [(t - state[n]).abs().max() / state[n].abs().max() for n, t in model.state_dict().items() if t.ndim]
    return float(torch.stack(gaps).max())


def noised(model: nn.Module, share: float, seed: int = 0) -> nn.Module:
    """A copy whose weights and biases moved by Gaussian noise of a share of their own spread."""
    drawn = torch.Generator().manual_seed(seed)
    moved = deepcopy(model)
    with torch.no_grad():
        for parameter in moved.parameters():
            spread = parameter.std() if parameter.numel() > 1 else parameter.abs()
            parameter.add_(share * spread * torch.randn(parameter.shape, generator=drawn))
    return moved


def tuned(model: nn.Module, steps: int = 15) -> nn.Module:
    """A copy trained on random targets for a while, at a rate that moves it."""
    moved = deepcopy(model).train()
    images, drawn = pictures(16), torch.Generator().manual_seed(3)
    targets = torch.randn(moved(images).shape, generator=drawn)
    optimiser = torch.optim.Adam(moved.parameters(), lr=5e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        (moved(images) - targets).square().mean().backward()
        optimiser.step()
    return moved.eval()


def misplaced(model: nn.Module, wanted: nn.Module) -> int:
    """Channels whose incoming weights point most nearly where those of another of the wanted channels do.

    Directions survive another scale of what comes in well enough to tell the channels apart.
    """
    count = 0
    for first in (group.producers[0] for group in channel_groups(wanted) if group.free):
        rows, others = (channelwise(m.state_dict()[first.tensor], first).flatten(1) for m in (model, wanted))
        nearest = (nn.functional.normalize(rows) @ nn.functional.normalize(others).T).argmax(1)
        count += int((nearest != torch.arange(len(rows))).sum())
    return count


# Exact copies


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("attacks", EXACT, ids=lambda attacks: "-".join(getattr(a, "kind", a.name) for a in attacks))
def test_what_was_edited_is_recovered(network: str, attacks: Sequence[Attack]) -> None:
    model = made(NETWORKS[network])
    edited = attacked(model, *attacks)
    aligned = align(edited, model)
    assert type(aligned) is type(model)
    assert not aligned.training
    assert list(aligned.state_dict()) == list(model.state_dict())
    assert farthest(aligned, model) < 1e-5
    assert torch.allclose(answers(aligned), answers(edited), atol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_in_place_stays_to_the_bit(network: str) -> None:
    model = made(NETWORKS[network])
    for same in (model, attacked(model, Permute(1))):
        aligned = align(same, model).state_dict()
        assert all(torch.equal(tensor, aligned[name]) for name, tensor in model.state_dict().items())


def test_neither_network_is_touched() -> None:
    model = made(NETWORKS["classifier"])
    suspect = attacked(model, InsertNeurons(0.5), Permute(1))
    before = [{n: t.clone() for n, t in m.state_dict().items()} for m in (model, suspect)]
    align(suspect, model)
    for network, state in zip((model, suspect), before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


# Copies that changed besides


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_noise_does_not_hide_a_permutation(network: str, share: float) -> None:
    model = made(NETWORKS[network])
    suspect = noised(model, share)
    aligned = align(attacked(suspect, Permute(1), Rescale(3)), model)
    assert misplaced(aligned, suspect) == 0
    assert misplaced(attacked(suspect, Permute(1)), suspect) > 0
    assert torch.allclose(answers(aligned), answers(suspect), atol=1e-4)


@pytest.mark.parametrize("network", ["resnet_small", "wrn10", "classifier"])
def test_training_does_not_hide_a_permutation(network: str) -> None:
    model = made(NETWORKS[network])
    suspect = tuned(model)
    assert farthest(suspect, model) > 0.05
    aligned = align(attacked(suspect, Permute(1), Rescale(3)), model)
    assert misplaced(aligned, suspect) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_noise_does_not_hide_inserted_neurons(kind: str) -> None:
    """The surplus has to go although nothing cancels exactly any more."""
    model = made(NETWORKS["wrn10"])
    suspect = noised(attacked(model, InsertNeurons(0.5, kind), Permute(1)), 0.1)
    aligned = align(suspect, model)
    rows, others = (m.get_parameter("backbone.group3.conv2.weight").detach().flatten(1) for m in (aligned, model))
    assert torch.cosine_similarity(rows, others).min() > 0.9
    assert (answers(aligned) - answers(model)).abs().mean() < 0.5 * answers(model).abs().mean()


def test_iteration_repairs_what_the_first_pass_gets_wrong() -> None:
    """Where a layer was drawn anew, the next one alone tells its channels' order."""
    model = made(NETWORKS["resnet_small"])
    with torch.no_grad():
        model.backbone.layer3.bn1.weight.fill_(1)  # all channels count as much for the next layer
    suspect = deepcopy(model)
    with torch.no_grad():
        suspect.backbone.layer3.conv1.weight.normal_(generator=torch.Generator().manual_seed(0))
    aligned = align(attacked(suspect, Permute(1)), model)
    columns, others = (m.backbone.layer3.conv2.weight.detach().transpose(0, 1).flatten(1) for m in (aligned, suspect))
    assert torch.cosine_similarity(columns, others).min() > 1 - 1e-5


def test_pruned_copies_are_aligned() -> None:
    """Dead channels tell neither place nor scale, and disturb nobody."""
    model = made(NETWORKS["wrn10"])
    with torch.no_grad():
        model.backbone.group2.conv1.weight[:3] = 0
        model.backbone.group3.bn1.weight[2] = model.backbone.group3.bn1.bias[2] = 0
    suspect = deepcopy(model)
    prune(suspect, 0.6, "global")
    aligned = align(attacked(suspect, Permute(1), Rescale(3)), model)
    assert torch.allclose(answers(aligned), answers(suspect), atol=1e-4)
    rows, others = (m.backbone.group4.conv2.weight.detach().flatten(1) for m in (aligned, suspect))
    assert torch.cosine_similarity(rows, others).min() > 1 - 1e-5


# Strangers


@pytest.mark.parametrize("network", NETWORKS)
def test_an_unrelated_network_keeps_its_function(network: str) -> None:
    model, stranger = made(NETWORKS[network], seed=0), made(NETWORKS[network], seed=1)
    aligned = align(stranger, model)
    assert torch.allclose(answers(aligned), answers(stranger), atol=1e-4)
    assert misplaced(aligned, stranger) > 0
    wider = align(attacked(stranger, InsertNeurons(0.5)), model)
    assert answers(wider).isfinite().all()
    assert [t.shape for t in wider.state_dict().values()] == [t.shape for t in model.state_dict().values()]


def test_another_head_does_not_matter() -> None:
    model = made(NETWORKS["classifier"])
    suspect = Classifier(deepcopy(model.encoder), 9, hidden=(8, 6)).eval()
    aligned = align(attacked(suspect, Permute(1), Rescale(2)), model)
    assert answers(aligned).shape == (8, 9)
    assert torch.allclose(answers(aligned), answers(suspect), atol=1e-5)
    assert farthest(aligned.encoder, model.encoder) < 1e-5


@pytest.mark.parametrize(
    ("suspect", "message"),
    [
        (lambda: Encoder("wrn10", width=1), "only networks of one architecture"),
        (lambda: Encoder("resnet_small", width=2), "stem.0.weight makes 2 channels in the suspect, 4 in the reference"),
        (
            lambda: Encoder("resnet_small", width=8),
            "makes 64 channels in the suspect, 32 in the reference; .* features",
        ),
        (lambda: Classifier(Encoder("resnet_small", width=4), 3), "only networks of one architecture"),
    ],
)
def test_other_architectures_are_refused(suspect: type[nn.Module], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        align(made(suspect), made(NETWORKS["resnet_small"]))
    assert len(str(caught.value).splitlines()) == 1


# What it is for: a mark in the weights

LAYER = "backbone.group3.conv2.weight"
BITS = 64


def extracted(model: nn.Module, projection: Tensor) -> Tensor:
    """Signs of secret projections of a layer's mean filter (Uchida 2017)."""
    return projection @ model.get_parameter(LAYER).detach().mean(0).flatten() > 0


def marked(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network with a mark set by least squares, its projection and its message."""
    model = made(NETWORKS["wrn10"], seed)
    weight = model.get_parameter(LAYER)
    drawn = torch.Generator().manual_seed(seed)
    projection = torch.randn(BITS, weight[0].numel(), generator=drawn)
    message = torch.rand(BITS, generator=drawn) > 0.5
    missing = (message * 2.0 - 1) * 3 - projection @ weight.detach().mean(0).flatten()
    with torch.no_grad():
        weight += torch.linalg.lstsq(projection, missing[:, None]).solution.view(1, *weight.shape[1:])
    return model, projection, message


def test_a_mark_is_lost_by_permutation_and_found_again() -> None:
    model, projection, message = marked(seed=100)
    assert (extracted(model, projection) == message).all()
    for attacks in ([Permute(1), Rescale(2)], [InsertNeurons(0.25, "split"), Permute(1), Rescale(2)]):
        stolen = attacked(model, *attacks)
        if len(attacks) == 2:
            assert (extracted(stolen, projection) == message).sum() < 46  # 0.0003 of fair coins have more
        aligned = align(stolen, model, unseen=[LAYER])
        assert (extracted(aligned, projection) == message).all()


def test_innocent_networks_gain_nothing() -> None:
    """Their channels are chosen by other weights than the marked one, so its bits stay fair coins."""
    matches = trials = 0
    for seed in range(5):
        model, projection, message = marked(seed=100 + seed)
        for innocent in range(4):
            aligned = align(made(NETWORKS["wrn10"], 10 * seed + innocent), model, unseen=[LAYER])
            matches += int((extracted(aligned, projection) == message).sum())
            trials += BITS
    assert abs(matches / trials - 0.5) < 4 * (0.25 / trials) ** 0.5


def test_an_unseen_weight_has_no_say() -> None:
    model, stranger = made(NETWORKS["wrn10"], 0), made(NETWORKS["wrn10"], 1)
    other = deepcopy(model)
    with torch.no_grad():
        other.get_parameter(LAYER).normal_(generator=torch.Generator().manual_seed(0))
    read = "backbone.group3.conv1.weight"  # makes the channels that the marked layer reads
    unseen = [align(stranger, reference, unseen=[LAYER]).state_dict()[read] for reference in (model, other)]
    seen = [align(stranger, reference).state_dict()[read] for reference in (model, other)]
    assert torch.equal(*unseen)
    assert not torch.equal(*seen)


def test_broken_weights_are_put_into_some_order() -> None:
    model, broken = made(NETWORKS["wrn10"], 0), made(NETWORKS["wrn10"], 1)
    with torch.no_grad():
        broken.backbone.group3.conv1.weight[2] = torch.nan
        broken.backbone.group2.bn1.weight.fill_(torch.inf)
    assert [t.shape for t in align(broken, model).parameters()] == [t.shape for t in model.parameters()]


def test_an_unseen_weight_has_to_exist() -> None:
    model = made(NETWORKS["wrn10"])
    with pytest.raises(ConfigError, match="unknown weight to leave unseen 'conv9'; allowed: backbone"):
        align(model, model, unseen=["conv9"])
