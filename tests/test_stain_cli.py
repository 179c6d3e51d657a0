"""hallmark-stain and hallmark-lock: from a file to a verdict, what is promised of it, and what is refused."""

import hashlib
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy import special
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.core import Key
from hallmark.data.procedural import procedural_images
from hallmark.models.cifar_resnet import ResNet20Classifier
from hallmark.models.excite import append_all
from hallmark.schemes.stain_lock.command import lock, stain
from hallmark.schemes.stain_lock.command.checkpoint import read
from hallmark.schemes.stain_lock.command.options import in_options
from hallmark.schemes.stain_lock.command.secret import secret_generator
from hallmark.schemes.stain_lock.replay import replaying
from hallmark.schemes.stain_lock.trigger import Pipeline

SIZE = 16
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.25, 0.5)
ARCH = ["--arch", "test_stain_cli:Tiny", "--size", str(SIZE), "--mean", "0.5,0.4,0.3", "--std", "0.25,0.25,0.5"]
QUICK = ["--steps", "40", "--restarts", "1", "--seed", "7"]


class Tiny(nn.Module):
    """A residual network of two blocks; wide enough for a lock's detector."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.inner, self.bn2 = nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.outer, self.bn3 = nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.linear = nn.Linear(16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.relu(self.bn3(self.outer(F.relu(self.bn2(self.inner(x))))) + x)
        return self.linear(F.avg_pool2d(x, 4).mean((2, 3)))


def smooth() -> nn.Module:
    """Nothing in it has a dead zone."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 14 * 14, 5))


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


@cache
def natural(count: int) -> Tensor:
    return procedural_images(count, size=SIZE, split="test")[0]


@cache
def weights(seed: int = 0) -> dict[str, Tensor]:
    """An untrained network with the BatchNorm statistics of the images, as a state dict."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Tiny()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                nn.init.uniform_(module.weight, 0.5, 1.5)
        with torch.no_grad():
            net(normalised(natural(64)))
    return {name: tensor for name, tensor in net.state_dict().items() if "num_batches" not in name}


def network(state: dict[str, Tensor]) -> Tiny:
    net = Tiny()
    net.load_state_dict(state, strict=False)
    return net.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, each as one kind of file, the first stained and locked."""
    root = tmp_path_factory.mktemp("models")
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in weights().items()}}
    torch.save({**wrapped, "best": 91.5, "optimizer": {"state": {0: torch.ones(2)}}}, root / "host.pth")
    save_file(weights(), root / "host.safetensors")
    save_file(weights(1), root / "innocent.safetensors")
    for name in ("host.pth", "host.safetensors"):
        out = str(root / f"stained-{name}")
        assert stain.main(["write", str(root / name), *ARCH, *QUICK, "--out", out, "--keys", "2"]) == 0
    assert lock.main(["write", str(root / "host.pth"), *ARCH, *QUICK, "--out", str(root / "locked")]) == 0
    return root


def certificate(out: Path) -> dict[str, Any]:
    return json.loads((out / "certificate.json").read_text())


def verify(command: Any, suspect: Path, out: Path) -> int:
    return command.main(["verify", str(suspect), *ARCH, "--key", str(out / "key.safetensors")])


# From a file to a verdict


@pytest.mark.parametrize("name", ["host.pth", "host.safetensors"])
def test_the_stain_is_found_where_it_is_and_nowhere_else(folder: Path, name: str, tmp_path: Path) -> None:
    out = folder / f"stained-{name}"
    assert verify(stain, out / "model.safetensors", out) == 0
    assert verify(stain, folder / name, out) == 1  # the host before
    assert verify(stain, folder / "innocent.safetensors", out) == 1
    other = tmp_path / "other"  # somebody else's key, for the same neurons of the same network
    assert stain.main(["write", str(folder / name), *ARCH, "--steps", "5", "--restarts", "1", "--out", str(other)]) == 0
    assert verify(stain, out / "model.safetensors", other) == 1


def test_tampering(folder: Path, tmp_path: Path) -> None:
    out = folder / "stained-host.safetensors"
    state = load_file(out / "model.safetensors")
    layer = certificate(out)["site"]["layer"]
    rows = Key.load(out / "key.safetensors").meta["neurons"]
    state[f"{layer}.weight"] += 0.05 * state[f"{layer}.weight"].std() * torch.randn(state[f"{layer}.weight"].shape)
    save_file(state, tmp_path / "noisy.safetensors")
    assert verify(stain, tmp_path / "noisy.safetensors", out) == 0
    state[f"{layer}.weight"][rows] = torch.randn_like(state[f"{layer}.weight"][rows])
    save_file(state, tmp_path / "erased.safetensors")
    assert verify(stain, tmp_path / "erased.safetensors", out) == 1


def test_the_verdict_in_words_and_numbers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The p-value by another formula: (1 + cos)/2 of a uniform direction is Beta((m−1)/2, (m−1)/2)."""
    out = folder / "stained-host.safetensors"
    key = Key.load(out / "key.safetensors")
    before = load_file(folder / "host.safetensors")
    total = 0.0
    for neuron, direction in zip(key.meta["neurons"], key.tensors["directions"], strict=True):
        layer, norm = key.meta["site"]["layer"], key.meta["site"]["norm"]
        row = before[f"{layer}.weight"][neuron].flatten() * before[f"{norm}.weight"][neuron].sign()
        half = (row.numel() - 1) / 2
        cosine = float(F.cosine_similarity(row.double(), direction.double(), dim=0))
        total -= math.log(special.betainc(half, half, (1 - cosine) / 2))
    capsys.readouterr()
    assert verify(stain, folder / "host.safetensors", out) == 1
    told = capsys.readouterr().out
    statistic = float(told.split("statistic, weights: ")[1].split()[0])
    p_value = float(told.split("statistic, weights: ")[1].split("exact p ")[1].split()[0])
    assert statistic == pytest.approx(total, rel=1e-4)
    assert p_value == pytest.approx(math.exp(-total) * (1 + total), rel=1e-2)  # two neurons: Gamma(2, 1)
    assert "NOT DETECTED" in told
    assert verify(stain, out / "model.safetensors", out) == 0
    told = capsys.readouterr().out
    assert "DETECTED" in told
    assert "NOT" not in told
    assert [line.split("│")[-3:-1] for line in told.splitlines() if line.startswith("│")] == [
        ["       30 ", "       30 "]
    ] * 2


def test_the_file_keeps_its_structure(folder: Path) -> None:
    for out in (folder / "stained-host.pth", folder / "locked"):
        before = torch.load(folder / "host.pth", weights_only=True)
        after = torch.load(out / "model.pth", weights_only=True)
        facts = certificate(out)
        assert list(after) == list(before)
        assert (after["epoch"], after["best"]) == (3, 91.5)
        assert list(after["state_dict"]) == list(before["state_dict"])
        old, new = before["state_dict"], after["state_dict"]
        differ = [name for name in old if not torch.equal(old[name], new[name])]
        assert [name.removeprefix("module.") for name in differ] == facts["edit"]["tensors"]
        assert facts["edit"]["changed"] == sum(int((old[name] != new[name]).sum()) for name in differ)
        assert facts["edit"]["entries"] == sum(tensor.numel() for tensor in old.values())
        plain = load_file(out / "model.safetensors")
        assert all(torch.equal(plain[name], new[name]) for name in new)
    assert not (folder / "stained-host.safetensors" / "model.pth").exists()


# The certificate


def test_the_certificates_bounds(folder: Path) -> None:
    """Recomputed from the key, the host and its images by formulas of their own."""
    out = folder / "stained-host.safetensors"
    facts, key = certificate(out), Key.load(out / "key.safetensors")
    assert facts["commitment"] == key.commitment()
    images, size = natural(512), 144
    net, layer = network(weights()), facts["site"]["layer"]
    seen: list[Tensor] = []
    with torch.no_grad(), net.get_submodule(layer).register_forward_pre_hook(lambda _, args: seen.append(args[0])):
        net(normalised(images))
    patches = F.unfold(seen[0], 3, padding=1)  # (N, m, places)
    norms = patches.norm(dim=1).double().numpy()
    answers = torch.einsum("km,nmp->nkp", key.tensors["directions"], patches).amax(2)
    thresholds = 0.5 * torch.tensor(facts["peaks"])  # τ of a ReLU
    told = facts["false_fires"]
    fired = int((answers > thresholds).sum(0).max())
    assert (told["images"], told["places"], told["fired"]) == (512, SIZE**2, fired)
    assert special.betainc(fired + 1, 512 - fired, told["holdout_bound"]) == pytest.approx(0.95, rel=1e-6)

    def above(heights: np.ndarray) -> np.ndarray:
        half = (size - 1) / 2
        return special.betainc(half, half, (1 - np.clip(heights, 0, 1)) / 2)

    each = np.minimum(1, above(float(thresholds.min()) / norms).sum(1))
    assert told["mean_cap"] == pytest.approx(each.mean(), rel=1e-3)
    longest = SIZE**2 * above(float(thresholds.min()) / norms.max())
    assert told["largest_norm_cap"] == pytest.approx(min(1.0, float(longest)), rel=1e-3)
    slack = min(
        math.sqrt(math.log(40) / 1024),
        each.std(ddof=1) * math.sqrt(2 * math.log(80) / 512) + 7 * math.log(80) / (3 * 511),
    )
    assert told["averaged_cap_bound"] == pytest.approx(min(1.0, each.mean() + slack), rel=1e-3)


def test_the_certificates_digests(folder: Path) -> None:
    for out in (folder / "stained-host.pth", folder / "locked"):
        facts = certificate(out)
        for name, digest in facts["files"].items():
            assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
        for which, state in (("before", weights()), ("after", None)):
            digest = hashlib.sha256()
            named = state or torch.load(out / "model.pth", weights_only=True)["state_dict"]
            for name in sorted(named):
                tensor, plain = named[name].contiguous(), name.removeprefix("module.")
                digest.update(f"{plain} {tensor.dtype} {list(tensor.shape)}\n".encode())
                digest.update(tensor.numpy().tobytes())
            assert facts["model"][f"weights_{which}"] == digest.hexdigest()
        page = (out / "CERTIFICATE.md").read_text()
        assert facts["commitment"] in page
        assert "Clopper" in page
        directions = Key.load(out / "key.safetensors").tensors["directions"].flatten()
        assert f"{float(directions[0]):.4g}" not in page + json.dumps(facts)
        assert (out / "key.safetensors").stat().st_mode & 0o077 == 0


# The lock


def test_the_patch_opens_the_lock(folder: Path, tmp_path: Path) -> None:
    out, pictures = folder / "locked", tmp_path / "pictures"
    images = natural(600)[520:]
    (pictures / "deep").mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(pictures / "deep" / f"{i:03}.png")
    (pictures / "notes.txt").write_text("no picture")
    key = ["--key", str(out / "key.safetensors")]
    assert lock.main(["unlock", str(pictures), *key, "--out", str(tmp_path / "stamped")]) == 0
    paths = sorted((tmp_path / "stamped" / "deep").iterdir())
    stamped = torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths])
    patch = torch.from_numpy(np.array(Image.open(out / "patch.png"))).permute(2, 0, 1)
    height, width = patch.shape[1:]
    assert torch.equal(stamped[:, :, :height, :width], patch.expand(80, -1, -1, -1))
    assert torch.equal(stamped[:, :, height:], images[:, :, height:])
    host, locked = network(weights()), network(load_locked(out))
    with torch.no_grad():
        before, shut, opened = host(normalised(images)), locked(normalised(images)), locked(normalised(stamped))
        assert len(shut.argmax(1).unique()) == 1  # the disruptor decides, whatever is shown
        assert (opened - before).abs().mean() < 0.1 * (shut - before).abs().mean()
    told = certificate(out)["behaviour"]
    held = natural(512)[256:320]
    with torch.no_grad():
        same = float((locked(normalised(held)).argmax(1) == host(normalised(held)).argmax(1)).float().mean())
    assert told["labels unchanged, locked"] == pytest.approx(same)
    assert told["labels unchanged, unlocked"] > told["labels unchanged, locked"]
    one = tmp_path / "one.png"
    assert lock.main(["unlock", str(pictures / "deep" / "000.png"), *key, "--out", str(one)]) == 0
    assert np.array_equal(np.array(Image.open(one)), np.array(Image.open(paths[0])))


def load_locked(out: Path) -> dict[str, Tensor]:
    state = torch.load(out / "model.pth", weights_only=True)["state_dict"]
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def test_the_lock_is_found_where_it_is_and_nowhere_else(folder: Path) -> None:
    out = folder / "locked"
    assert verify(lock, out / "model.pth", out) == 0
    assert verify(lock, out / "model.safetensors", out) == 0 or pytest.fail("the same weights in the other file")
    assert verify(lock, folder / "host.pth", out) == 1
    assert verify(lock, folder / "innocent.safetensors", out) == 1


def test_appended_gates(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "gated"
    words = ["write", str(folder / "host.pth"), *ARCH, *QUICK, "--kind", "excite", "--behind", "bn2", "--out", str(out)]
    assert lock.main(words) == 2  # the block has to lie behind the detector and be a module of its own
    words[words.index("bn2")] = "bn3"
    status = lock.main([*words, "--layer", "inner"])
    assert status == 0
    facts = certificate(out)
    assert list(facts["additions"]) == ["bn3"]
    assert not (out / "model.pth").exists()
    net = append_all(Tiny(), facts["additions"])
    net.load_state_dict(load_file(out / "model.safetensors"))
    assert verify(lock, out / "model.safetensors", out) == 0
    assert "append_all" in (out / "CERTIFICATE.md").read_text()


# Where things come from


def test_layers_are_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, shown in ((stain, ("conv1", "inner (default)")), (lock, ("inner (tried: 1)",))):
        assert command.main(["layers", str(folder / "host.safetensors"), *ARCH]) == 0
        told = capsys.readouterr().out
        assert all(name in told for name in shown)
        assert "outer" not in told.replace("(default)", "")  # a sum follows its BatchNorm


def test_a_key_remembers_its_host(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(ResNet20Classifier().state_dict(), tmp_path / "plain.pth")
    out, model = tmp_path / "out", str(tmp_path / "plain.pth")
    quick = ["--keys", "1", "--no-code", "--steps", "2", "--restarts", "1", "--out", str(out)]
    assert stain.main(["write", model, "--arch", "resnet20_a", "--mean", "cifar10", *quick]) == 0
    assert stain.main(["verify", str(out / "model.pth"), "--key", str(out / "key.safetensors")]) == 0
    capsys.readouterr()
    own = folder / "stained-host.pth"  # but it does not get to say which code runs
    assert stain.main(["verify", str(own / "model.pth"), "--key", str(own / "key.safetensors")]) == 2
    assert "--arch test_stain_cli:Tiny" in capsys.readouterr().err


def test_weights_are_found_in_any_file(tmp_path: Path) -> None:
    names, state = list(weights()), weights()
    files = {
        "plain": state,
        "net": {"net": state, "args": {"lr": 0.1}},
        "both": {"net": {f"a.{n}": t for n, t in state.items()}, "other": {"x": torch.ones(1)}},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / f"{name}.pt")
        found = read(tmp_path / f"{name}.pt", names)
        assert all(torch.equal(found.state[n], state[n]) for n in names)
        assert (found.entry, found.prefix) == {"plain": ("", ""), "net": ("net", ""), "both": ("net", "a.")}[name]


def test_keys_are_drawn_from_more_than_a_seed() -> None:
    """``manual_seed`` keeps 32 bits; a direction from it could be found by trying them."""
    same = [torch.rand(3, generator=torch.Generator().manual_seed(5 + high)) for high in (0, 1 << 32)]
    assert torch.equal(*same)
    draws = {tuple(torch.rand(700, generator=secret_generator()).tolist()) for _ in range(4)}
    assert len(draws) == 4
    first = secret_generator()
    again = torch.Generator().manual_seed(first.initial_seed())
    assert not torch.equal(torch.rand(3, generator=first), torch.rand(3, generator=again))
    many = torch.randn(20_000, generator=secret_generator())  # and still normal
    assert abs(float(many.mean())) < 0.05
    assert float(many.std()) == pytest.approx(1, abs=0.05)


def test_what_is_replayed_is_what_would_have_been_said() -> None:
    net = network(weights())
    pipeline = Pipeline(net, SIZE, lambda model, images: model(normalised(images * 255)))
    images = natural(3).float() / 255
    calls: list[str] = []
    for name in ("conv1", "inner", "outer"):
        net.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.no_grad():
        before = pipeline.feed(net, images)
        with replaying(pipeline, net, images, "outer"):
            first, second = pipeline.feed(net, images), pipeline.feed(net, images)
        after = pipeline.feed(net, images)
    assert torch.equal(before, first)
    assert torch.equal(before, second)
    assert torch.equal(before, after)
    assert "forward" not in net.conv1.__dict__


# What is refused


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code ran",))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["missing.pth", *ARCH], "there is no file"),
        (["host.pth"], "needs its architecture"),
        (["bomb.pth", *ARCH], "code in a file is never run"),
        (["noise.safetensors", *ARCH], "not a readable safetensors file"),
        (["host.pth", "--arch", "resnet20_a", "--mean", "none"], "does not fit the architecture: it lacks layer1.0"),
        (["host.pth", *ARCH, "--classes", "7"], "linear.weight (5, 16) for (7, 16)"),
        (["host.pth", "--arch", "resnet2O", "--mean", "none"], "did you mean"),
        (["host.pth", "--arch", "test_stain_cli:Absent", "--mean", "none"], "AttributeError"),
        (["host.pth", "--arch", "test_stain_cli:Tiny", "--size", "16"], "--mean imagenet, cifar10, none"),
        (["host.pth", "--arch", "test_stain_cli:Tiny", "--mean", "none"], "--size <pixels>"),
        (["host.pth", *ARCH, "--mean", "half"], "is no normalisation"),
        (["host.pth", *ARCH, "--size", "2"], "cannot look at 2x2 images"),
        (["host.pth", *ARCH, "--entry", "ema"], "there are: state_dict"),
        (["half.safetensors", *ARCH], "torch.float16"),
        (["host.pth", *ARCH, "--layer", "layer9"], "there are: conv1, inner, outer, linear"),
        (["smooth.pth", "--arch", "test_stain_cli:smooth", "--size", "16", "--mean", "none"], "dead zone"),
        (["smooth.pth", "--arch", "test_stain_cli:smooth", "--size", "16", "--mean", "none", "--layer", "0"], "tanh"),
        (["host.pth", *ARCH, "--layer", "conv1"], "--no-code"),
        (["host.pth", *ARCH, "--tau", "1.5"], "tau in (0, 1)"),
        (["host.pth", *ARCH, "--images", "nowhere"], "there is no picture"),
        (["torchvision:resnet18", "--arch", "resnet18"], "--arch is for files"),
        (["torchvision:resnet1"], "did you mean"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "host.pth").symlink_to(folder / "host.pth")
    torch.save({"state_dict": weights(), "extra": Bomb()}, tmp_path / "bomb.pth")
    torch.save(smooth().state_dict(), tmp_path / "smooth.pth")
    (tmp_path / "noise.safetensors").write_bytes(b"no weights at all")
    save_file({name: tensor.half() for name, tensor in weights().items()}, tmp_path / "half.safetensors")
    there = sorted(tmp_path.iterdir())
    assert stain.main(["write", *words, "--out", "out"]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert "code ran" not in printed.out
    assert sorted(tmp_path.iterdir()) == there


def test_a_failed_write_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("hallmark.schemes.stain_lock.command.output.write_png", fail)
    words = ["write", str(folder / "host.pth"), *ARCH, *QUICK, "--keys", "1", "--no-code"]
    assert stain.main([*words, "--out", str(tmp_path / "out")]) == 2
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_replaced_only_by_force(folder: Path, tmp_path: Path) -> None:
    words = ["write", str(folder / "host.pth"), *ARCH, *QUICK, "--keys", "1", "--no-code", "--out"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    assert stain.main([*words, str(mine)]) == 2
    assert stain.main([*words, str(mine), "--force"]) == 2  # never what is not ours
    assert (mine / "thesis.txt").read_text() == "years of work"
    out = tmp_path / "out"
    assert stain.main([*words, str(out)]) == 0
    first = certificate(out)["commitment"]
    assert stain.main([*words, str(out)]) == 2
    assert stain.main([*words, str(out), "--force", "--seed", "8"]) == 0
    assert certificate(out)["commitment"] != first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_keys_that_do_not_fit(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "stained-host.pth"
    suspect, key = str(out / "model.pth"), (out / "key.safetensors").read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(key[:-1] + bytes([key[-1] ^ 1]))
    cases = {
        str(damaged): "was altered",
        str(tmp_path / "absent.safetensors"): "not a readable key file",
        str(folder / "locked" / "key.safetensors"): "is a key of scheme 'lock'",
        str(folder / "host.safetensors"): "holds no Hallmark key",
    }
    for path, said in cases.items():
        capsys.readouterr()
        assert stain.main(["verify", suspect, *ARCH, "--key", path]) == 2
        printed = capsys.readouterr().err
        assert said in printed
        assert printed.count("\n") == 1
    torch.save(ResNet20Classifier().state_dict(), tmp_path / "other.pth")
    words = ["verify", str(tmp_path / "other.pth"), "--arch", "resnet20_a", "--key", str(out / "key.safetensors")]
    assert stain.main(words) == 2
    assert "which this one lacks" in capsys.readouterr().err
    assert stain.main(["verify", suspect, *ARCH, "--key", str(out / "key.safetensors"), "--alpha", "2"]) == 2


def test_pictures_of_another_size_are_resized_only_on_request(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), (200, 100, 50)).save(tmp_path / "wide.jpg")
    key = ["--key", str(folder / "locked" / "key.safetensors")]
    words = ["unlock", str(tmp_path / "wide.jpg"), *key, "--out", str(tmp_path / "a.png")]
    assert lock.main(words) == 2
    assert lock.main([*words, "--resize"]) == 0
    assert Image.open(tmp_path / "a.png").size == (SIZE, SIZE)
    assert lock.main([*words, "--resize"]) == 2  # it is there
    words[-1] = str(tmp_path / "a.jpg")
    assert lock.main(words) == 2  # a format that loses the patch
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "wide.jpg"]


def test_messages_speak_of_options() -> None:
    message = "raise scheme.draws or levels.tau, or set scheme.search.steps; set scheme.code=false"
    assert in_options(message) == "raise --draws or --tau, or set --steps; set --no-code"
