"""Wide ResNets of depth 10: the shapes of the paper, blocks against plain formulas, and files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.core import generator
from hallmark.models import Classifier, Encoder, files
from hallmark.models.inference import Answering
from hallmark.models.layers import reinitialise
from hallmark.models.wide_resnet import PostActivationBlock, PreActivationBlock

NAMES = ("wrn10", "wrn10_code")


def pictures(count: int = 2, size: int = 32) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def warm(module: nn.Module, *shape: int) -> nn.Module:
    """A module whose weights and BatchNorm statistics are not those it was born with, in evaluation mode."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                for tensor in (part.weight, part.bias, part.running_mean, part.running_var):
                    tensor.uniform_(0.5, 1.5)
        for _ in range(2):
            module.train()(torch.randn(4, *shape))
    return module.eval()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [1, 4])
def test_groups_have_the_papers_shapes(name: str, k: int) -> None:
    """Nagai et al. 2018, table 1: maps of 32², 16² and 8²; M of each group's second convolution."""
    net = Encoder(name, width=k).eval()
    shapes = {}
    for group in ("group2", "group3", "group4"):
        net.backbone.get_submodule(group).register_forward_hook(
            lambda _, __, output, group=group: shapes.update({group: tuple(output.shape[1:])})
        )
    with torch.no_grad():
        features = net(pictures())
    assert shapes == {"group2": (16 * k, 32, 32), "group3": (32 * k, 16, 16), "group4": (64 * k, 8, 8)}
    assert features.shape == (2, 64 * k)
    assert net.num_features == 64 * k
    per_filter = [net.get_submodule(f"backbone.group{g}.conv2").weight[0].numel() for g in (2, 3, 4)]
    assert per_filter == [144 * k, 288 * k, 576 * k]


def test_the_default_is_widened_fourfold() -> None:
    assert [Encoder(name).num_features for name in NAMES] == [256, 256]
    assert Encoder("wrn10").backbone.group2.conv2.weight.numel() == 36_864  # the host layer of the paper's figure 6


@pytest.mark.parametrize(("name", "biases"), [("wrn10", False), ("wrn10_code", True)])
def test_the_variants_differ_where_paper_and_code_do(name: str, biases: bool) -> None:
    net = Encoder(name, width=2).backbone
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 10  # seven of 3×3, and a shortcut in each group
    assert {m.bias is not None for m in convolutions} == {biases}
    strides = [net.get_submodule(f"group{g}.conv1").stride[0] for g in (2, 3, 4)]
    assert strides == ([1, 1, 1] if biases else [1, 2, 2])


def norm(x: Tensor, bn: nn.BatchNorm2d) -> Tensor:
    mean, variance, gain, bias = (t.view(1, -1, 1, 1) for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
    return (x - mean) / torch.sqrt(variance + bn.eps) * gain + bias


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(6, 6, 1), (4, 6, 1), (6, 6, 2)])
def test_a_pre_activation_block_by_its_formula(inputs: int, outputs: int, stride: int) -> None:
    block = warm(PreActivationBlock(inputs, outputs, stride), inputs, 8, 8)
    x = torch.randn(3, inputs, 8, 8, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    with torch.no_grad():
        active = norm(x, block.bn1).clamp(min=0)
        inner = F.conv2d(active, block.conv1.weight, stride=stride, padding=1)
        expected = F.conv2d(norm(inner, block.bn2).clamp(min=0), block.conv2.weight, padding=1)
        expected += x if (inputs, stride) == (outputs, 1) else F.conv2d(active, block.shortcut.weight, stride=stride)
        torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-5)
    assert torch.equal(x, before)  # the activations work in place, not on the block's input


@pytest.mark.parametrize(("inputs", "outputs"), [(6, 6), (4, 6)])
def test_a_post_activation_block_by_its_formula(inputs: int, outputs: int) -> None:
    block = warm(PostActivationBlock(inputs, outputs), inputs, 8, 8)
    x = torch.randn(3, inputs, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = norm(F.conv2d(x, block.conv1.weight, block.conv1.bias, padding=1), block.bn1).clamp(min=0)
        y = norm(F.conv2d(y, block.conv2.weight, block.conv2.bias, padding=1), block.bn2).clamp(min=0)
        kept = x if inputs == outputs else F.conv2d(x, block.shortcut.weight, block.shortcut.bias)
        torch.testing.assert_close(block(x), y + kept, rtol=0, atol=1e-5)
        assert (block(x) < 0).any()  # nothing is rectified after the sum


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_net_by_its_parts(name: str) -> None:
    net = warm(Encoder(name, width=1), 3, 16, 16).backbone
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if name == "wrn10":
            y = net.group4(net.group3(net.group2(net.conv1(x))))
            expected = norm(y, net.bn).clamp(min=0).mean((2, 3))
        else:
            y = net.group2(norm(net.conv1(x), net.bn1).clamp(min=0))
            for group in (net.group3, net.group4):
                y = group(y.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5)))
            expected = y.mean((2, 3))
        torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(name: str) -> None:
    net = Classifier(Encoder(name, width=1), 3)
    F.cross_entropy(net(pictures(4, 16)), torch.tensor([0, 1, 2, 0])).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_folding_batch_norm_changes_no_answer(name: str) -> None:
    net = warm(Encoder(name, width=1), 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(Answering(net)(pictures()), net(pictures()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "make", [lambda net: net, lambda net: Classifier(net, 5).eval()], ids=["encoder", "classifier"]
)
def test_stored_and_read_it_answers_the_same(name: str, make: Callable[..., nn.Module], tmp_path: Path) -> None:
    model = make(warm(Encoder(name, width=1), 3, 16, 16))
    files.save(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(files.load(tmp_path)(pictures()), model(pictures()))


@pytest.mark.parametrize("name", NAMES)
def test_the_last_stage_is_the_last_group(name: str) -> None:
    encoder = Encoder(name, width=1)
    assert encoder.last_stage() is encoder.backbone.group4
    before = encoder.backbone.group4.conv2.weight.detach().clone()
    reinitialise(encoder.last_stage(), generator=generator(0))
    assert not torch.equal(encoder.backbone.group4.conv2.weight, before)
