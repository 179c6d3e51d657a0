"""Image-to-image networks: published sizes, shapes, ranges, what does not fit, descriptions that rebuild them."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hallmark.errors import ConfigError, StoreError
from hallmark.models import perceptual
from hallmark.models.generators import UNet
from hallmark.models.image_to_image import (
    NETWORKS,
    Architecture,
    Barrier,
    Barriered,
    Discriminator,
    Extractor,
    ImageToImage,
    fresh,
    from_spec,
)
from hallmark.models.perceptual import Perceptual


def images(count: int = 2, side: int = 16) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def small(name: str = "unet", residual: bool = True) -> Architecture:
    return Architecture(name, 4, 2, residual)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


# Numbers of the released networks, counted there


@pytest.mark.parametrize(("inputs", "outputs", "count"), [(2, 1, 41_823_873), (6, 3, 41_832_067)])
def test_the_barrier_has_as_many_parameters_as_the_released_one(inputs: int, outputs: int, count: int) -> None:
    with torch.device("meta"):
        assert parameters(UNet(inputs, outputs, 64, 7)) == count


def test_extractor_and_discriminator_have_as_many_parameters_as_the_released_ones() -> None:
    with torch.device("meta"):
        assert parameters(Extractor()) == 3_368_707
        assert parameters(Discriminator(inputs=1)) == 1_554_433


def test_dilations_are_the_released_ones() -> None:
    dilations = [m.dilation[0] for m in Extractor(2).modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    assert dilations[3:-1:2] == [2, 2, 2, 2, 4, 4, 4, 4, 1]


def test_the_discriminator_judges_16_by_16_patches_of_256() -> None:
    with torch.no_grad():
        assert Discriminator(2)(images(1, 256)).shape == (1, 1, 16, 16)


# Shapes, ranges, residuals


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_images_of_the_same_size(name: str, residual: bool) -> None:
    model = ImageToImage(small(name, residual))
    for side in (16, 24):
        out = model(images(side=side))
        assert out.shape == (2, 3, side, side)
        assert out.min() >= 0
        assert out.max() <= 1
    loud = 10 * images() - 5  # out of range: residuals follow, and the wrapper cuts
    assert torch.equal(model(loud), model.unclamped(loud).clamp(0, 1))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_silent_residual_network_is_the_identity(name: str) -> None:
    model = ImageToImage(small(name)).eval()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    assert torch.equal(model(images()), images())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_takes_part(name: str) -> None:
    model = ImageToImage(small(name))
    model.unclamped(images(side=32)).square().mean().backward()
    # a bias before a normalisation has a gradient that is zero but for rounding; weights have a real one
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if n.endswith("weight")
    )


def test_sides_that_do_not_fit_are_refused() -> None:
    for name, depth, stride in (("unet", 5, 32), ("cnet", None, 4)):
        with pytest.raises(ConfigError, match=f"24x30 images do not fit a {name} of depth .* multiple of {stride}"):
            ImageToImage(Architecture(name, 2, depth))(torch.rand(1, 3, 24, 30))
    with pytest.raises(ConfigError, match="even sides, got 15x15"):
        Extractor(2, 1)(images(side=15))
    with pytest.raises(ConfigError, match="sides above 16, got 16x16"):
        Discriminator(2)(images(side=16))


@pytest.mark.parametrize("wrong", [{"name": "transformer"}, {"width": 0}, {"depth": 0}])
def test_impossible_architectures_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Architecture(**wrong)


# Barrier


def barriered(residual: bool = True) -> Barriered:
    torch.manual_seed(1)
    return Barriered(fresh(small("cnet"), 0), Barrier(small(residual=residual)), images(1)[0]).eval()


@pytest.mark.parametrize("residual", [True, False])
def test_a_barriered_host_answers_what_the_barrier_makes_of_its_answer(residual: bool) -> None:
    model = barriered(residual)
    with torch.no_grad():
        clean = model.host(images())
        assert torch.equal(model(images()), model.barrier(clean, model.mark[None]).clamp(0, 1))
        other = model.barrier(clean, 1 - model.mark[None]).clamp(0, 1)
    assert not torch.equal(model(images()), other)  # the barrier sees the mark
    assert not torch.equal(model(images()), clean)


def test_a_mark_fits_images_of_its_own_size_alone() -> None:
    with pytest.raises(ConfigError, match="hides a 16x16 mark and cannot mark 32x32 images"):
        barriered()(images(side=32))


# Descriptions


@pytest.mark.parametrize("model", [ImageToImage(small("res9", False)), barriered()], ids=["plain", "barriered"])
def test_a_description_rebuilds_the_network(model: nn.Module) -> None:
    again = from_spec(json.loads(json.dumps(model.spec)))
    again.load_state_dict(model.state_dict())
    assert type(again) is type(model)
    with torch.no_grad():
        assert torch.equal(again.eval()(images()), model.eval()(images()))


def test_a_barrier_behind_a_barrier_is_described_too() -> None:
    twice = Barriered(barriered(), Barrier(small()), images(1)[0])
    again = from_spec(json.loads(json.dumps(twice.spec)))
    again.load_state_dict(twice.state_dict())
    assert isinstance(again.host, Barriered)


def test_fresh_networks_hang_on_their_seed_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = fresh(small(), 0), fresh(small(), 0), fresh(small(), 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(first, again)
    assert not same(first, other)


# Perceptual distance


def test_the_random_network_is_the_same_everywhere_and_measures_distance() -> None:
    torch.rand(3)
    one, two = Perceptual("random"), Perceptual("random")
    assert same(one, two)
    a = images(side=32).requires_grad_()
    near, far = (a + 0.02).clamp(0, 1), 1 - a
    assert float(one(a, a)) == 0
    assert 0 < float(one(near, a)) < float(one(far, a))
    one(a, far.detach()).backward()
    assert a.grad.abs().sum() > 0
    assert all(p.grad is None for p in one.parameters())


def test_a_vgg_without_weights_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ConfigError, match=r"perceptual=vgg16 needs .*vgg16-397923af\.pth.* or set perceptual=random"):
        Perceptual("vgg16")
    with pytest.raises(ConfigError, match="unknown perceptual network 'alexnet'; allowed: random, vgg16, vgg19"):
        Perceptual("alexnet")


def test_a_vgg_is_read_from_torchvisions_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = perceptual.weights_file("vgg16")
    path.parent.mkdir()
    shapes = {
        0: (64, 3),
        2: (64, 64),
        5: (128, 64),
        7: (128, 128),
    }  # VGG-16 up to relu2_2 (Simonyan and Zisserman 2015)
    state = {f"features.{i}.weight": torch.randn(*shape, 3, 3) * 0.05 for i, shape in shapes.items()}
    state |= {f"features.{i}.bias": torch.randn(shape[0]) for i, shape in shapes.items()}
    torch.save({**state, "classifier.0.bias": torch.zeros(1)}, path)
    distance = Perceptual("vgg16")

    def relu2_2(x: Tensor) -> Tensor:
        for i in shapes:
            x = torch.nn.functional.max_pool2d(x, 2) if i == 5 else x
            x = torch.nn.functional.conv2d(
                x, state[f"features.{i}.weight"], state[f"features.{i}.bias"], padding=1
            ).relu()
        return x

    a, b = images(), 1 - images()
    expected = (relu2_2(a) - relu2_2(b)).square().mean()
    assert float(distance(a, b)) == pytest.approx(float(expected), rel=1e-5)
    path.write_bytes(b"no weights")
    with pytest.raises(StoreError, match="is no file of vgg16's weights"):
        Perceptual("vgg16")
