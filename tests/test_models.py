"""Encoders by name, and models on disk: faithful files, no pickles, one clear line for anything else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hallmark.errors import ConfigError, StoreError
from hallmark.models import BACKBONES, Classifier, Encoder, files
from hallmark.models.encoders import CIFAR_MEAN, CIFAR_STD
from hallmark.models.torchvision_nets import required_size

WIDTHS = {"resnet_small": 128, "resnet18": 512, "resnet34": 512, "resnet50": 2048, "wrn10": 256, "wrn10_code": 256}
WIDTHS |= {"resnet20_a": 64, "vgg_small": 256, "vit_small": 96}


def small(seed: int = 0, width: int = 4) -> Encoder:
    """A tiny encoder with BatchNorm statistics that are not the initial ones."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        encoder = Encoder("resnet_small", width=width).train()
        encoder(pictures(8))
    return encoder.eval()


def pictures(count: int = 2, size: int = 8) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# Encoders


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_every_backbone_makes_features(name: str) -> None:
    encoder = Encoder(name).eval()
    with torch.no_grad():
        features = encoder(pictures(size=required_size(name) or 16))
    assert features.shape == (2, WIDTHS[name])
    assert encoder.num_features == WIDTHS[name]
    assert torch.isfinite(features).all()
    assert not torch.equal(features[0], features[1])
    expected = {"resnet18": 11_168_832, "resnet34": 21_276_992, "resnet50": 23_500_352}  # He 2016, with a 3×3 stem
    assert parameters(encoder) == expected.get(name, parameters(encoder))


def test_the_small_encoder_scales_with_its_width() -> None:
    assert Encoder("resnet_small", width=4).num_features == 32
    assert Encoder("resnet_small").num_features == Encoder("resnet_small", width=16).num_features == 128
    with torch.no_grad():
        assert Encoder("resnet_small", width=4).eval()(pictures(2, size=33)).shape == (2, 32)


def test_a_timm_backbone_by_name() -> None:
    encoder = Encoder("timm:resnet10t").eval()
    with torch.no_grad():
        assert encoder(pictures(2, size=32)).shape == (2, encoder.num_features) == (2, 512)
    assert encoder.spec["backbone"] == "timm:resnet10t"


@pytest.mark.parametrize(
    ("name", "width", "message"),
    [
        ("resnet19", None, r"unknown backbone 'resnet19'; allowed: resnet18.*timm:<model>"),
        ("timm:no_such_net", None, "unknown timm model 'no_such_net'"),
        ("timm:resnet10t", 32, "fixed width"),
        ("resnet18", 32, "fixed width 64"),
        ("", None, "unknown backbone ''"),
    ],
)
def test_unknown_backbones_are_refused_in_one_line(name: str, width: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Encoder(name, width)
    assert len(str(caught.value).splitlines()) == 1


def test_normalisation_is_inside() -> None:
    encoder, images = small(), pictures()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CIFAR_MEAN, CIFAR_STD))
    plain = Encoder("resnet_small", width=4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)).eval()
    plain.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(plain((images - mean) / std), encoder(images), rtol=0, atol=1e-6)
        assert not torch.allclose(plain(images), encoder(images), atol=1e-3)


@pytest.mark.parametrize("name", ["resnet_small", "resnet18", "timm:resnet10t"])
def test_the_last_stage_is_the_last_one_that_learns(name: str) -> None:
    encoder = Encoder(name)
    stage = encoder.last_stage()
    assert stage is encoder.backbone.layer4
    assert list(encoder.parameters())[-1] is list(stage.parameters())[-1]


def test_a_classifier_is_a_head_on_features() -> None:
    classifier = Classifier(small(), 5, hidden=(6,)).eval()
    with torch.no_grad():
        features = classifier.features(pictures())
        assert torch.equal(features, classifier.encoder(pictures()))
        hidden = torch.relu(features @ classifier.head[0].weight.T + classifier.head[0].bias)
        expected = hidden @ classifier.head[2].weight.T + classifier.head[2].bias
        torch.testing.assert_close(classifier(pictures()), expected, rtol=0, atol=1e-6)
    assert [type(m).__name__ for m in Classifier(small(), 5).head] == ["Linear"]


# Files

MODELS: dict[str, Callable[[], nn.Module]] = {
    "encoder": small,
    "classifier": lambda: Classifier(small(), 5).eval(),
    "deep classifier": lambda: Classifier(small(), 5, hidden=(7, 6)).eval(),
    "own normalisation": lambda: Encoder("resnet_small", 4, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)).eval(),
    "default width": lambda: Encoder("resnet_small").eval(),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_survives_its_files(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    files.save(model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    loaded = files.load(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.spec == model.spec
    assert files.describe(loaded) == files.describe(model)
    assert not loaded.training
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
    )
    with torch.no_grad():
        assert torch.equal(loaded(pictures()), model(pictures()))


def test_files_of_equal_models_are_equal(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        files.save(small(), tmp_path / name)
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def refused(folder: Path, match: str) -> None:
    with pytest.raises(StoreError, match=match) as caught:
        files.load(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    model = small()
    files.save(model, tmp_path)
    torch.save(model.state_dict(), tmp_path / "model.safetensors")
    refused(tmp_path, "pickles are never loaded")


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, "not a readable safetensors file")
    files.save(small(), tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-5])
    refused(tmp_path, "not a readable safetensors file")
    (tmp_path / "model.safetensors").unlink()
    refused(tmp_path, "not a readable safetensors file")


@pytest.mark.parametrize(
    "change",
    [
        {"width": 8},
        {"backbone": "resnet18", "width": None},
        {"kind": "classifier"},
        {"mean": None},
    ],
)
def test_files_that_do_not_fit_their_description_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    files.save(small(), tmp_path)
    description = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(description | change))
    refused(tmp_path, "does not fit its description")


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '{"kind": "transformer"}'])
def test_descriptions_that_describe_nothing_are_refused(text: str, tmp_path: Path) -> None:
    files.save(small(), tmp_path)
    (tmp_path / "model.json").write_text(text)
    refused(tmp_path, "does not fit its description")


def test_a_missing_or_reshaped_tensor_is_refused(tmp_path: Path) -> None:
    files.save(small(), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = "backbone.layer4.conv2.weight"
    for wrong in (
        {n: t for n, t in state.items() if n != name},
        state | {name: state[name][:, :1].contiguous()},
        state | {"extra": torch.zeros(1)},
    ):
        save_file(wrong, tmp_path / "model.safetensors")
        refused(tmp_path, "does not fit its description")


def test_other_modules_cannot_be_described() -> None:
    with pytest.raises(ConfigError, match="cannot describe a Linear"):
        files.describe(nn.Linear(2, 2))


# Foreign checkpoints


def test_a_foreign_state_dict_is_adopted(tmp_path: Path) -> None:
    source = small(seed=3)
    path = tmp_path / "foreign.pth"
    torch.save(source.state_dict(), path)
    adopted = files.adopt(path, small())
    assert all(
        torch.equal(a, b) for a, b in zip(adopted.state_dict().values(), source.state_dict().values(), strict=True)
    )
    assert not adopted.training


def test_a_foreign_file_s_own_names_are_translated(tmp_path: Path) -> None:
    source = small(seed=3)
    path = tmp_path / "foreign.pth"
    torch.save({"epoch": 3, "model": {f"module.{n}": t for n, t in source.state_dict().items()}}, path)
    adopted = files.adopt(path, small(), names={"module.": ""}, entry="model")
    assert torch.equal(adopted.backbone.layer4.conv2.weight, source.backbone.layer4.conv2.weight)


class Payload:
    """What an attacker would put into a checkpoint; unpickling it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_an_object_in_a_foreign_file_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "foreign.pth", tmp_path / "trace"
    torch.save({**small().state_dict(), "payload": Payload(trace)}, path)
    with pytest.raises(StoreError, match=r"cannot be adopted.*only tensors") as caught:
        files.adopt(path, small())
    assert len(str(caught.value).splitlines()) == 1
    assert not trace.exists()
    torch.load(path, weights_only=False)  # it would have run
    assert trace.exists()


def test_foreign_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.pth"
    for content, options in (
        (small(width=8).state_dict(), {}),
        ({f"module.{n}": t for n, t in small().state_dict().items()}, {}),
        (small().state_dict(), {"entry": "model"}),
        ([1, 2], {}),
    ):
        torch.save(content, path)
        with pytest.raises(StoreError, match="cannot be adopted") as caught:
            files.adopt(path, small(), **options)
        assert len(str(caught.value).splitlines()) == 1
    for wrong in (b"", b"not a checkpoint"):
        path.write_bytes(wrong)
        with pytest.raises(StoreError, match="cannot be adopted"):
            files.adopt(path, small())
    with pytest.raises(StoreError, match="cannot be adopted"):
        files.adopt(tmp_path / "nothing.pth", small())


# Downstream models


def test_a_head_is_kept_without_its_trunk(tmp_path: Path) -> None:
    host = small()
    classifier = Classifier(host, 5, hidden=(6,)).eval()
    files.save_downstream(classifier, host, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["head.safetensors", "model.json"]
    loaded = files.load_downstream(tmp_path, host)
    assert loaded.encoder is host
    with torch.no_grad():
        assert torch.equal(loaded(pictures()), classifier(pictures()))


def test_a_fine_tuned_downstream_model_is_kept_whole(tmp_path: Path) -> None:
    classifier = Classifier(small(seed=4), 5).eval()
    files.save_downstream(classifier, small(), tmp_path)
    loaded = files.load_downstream(tmp_path, small())
    with torch.no_grad():
        assert torch.equal(loaded(pictures()), classifier(pictures()))


def test_downstream_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    host = small()
    files.save_downstream(Classifier(host, 5), host, tmp_path)
    with pytest.raises(StoreError, match="cannot be read"):
        files.load_downstream(tmp_path, small(width=8))
    with pytest.raises(StoreError, match="host is a Linear"):
        files.load_downstream(tmp_path, nn.Linear(2, 2))
    (tmp_path / "head.safetensors").unlink()
    files.save(host, tmp_path)
    with pytest.raises(StoreError, match="holds a Encoder where a downstream classifier belongs"):
        files.load_downstream(tmp_path, host)
