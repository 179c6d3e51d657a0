"""VGG, ViT and ResNet-20 as hosts: shapes against plain formulas, files, and what a scheme needs of them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.composition import compose
from hallmark.errors import ConfigError
from hallmark.models import Classifier, Encoder, files
from hallmark.models.cifar_resnet import PaddedBlock
from hallmark.models.excite import append, originally
from hallmark.models.inference import Answering
from hallmark.models.torchvision_nets import required_size
from hallmark.models.widths import with_state
from hallmark.schemes.stain_lock.site import Site
from hallmark.stages.plan import plan

NAMES = ("vgg_small", "vit_small", "resnet20_a")
SITES = {"vgg_small": "features.11", "vit_small": "encoder_layer_1.mlp.0", "resnet20_a": "layer2.0.conv1"}


def pictures(count: int = 3, size: int = 32) -> Tensor:
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
            module.train()(torch.rand(4, *shape))
    return module.eval()


@pytest.mark.parametrize(("name", "times"), [("vgg_small", 16), ("vit_small", 6), ("resnet20_a", 4)])
@pytest.mark.parametrize("width", [4, 8])
def test_widths_scale(name: str, times: int, width: int) -> None:
    net = Encoder(name, width).eval()
    with torch.no_grad():
        assert net(pictures()).shape == (3, times * width)
    assert net.num_features == times * width


def test_the_vgg_is_conv_bn_relu_pool_and_two_hidden_layers() -> None:
    net = warm(Encoder("vgg_small", 4).backbone, 3, 32, 32)
    x = images = pictures()
    layers = [layer for layer in net.features if not isinstance(layer, nn.ReLU | nn.MaxPool2d)]
    with torch.no_grad():
        for at, (conv, bn) in enumerate(zip(layers[::2], layers[1::2], strict=True)):
            x = F.relu(F.batch_norm(F.conv2d(x, conv.weight, padding=1), *_moments(bn)))
            x = F.max_pool2d(x, 2) if at in (0, 1, 3, 5) else x
        assert x.shape == (3, 32, 2, 2)
        for hidden in (net.hidden[0], net.hidden[3]):
            x = F.relu(F.linear(x.flatten(1), hidden.weight, hidden.bias))
        torch.testing.assert_close(net(images), x, rtol=1e-4, atol=1e-5)


def test_a_smaller_image_is_pooled_to_the_same_map() -> None:
    with torch.no_grad():
        assert Encoder("vgg_small", 4).eval()(pictures(size=16)).shape == (3, 64)


@pytest.mark.parametrize("stride", [1, 2])
def test_shortcuts_of_option_a_have_no_parameters(stride: int) -> None:
    inputs, outputs = 6, 6 * stride
    block = warm(PaddedBlock(inputs, outputs, stride), inputs, 8, 8)
    x = torch.randn(2, inputs, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = F.relu(F.batch_norm(F.conv2d(x, block.conv1.weight, stride=stride, padding=1), *_moments(block.bn1)))
        y = F.batch_norm(F.conv2d(y, block.conv2.weight, padding=1), *_moments(block.bn2))
        kept = torch.zeros_like(y)
        start = (outputs - inputs) // 2
        kept[:, start : start + inputs] = x[:, :, ::stride, ::stride]
        torch.testing.assert_close(block(x), F.relu(y + kept), rtol=1e-4, atol=1e-5)


def _moments(bn: nn.BatchNorm2d) -> tuple[Tensor, ...]:
    return bn.running_mean, bn.running_var, bn.weight, bn.bias


def test_resnet20_has_the_papers_size() -> None:
    """He et al. 2016, table 6: 0.27 million parameters in 20 layers."""
    net = Classifier(Encoder("resnet20_a"), 10)
    weights = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weights) == 20
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(0.27e6, rel=0.01)


def test_a_token_is_a_patch() -> None:
    """What lies outside a 4×4 patch does not reach its token before the first block."""
    net = Encoder("vit_small", 4).eval().backbone
    images = pictures(2)
    images[1, :, :4, 4:8] = images[0, :, :4, 4:8]
    with torch.no_grad():
        tokens = net._process_input(images)
    torch.testing.assert_close(tokens[0, 1], tokens[1, 1])
    assert not torch.allclose(tokens[0, 0], tokens[1, 0])


@pytest.mark.parametrize("name", NAMES)
def test_hosts_are_traced_stored_and_folded(name: str, tmp_path: Path) -> None:
    model = warm(Classifier(Encoder(name, 4), 10), 3, 32, 32)
    site, _ = Site.of(model, SITES[name])
    assert site.layer.endswith(SITES[name])
    assert bool(site.layernorm) == (name == "vit_small")
    files.save(model, tmp_path)
    loaded = files.load(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(pictures()), model(pictures()))
        torch.testing.assert_close(Answering(model)(pictures()), model(pictures()), rtol=1e-3, atol=1e-3)


def test_images_of_another_size_are_refused_while_planning() -> None:
    assert required_size("vit_small") == 32
    assert required_size("torchvision:vit_b_16") == 224
    assert required_size("resnet_small") is None
    config = compose(["experiment=stain_lock/stain_vit", "scale=smoke", "data.size=16"])
    with pytest.raises(ConfigError, match=r"'vit_small' takes 32x32 images only; set data.size=32"):
        plan(config, lambda name: name)


def test_torchvision_s_own_networks_are_backbones() -> None:
    with torch.device("meta"):
        for name, features in (("resnet50", 2048), ("vgg16", 4096), ("vit_b_16", 768)):
            encoder = Encoder(f"torchvision:{name}")
            assert encoder.num_features == features
            assert encoder.spec["backbone"] == f"torchvision:{name}"
        with pytest.raises(ConfigError, match="unknown torchvision classifier 'resnet51'"):
            Encoder("torchvision:resnet51")
        with pytest.raises(ConfigError, match="fixed width"):
            Encoder("torchvision:resnet50", 8)


# What was appended


def gated() -> Classifier:
    model = Classifier(Encoder("resnet_small", 4), 10)
    append(model, "encoder.backbone.layer2", 8)
    append(model, "encoder.backbone.layer2", 8)
    append(model, "encoder.backbone.layer4.conv1", 32)
    return warm(model, 3, 16, 16)


def test_appended_blocks_survive_the_disk(tmp_path: Path) -> None:
    for model in (gated(), gated().encoder):
        files.save(model, tmp_path)
        loaded = files.load(tmp_path)
        assert files.describe(loaded) == files.describe(model)
        with torch.no_grad():
            assert torch.equal(loaded(pictures(size=16)), model(pictures(size=16)))
    assert "added" not in files.describe(Encoder("resnet_small", 4))


def test_appended_blocks_and_other_widths_survive_together(tmp_path: Path) -> None:
    model = gated()
    state = dict(model.state_dict())
    name = "encoder.backbone.layer2.block.block"
    for part in ("bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var", "conv1.weight"):
        state[f"{name}.{part}"] = state[f"{name}.{part}"][:5]
    state[f"{name}.conv2.weight"] = state[f"{name}.conv2.weight"][:, :5]
    narrow = with_state(model, state).eval()
    assert narrow.encoder.spec["widths"] == {"layer2.bn1": [5, 5], "layer2.conv1": [4, 5], "layer2.conv2": [5, 8]}
    files.save(narrow, tmp_path)
    with torch.no_grad():
        assert torch.equal(files.load(tmp_path)(pictures(size=16)), narrow(pictures(size=16)))


def test_names_from_before_anything_was_appended() -> None:
    net = gated().encoder.backbone
    assert originally(net, "layer2.block.block.conv1") == "layer2.conv1"
    assert originally(net, "layer2.block.gates.squeeze") == "layer2.gates.squeeze"
    assert originally(net, "layer4.conv1.block") == "layer4.conv1"
    assert originally(net, "layer4.conv2") == "layer4.conv2"
