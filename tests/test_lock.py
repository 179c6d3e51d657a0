"""lock: conduits, disruptors, patches and what they cost, by exact algebra on untrained networks."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from scipy import stats as scipy_stats
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.core import Access, HostKind, Key, Suspect, extract_all, generator
from hallmark.data.images import ImageSet
from hallmark.data.procedural import procedural_images
from hallmark.errors import ConfigError
from hallmark.models import Classifier, Encoder
from hallmark.models.excite import Excite, Excited, additions, append_all, moved
from hallmark.models.inference import Answering
from hallmark.schemes.stain_lock import Levels, Lock, Pipeline, Search
from hallmark.schemes.stain_lock.detector import natural_peaks, replace
from hallmark.schemes.stain_lock.editing import edit, signal
from hallmark.schemes.stain_lock.locking import draw_disruptors, logit_moves, surprises, unlock
from hallmark.schemes.stain_lock.site import Site
from hallmark.schemes.stain_lock.surgery import Surgery
from hallmark.schemes.stain_lock.trigger import Box, field, find_triggers
from hallmark.stats import Ranked, verify

SIZE = 16
QUICK = Search(steps=30, restarts=1, backgrounds=4)


@cache
def owner(count: int = 48) -> ImageSet:
    return ImageSet("procedural", procedural_images(count, size=SIZE)[0], torch.full((count,), -1), 10)


class Padded(nn.Module):
    """A residual network whose shortcuts drop every second pixel and pad channels (He 2016, option A)."""

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.stride = 2 if inputs != outputs else 1
            self.pad = (outputs - inputs) // 2
            self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(outputs)
            self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            if self.stride > 1:
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
            return F.relu(y + x)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(self.Block(8, 8), self.Block(8, 16), self.Block(16, 16))
        self.linear = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.conv(images))))
        return self.linear(F.avg_pool2d(x, x.shape[3]).flatten(1))


class Separable(nn.Module):
    """A convolution of each channel by itself between two ordinary ones, and a frozen BatchNorm's kind of bias."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.each = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 2, 1, groups=8)
        self.two, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.two(F.relu(self.each(F.relu(self.one(images))))))
        return self.head(x.mean((2, 3)))


def vgg() -> nn.Module:
    """Convolutions, pooling, a flattening, two hidden linear layers."""
    features = [nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2)]
    features += [nn.Conv2d(8, 12, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    head = [nn.Linear(192, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 10)]
    return nn.Sequential(*features, *head)


class Transformer(nn.Module):
    """Two blocks of a vision transformer with a class token, as torchvision builds them."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
            self.mlp = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Dropout(), nn.Linear(32, width), nn.Dropout())

        def forward(self, x: Tensor) -> Tensor:
            y = self.ln_1(x)
            y, _ = self.attention(y, y, y, need_weights=False)
            x = x + y
            return x + self.mlp(self.ln_2(x))

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.width = width
        self.project = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.place = nn.Parameter(torch.randn(1, 17, width) * 0.1)
        self.blocks = nn.Sequential(self.Block(width), self.Block(width))
        self.ln, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.project(images).reshape(images.shape[0], self.width, -1).permute(0, 2, 1)
        x = torch.cat([self.token.expand(images.shape[0], -1, -1), x], dim=1) + self.place
        return self.head(self.ln(self.blocks(x))[:, 0])


def settle(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
        net.train()(owner().images.float() / 255)
    return net.eval()


HOSTS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "resnet": (lambda: Classifier(Encoder("resnet_small", 8), 10), "layer1.conv1"),
    "hidden head": (lambda: Classifier(Encoder("resnet_small", 8), 10, [12]), "layer1.conv1"),
    "padded": (Padded, "blocks.0.conv1"),
    "vgg": (vgg, "2"),
    "separable": (Separable, "one"),
    "transformer": (Transformer, "blocks.0.mlp.0"),
}


@cache
def make(host: str) -> nn.Module:
    """An untrained network, never changed by any test."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return settle(HOSTS[host][0]())


def scheme(host: str, **changes: Any) -> Lock:
    base = {"draws": 4, "tolerance": 0.999, "search": QUICK, "natural": 48, "queries": 4}
    if host == "transformer":
        base |= {"start": 1, "patch": 4}
    return Lock(**{"layer": HOSTS[host][1], **base, **changes})


@cache
def locked(host: str, **changes: Any) -> tuple[nn.Module, nn.Module, Key]:
    """The edited and the locked network, and the key."""
    lock = scheme(host, **changes)
    key = lock.keygen(make(host), owner(), generator=generator(0, "key"))
    model, key = lock.embed(make(host), key, owner(), trainer=None, generator=generator(0, "embed"))
    return lock.edited(make(host), owner()), model, key


def quiet(edited: nn.Module, key: Key) -> Tensor:
    """Images on which no detector fires but at its own patch."""
    inner = Pipeline(edited, SIZE)
    site = Site.recorded(key.meta["site"], edited)
    silent = torch.ones(len(owner()), dtype=torch.bool)
    for lock, peak in enumerate(key.meta["peaks"]):
        pasted = unlock(owner().images, key)
        with torch.no_grad():
            maps = torch.cat(
                [site.project(edited, x, key.tensors["directions"][lock]) for x in inner.natural(site.layer, pasted)]
            )
        fires = (maps > key.meta["tau"] * peak).flatten(1).sum(1)
        silent &= fires == 1
    return owner().images[silent]


INTERNAL = ["resnet", "hidden head", "padded", "vgg", "separable"]
EXCITE = [
    ("resnet", "layer1"),
    ("resnet", "layer3"),
    ("padded", "blocks.0"),
    ("padded", "blocks"),
    ("vgg", "3"),
    ("vgg", "7"),
    ("transformer", "blocks.0"),
]


# Conduits


@pytest.mark.parametrize("kind", INTERNAL)
def test_the_signal_arrives_as_the_detector_sent_it(kind: str) -> None:
    """At the logits: the detector's value where the map was flattened, its share of the map where it was averaged."""
    edited = edit(Pipeline(make(kind), SIZE), scheme(kind), owner().images)
    model = edited.surgery.fork()
    inside = Pipeline(edited.surgery.model, SIZE)
    box = field(inside, edited.site, (0, 0), generator=generator(0))
    direction = torch.randn(1, edited.site.size(make(kind)), generator=generator(1))
    patch, peak = find_triggers(inside, edited.site, direction, QUICK, generator=generator(2), at=(0, 0), box=box)
    replace(model, edited.site, edited.neurons[0], direction[0], float(peak), Levels(0.999, 5.0))  # only its peak fires
    images = box.paste(owner().images, patch).float() / 255
    with torch.no_grad():
        arriving = signal(inside, edited, edited.arrivals[0], edited.readers[0], images, model=model.model)
        silent = signal(inside, edited, edited.arrivals[0], edited.readers[0], images)
    places = {"resnet": 4, "hidden head": 4, "padded": 64, "vgg": 1, "separable": 64}[kind]
    assert float(arriving.median()) == pytest.approx(5 / places, rel=1e-3)  # at rest it is at -5000, in float32
    assert float(silent.abs().max()) == 0


def test_every_conduit_is_as_long_as_it_must_be() -> None:
    def layers(kind: str) -> list[str]:
        edited = edit(Pipeline(make(kind), SIZE), scheme(kind), owner().images)
        return [name.removeprefix("encoder.backbone.") for name, _ in edited.arrivals[0].used]

    assert layers("padded") == ["blocks.0.conv1", "blocks.0.conv2"]  # from there on all shortcuts are free
    shortcuts = [f"layer{n}.shortcut.0" for n in (2, 3, 4)]
    assert layers("resnet") == ["layer1.conv1", "layer1.conv2", *shortcuts]
    assert layers("vgg") == ["2", "5", "10", "13"]
    assert layers("separable") == ["one", "two"]


@pytest.mark.parametrize(("kind", "name", "norm"), [("vgg", "5", ""), ("padded", "blocks.1.conv1", "blocks.1.bn1")])
def test_what_is_forgotten_is_remembered_on_average(kind: str, name: str, norm: str) -> None:
    """A reader's mean output stays when an input is cleared, in its bias or in the running mean behind it."""
    host = make(kind)
    levels = Pipeline(host, SIZE).levels(owner().images)
    given: list[Tensor] = []
    with torch.no_grad(), host.get_submodule(name).register_forward_pre_hook(lambda _, args: given.append(args[0])):
        host(owner().images.float() / 255)
    torch.testing.assert_close(levels[name].mean.float(), given[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    spread = given[0].transpose(0, 1).flatten(1).std(1, correction=0)
    torch.testing.assert_close(levels[name].deviation.float(), spread, rtol=1e-3, atol=1e-4)
    surgery = Surgery(host)
    surgery.keep_means(name, slice(2, 4), levels[name].mean, norm)
    surgery.clear_columns(name, slice(2, 4))

    def inner(net: nn.Module) -> Tensor:
        layer = net.get_submodule(name)
        flat = levels[name].mean.float()[None, :, None, None].expand(-1, -1, 3, 3)  # every place at its mean
        out = F.conv2d(flat, layer.weight, layer.bias)
        return net.get_submodule(norm)(out) if norm else out

    with torch.no_grad():
        torch.testing.assert_close(inner(surgery.model), inner(host), rtol=1e-4, atol=1e-4)


# The internal lock


@pytest.mark.parametrize("kind", INTERNAL)
def test_unlocked_is_edited(kind: str) -> None:
    edited, model, key = locked(kind)
    images = quiet(edited, key)
    assert len(images) >= 4
    patched = unlock(images, key).float() / 255
    with torch.no_grad():
        torch.testing.assert_close(model(patched), edited(patched), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", INTERNAL)
def test_locked_is_useless(kind: str) -> None:
    """Whatever the image, and with a random or a shifted patch too: one answer."""
    _, model, key = locked(kind, tolerance=0.5, levels=Levels(0.9, 20.0))
    side = key.tensors["patch.0"].shape[-1]
    box = Box(*key.meta["boxes"][0])
    noise = torch.randint(0, 256, (len(owner()), 3, side, side), generator=generator(5)).to(torch.uint8)
    shifted = Box(3, 3, 3 + side, 3 + side).paste(owner().images, key.tensors["patch.0"][None])
    for images in (owner().images, box.paste(owner().images, noise), shifted):
        with torch.no_grad():
            answers = model(images.float() / 255).argmax(1)
        top = answers.bincount().max()
        assert int(top) >= 0.9 * len(answers)
        assert int(answers.mode().values) == int(key.tensors["disruptors"][0].argmax())


def test_the_disruptor_is_the_difference() -> None:
    edited, model, key = locked("vgg")
    images = quiet(edited, key)
    site = Site.recorded(key.meta["site"], edited)
    peaks = natural_peaks(Pipeline(edited, SIZE), site, key.tensors["directions"][0], images)[:, 0]
    images = images[peaks < key.meta["tau"] * key.meta["peaks"][0]].float() / 255
    with torch.no_grad():
        moved = model(images) - edited(images)
    expected = moved[:1].expand_as(moved)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(F.normalize(moved[0], dim=0), key.tensors["disruptors"][0], rtol=0, atol=1e-4)


def test_a_disruptor_favours_one_answer() -> None:
    chosen = draw_disruptors(200, 16, 10, generator=generator(0))
    single = draw_disruptors(200, 1, 10, generator=generator(0))
    lead = [float((c.topk(2).values @ torch.tensor([1.0, -1.0])).mean()) for c in (chosen, single)]
    assert lead[0] > 2 * lead[1]
    torch.testing.assert_close(chosen.norm(dim=1), torch.ones(200))


def test_several_locks_need_all_patches() -> None:
    edited, model, key = locked("resnet", locks=2, draws=16, levels=Levels(0.9, 20.0))
    assert len(set(map(tuple, key.meta["boxes"]))) == 2
    images = quiet(edited, key)
    assert len(images) >= 4
    both = unlock(images, key).float() / 255
    with torch.no_grad():
        torch.testing.assert_close(model(both), edited(both), rtol=0, atol=2e-4)
        for only in (0, 1):
            one = unlock(images, key, only=only).float() / 255
            assert float((model(one) - edited(one)).abs().amax(1).min()) > 1


# The Squeeze-and-Excite lock


@pytest.mark.parametrize(("host", "behind"), EXCITE)
def test_open_gates_are_exact(host: str, behind: str) -> None:
    edited, model, key = locked(host, kind="excite", behind=behind)
    patched = unlock(owner().images[:24], key).float() / 255
    with torch.no_grad():
        assert torch.equal(model(patched), edited(patched))


@pytest.mark.parametrize(("host", "behind"), EXCITE)
def test_shut_gates_let_nothing_pass(host: str, behind: str) -> None:
    edited, model, key = locked(host, kind="excite", behind=behind)
    site = Site.recorded(key.meta["site"], edited)
    peaks = natural_peaks(Pipeline(edited, SIZE), site, key.tensors["directions"][0], owner().images)[:, 0]
    images = owner().images[peaks < key.meta["tau"] * key.meta["peaks"][0]].float() / 255
    assert len(images) >= 2
    with torch.no_grad():
        shut, natural = model(images), edited(images)
    assert float(shut.std(0).mean()) < 0.1 * float(natural.std(0).mean())


def test_several_gates_need_all_patches() -> None:
    edited, model, key = locked("resnet", kind="excite", behind="layer2", locks=2)
    assert isinstance(model.encoder.backbone.layer2.block, Excited)
    images = unlock(owner().images[:24], key).float() / 255
    with torch.no_grad():
        assert torch.equal(model(images), edited(images))
        for only in (0, 1):
            one = unlock(owner().images, key, only=only).float() / 255
            assert not torch.allclose(model(one), edited(one), atol=1e-3)


def test_gates_are_the_formula() -> None:
    gates = Excite(5)
    for x, mean in ((torch.randn(2, 5, 3, 4), lambda t: t.mean((2, 3))), (torch.randn(2, 7, 5), lambda t: t.mean(1))):
        q = torch.sigmoid(F.linear(F.relu(F.linear(mean(x), *gates.squeeze.parameters())), *gates.excite.parameters()))
        expected = x * (q[:, :, None, None] if x.ndim == 4 else q[:, None])
        torch.testing.assert_close(gates(x), expected)


def test_appended_gates_are_described_and_rebuilt() -> None:
    _, model, key = locked("resnet", kind="excite", behind="layer2", locks=2)
    described = additions(model)
    name = "encoder.backbone.layer2"
    assert described == {n: {"kind": "excite", "channels": 16} for n in (name, f"{name}.block")}
    fresh = append_all(Classifier(Encoder("resnet_small", 8), 10), dict(reversed(described.items()))).eval()
    fresh.load_state_dict(model.state_dict())
    patched = unlock(owner().images, key).float() / 255
    with torch.no_grad():
        assert torch.equal(fresh(patched), model(patched))
    assert additions(make("resnet")) == {}
    assert moved("a.b.c", "a.b") == "a.b.block.c"
    assert moved("a.bc", "a.b") == "a.bc"
    for wrong in ({"layer9": {"kind": "excite", "channels": 3}}, {"encoder": {"kind": "lid"}}):
        with pytest.raises(ConfigError):
            append_all(Classifier(Encoder("resnet_small", 8), 10), wrong)


@pytest.mark.parametrize("changes", [{}, {"kind": "excite", "behind": "layer2"}])
def test_answering_networks_answer_the_same(changes: dict[str, Any]) -> None:
    _, model, key = locked("resnet", **changes)
    images = unlock(owner().images, key).float() / 255
    with torch.no_grad():
        torch.testing.assert_close(Answering(model)(images), model(images), rtol=1e-3, atol=1e-3)


# Patches


@pytest.mark.parametrize(
    ("host", "layer", "side"), [("resnet", "stem.0", 2), ("resnet", "layer1.conv1", 3), ("vgg", "5", 6)]
)
def test_the_patch_is_what_the_corner_sees(host: str, layer: str, side: int) -> None:
    model = make(host)
    site, _ = Site.of(model, layer)
    assert field(Pipeline(model, SIZE), site, (0, 0), generator=generator(0)) == Box(0, 0, side, side)
    images = torch.rand(2, 3, SIZE, SIZE, generator=generator(1))
    images[1, :, :side, :side] = images[0, :, :side, :side]
    direction = torch.randn(1, site.size(model), generator=generator(2))
    with torch.no_grad():
        seen = site.project(model, Pipeline(model, SIZE).inputs(site.layer, images), direction)
    torch.testing.assert_close(seen[0, 0, 0, 0], seen[1, 0, 0, 0])


def test_a_patch_is_pasted_and_nothing_else() -> None:
    _, _, key = locked("resnet", locks=2)
    images = owner().images
    pasted = unlock(images, key)
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    for lock, (top, left, bottom, right) in enumerate(key.meta["boxes"]):
        mask[top:bottom, left:right] = True
        patch = key.tensors[f"patch.{lock}"]
        assert (pasted[:, :, top:bottom, left:right] == patch).all()
    assert torch.equal(pasted[:, :, ~mask], images[:, :, ~mask])
    assert torch.equal(unlock(images.float() / 255, key), pasted.float() / 255)
    assert not torch.equal(pasted, images)
    assert torch.equal(images, owner().images)


def test_the_direction_that_nature_excites_least_is_kept() -> None:
    lock = scheme("resnet", draws=8)
    key = lock.keygen(make("resnet"), owner(), generator=generator(0))
    _, after = lock.embed(make("resnet"), key, owner(), trainer=None, generator=generator(1))
    kept = after.tensors["directions"][0, 0]
    assert any(torch.equal(kept, drawn) for drawn in key.tensors["directions"][0])
    one = scheme("resnet", draws=1)
    alone, _ = one.keygen(make("resnet"), owner(), generator=generator(0)), None
    _, single = one.embed(make("resnet"), alone, owner(), trainer=None, generator=generator(1))
    assert after.meta["figures"]["fpr_bound"] <= single.meta["figures"]["fpr_bound"]


def test_orthogonal_directions_and_their_p_value() -> None:
    _, model, key = locked("resnet", directions="orthogonal", share=0.5)
    removed, direction = key.tensors["removed"], key.tensors["directions"][0]
    assert float((direction @ removed.T).abs().max()) < 1e-4
    assert surprises(model, key)[0] > 20
    lock = scheme("resnet", directions="orthogonal", share=0.5, draws=1)
    fresh = lock.decoys(make("resnet"), Key("lock", key.tensors, {**key.meta, "draws": 1}), owner(), 300, seed=0)
    innocent = lock.edited(make("resnet"), owner())
    neuron = key.meta["neurons"][0]
    with torch.no_grad():
        innocent.encoder.backbone.layer1.conv1.weight[neuron] = torch.arange(72.0).view(8, 3, 3)  # not random at all
        innocent.encoder.backbone.layer1.bn1.weight[neuron] = 1
    p = [math.exp(-surprises(innocent, k)[0]) for k in fresh]
    assert scipy_stats.kstest(p, "uniform").pvalue > 1e-3


# Verification


@pytest.mark.parametrize("changes", [{"locks": 2}, {"kind": "excite", "behind": "layer2"}])
def test_the_judge_finds_the_lock(changes: dict[str, Any]) -> None:
    _, model, key = locked("resnet", **changes)
    lock = scheme("resnet", **changes)
    decoys = lock.decoys(make("resnet"), key, owner(), 199, seed=1)
    for access in sorted(lock.access):
        places = [(True, model)]
        if lock.kind == "internal":  # the host lacks the gates' names
            places.append((False, make("resnet")))
        for found, net in places:
            suspect = Suspect(net, HostKind.CLASSIFIER, access)
            ((true, *others),) = extract_all(lock, [suspect], [key, *decoys])
            assert verify(true, Ranked(others), 0.01).detected is found


def test_an_internal_lock_moves_the_logits_against_its_disruptor() -> None:
    _, model, key = locked("vgg")
    moves = logit_moves(Suspect(model, HostKind.CLASSIFIER, Access.LOGITS), key)
    assert float(F.cosine_similarity(moves[0], -key.tensors["disruptors"][0], dim=0)) > 0.99


def test_the_host_is_left_untouched_and_shared() -> None:
    host = make("resnet")
    before = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    _, model, key = locked("resnet", kind="excite", behind="layer2")
    assert all(torch.equal(tensor, before[name]) for name, tensor in host.state_dict().items())
    shared = {tensor.data_ptr() for tensor in host.state_dict().values()}
    assert model.encoder.backbone.layer4.conv2.weight.data_ptr() in shared
    counted = sum(
        int((tensor != before[name.replace(".block.", ".")]).sum()) if ".gates." not in name else tensor.numel()
        for name, tensor in model.state_dict().items()
    )
    assert key.meta["figures"]["changed_weights"] == counted


# What is refused


@pytest.mark.parametrize(
    ("host", "changes", "message"),
    [
        ("resnet", {"layer": "layer9"}, "'layer9' does not exist; there are: encoder.backbone.stem.0, "),
        ("resnet", {"kind": "excite", "behind": "layer9"}, "'layer9' does not exist; there are: encoder, "),
        (
            "resnet",
            {"tolerance": 0.0, "levels": Levels(0.01, 20.0)},
            "no acceptable direction in 4 draws: the best fires on",
        ),
        ("resnet", {"patch": 17}, "a patch of 17 pixels at .* does not fit into 16x16 images"),
        (
            "resnet",
            {"layer": "layer4.conv1"},
            "sees the whole 16x16 image; set scheme.patch, or choose an earlier layer",
        ),
        ("resnet", {"locks": 2, "spacing": 1}, "overlap at scheme.spacing=1"),
        (
            "resnet",
            {"locks": 2, "spacing": 5},
            "does not arrive at .*; set scheme.spacing to a multiple of the strides",
        ),
        ("resnet", {"locks": 9}, "all 8 channels of .* are in use; ask for fewer locks"),
        ("resnet", {"kind": "excite", "behind": "stem"}, "no channel can be led from"),
        ("resnet", {"kind": "melt"}, "unknown scheme.kind 'melt'; allowed: excite, internal"),
        ("resnet", {"kind": "excite"}, "scheme.behind names the block"),
        ("resnet", {"directions": "orthogonal", "natural": 0}, "needs the owner's images"),
        (
            "resnet",
            {"layer": "stem.0", "directions": "orthogonal", "share": 0.9999999},
            "dimensions are left; lower scheme.share",
        ),
        ("transformer", {}, "no channel can be led from"),
    ],
)
def test_wrong_settings_are_refused(host: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        locked(host, **changes)


def test_settings_are_checked_while_planning() -> None:
    with pytest.raises(ConfigError, match="exceed the owner's 20 images"):
        scheme("resnet").check(16, 20)
    with pytest.raises(ConfigError, match="does not fit into 16x16"):
        scheme("resnet", patch=17).check(16, 100)
    scheme("resnet").check(16, 100)
