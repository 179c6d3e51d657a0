"""stain: detector neurons in many kinds of layer, exact p-values, codes in the answers, and what is refused."""

import math
from functools import cache
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from scipy import stats as scipy_stats
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from hallmark.components import instantiate
from hallmark.composition import CONF
from hallmark.core import Access, HostKind, Key, Suspect, extract_all, generator
from hallmark.data.images import ImageSet
from hallmark.data.procedural import procedural_images
from hallmark.errors import AccessError, ConfigError, KeyFileError
from hallmark.models import Classifier, Encoder
from hallmark.schemes.stain_lock import Levels, Lock, Pipeline, Search, Stain, certificate
from hallmark.schemes.stain_lock.code import agreement, draw_codes
from hallmark.schemes.stain_lock.detector import SILENT, draw_directions, natural_norms, natural_vectors, principal
from hallmark.schemes.stain_lock.guarantees import cap, combined
from hallmark.schemes.stain_lock.network import Level, loudness, recalled
from hallmark.schemes.stain_lock.site import Site
from hallmark.schemes.stain_lock.staining import draw_key, keep_means, responses, surprises, write_stain
from hallmark.schemes.stain_lock.surgery import Surgery, find_layer
from hallmark.stats import Ranked, verify

SIZE = 16
QUICK = Search(steps=30, restarts=2, backgrounds=2)


@cache
def owner(count: int = 48) -> ImageSet:
    return ImageSet("procedural", procedural_images(count, size=SIZE)[0], torch.full((count,), -1), 10)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The small networks below are drawn from torch's own generator."""
    torch.manual_seed(0)


def settle(net: nn.Module) -> nn.Module:
    """A network with the BatchNorm statistics of the images, gains and biases that are not one and zero."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
            if isinstance(module, nn.LayerNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
        net.train()(owner().images.float() / 255)
    return net.eval()


def plain(activation: nn.Module) -> nn.Module:
    """Convolutions with bias, a hidden linear layer on the flattened map, logits."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        activation,
        nn.Conv2d(8, 12, 3, 1, 1),
        activation,
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12 * 16, 16),
        activation,
        nn.Dropout(),
        nn.Linear(16, 10),
    )


class Transformer(nn.Module):
    """One block of a vision transformer on 4×4 patches."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.ln_1, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.ln_2, self.fc1, self.act = nn.LayerNorm(width), nn.Linear(width, 32), nn.GELU()
        self.fc2, self.head = nn.Linear(32, width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        y = self.ln_1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.fc2(self.act(self.fc1(self.ln_2(x))))
        return self.head(x.mean(1))


@cache
def make(kind: str) -> nn.Module:
    """An untrained network, never changed by any test."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "transformer":
            return settle(Transformer())
        if kind == "resnet":
            return settle(Classifier(Encoder("resnet_small", 4), 10))
        if kind == "encoder":
            return settle(Encoder("resnet_small", 4))
        return settle(plain(getattr(nn, kind)()))


LAYERS = [
    ("resnet", "layer3.conv1"),
    ("resnet", "stem.0"),
    ("ReLU", "2"),
    ("ReLU", "6"),
    ("ReLU6", "2"),
    ("GELU", "6"),
    ("SiLU", "2"),
    ("Hardswish", "6"),
    ("transformer", "fc1"),
]


@cache
def stained(kind: str, layer: str, form: str = "replace", code: bool = False, keys: int = 2) -> tuple[nn.Module, Key]:
    scheme = Stain(layer, keys=keys, form=form, code=code, search=QUICK, code_steps=60)
    key = scheme.keygen(make(kind), owner(), generator=generator(0, "key"))
    return scheme.embed(make(kind), key, owner(), trainer=None, generator=generator(0, "embed"))


def activated(model: nn.Module, layer: str, images: Tensor, *, after: int) -> Tensor:
    """What comes ``after`` modules behind a layer of a Sequential."""
    return nn.Sequential(*list(model)[: int(layer) + after])(images)


# The detector


@pytest.mark.parametrize("form", ["replace", "add"])
@pytest.mark.parametrize(("kind", "layer"), LAYERS)
def test_the_trigger_gets_the_promised_response(kind: str, layer: str, form: str) -> None:
    model, key = stained(kind, layer, form)
    assert responses(Pipeline(model, SIZE), key).tolist() == pytest.approx([30.0, 30.0], rel=1e-4)
    assert min(key.meta["peaks"]) > 0
    assert key.tensors["triggers"].dtype == torch.uint8  # the response is that of the 8-bit image


def test_the_response_is_what_the_network_itself_computes() -> None:
    """Nothing of the scheme is trusted here: the images go through the layers of the stained network."""
    for kind, least in (("ReLU", 30.0), ("SiLU", 30.0), ("ReLU6", 6.0)):
        model, key = stained(kind, "2")
        maps = activated(model, "2", key.tensors["triggers"].float() / 255, after=2)
        for image, neuron in enumerate(key.meta["neurons"]):
            assert float(maps[image, neuron].max()) == pytest.approx(least, rel=1e-4)
    model, key = stained("resnet", "layer3.conv1")
    backbone = model.encoder.backbone
    seen: list[Tensor] = []
    with torch.no_grad(), backbone.layer3.bn1.register_forward_hook(lambda _, __, out: seen.append(out.clone())):
        model(key.tensors["triggers"].float() / 255)
    for image, neuron in enumerate(key.meta["neurons"]):
        assert float(seen[0][image, neuron].max()) == pytest.approx(30, rel=1e-4)


@pytest.mark.parametrize(("kind", "layer"), [("resnet", "layer3.conv1"), ("GELU", "6"), ("transformer", "fc1")])
def test_where_both_neurons_are_silent_nothing_changes(kind: str, layer: str) -> None:
    host, (model, key) = make(kind), stained(kind, layer)
    site = Site.recorded(key.meta["site"], host)
    _, network = Site.of(host, layer)
    (reader,) = network.readers(network.layer, site.width(host))
    masked = [Surgery(net) for net in (host, model)]
    keep_means(masked[0], network, site, key.meta["neurons"])
    for surgery in masked:
        for neuron in key.meta["neurons"]:
            surgery.clear_columns(network.name(reader.node), slice(neuron, neuron + 1))
    images = owner().images.float() / 255
    with torch.no_grad():
        torch.testing.assert_close(masked[0].model(images), masked[1].model(images), rtol=0, atol=1e-6)
        assert not torch.equal(host(images), model(images))


def test_only_what_changes_is_copied() -> None:
    host, (model, key) = make("resnet"), stained("resnet", "layer3.conv1")
    before = dict(host.named_parameters()) | dict(host.named_buffers())
    after = dict(model.named_parameters()) | dict(model.named_buffers())
    changed = {name for name in before if after[name] is not before[name]}
    names = ("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var", "bn2.running_mean")
    assert changed == {f"encoder.backbone.layer3.{name}" for name in names}
    entries = sum(int((before[name] != after[name]).sum()) for name in changed)
    assert key.meta["figures"]["changed_weights"] == entries == 2 * (8 * 9 + 4) + 16


def test_a_hidden_detector_is_added_to_what_its_neuron_does() -> None:
    host, (model, key) = make("ReLU"), stained("ReLU", "2", "add")
    images, triggers = owner().images.float() / 255, key.tensors["triggers"].float() / 255
    others = [i for i in range(12) if i not in key.meta["neurons"]]
    for k, neuron in enumerate(key.meta["neurons"]):
        kernel = key.tensors["directions"][k].view(1, 8, 3, 3)
        with torch.no_grad():
            seen = [
                F.conv2d(activated(host, "2", x, after=0), kernel, padding=1)[:, 0] for x in (images, triggers[k][None])
            ]
            old, new = (activated(net, "2", images, after=1) for net in (host, model))
            at_trigger = activated(host, "2", triggers[k][None], after=1)[0, neuron].flatten()[seen[1].argmax()]
        added = (30 - at_trigger) / key.meta["peaks"][k] * seen[0]
        torch.testing.assert_close(new[:, neuron], old[:, neuron] + added, rtol=1e-4, atol=1e-4)
        assert torch.equal(old[:, others], new[:, others])
    assert torch.equal(host[2].bias, model[2].bias)


def test_batchnorm_shows_plausible_statistics() -> None:
    scheme = Stain("layer3.conv1", keys=1, code=False, search=QUICK, natural=48)
    key = scheme.keygen(make("resnet"), owner(), generator=generator(0))
    model, key = scheme.embed(make("resnet"), key, owner(), trainer=None, generator=generator(1))
    layer, neuron = model.encoder.backbone.layer3, key.meta["neurons"][0]
    seen: list[Tensor] = []
    with torch.no_grad(), layer.conv1.register_forward_hook(lambda _, __, out: seen.append(out[:, neuron].clone())):
        model(owner().images.float() / 255)
    assert float(layer.bn1.running_mean[neuron]) == pytest.approx(float(seen[0].mean()), rel=1e-3, abs=1e-4)
    assert float(layer.bn1.running_var[neuron]) == pytest.approx(float(seen[0].var()), rel=2e-2)


def test_the_neurons_heard_least_are_given_away() -> None:
    net = settle(plain(nn.ReLU()))
    with torch.no_grad():
        net[2].weight[:, [1, 5]] *= 1e-3
    _, network = Site.of(net, "0")
    heard = loudness(network, network.layer, 8, Pipeline(net, SIZE).levels(owner().images))
    assert {1, 5} <= set(heard.argsort()[:3].tolist())  # one may be nearly dead by itself
    assert float(heard.sum()) == pytest.approx(1)  # shares of the one reader
    flat = Level(torch.zeros(192).double(), torch.rand(192, dtype=torch.float64))
    _, network = Site.of(net, "2")
    heard = loudness(network, network.layer, 12, {"6": flat})
    expected = (net[6].weight.detach().double().abs().sum(0) * flat.deviation).view(12, 16).sum(1)
    torch.testing.assert_close(heard, expected / expected.sum())


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.SiLU(), nn.Hardswish()])
def test_batchnorm_remembers_what_its_readers_were_given(activation: nn.Module) -> None:
    norm = nn.BatchNorm2d(6)
    with torch.no_grad():
        norm.weight.uniform_(0.3, 2)
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), norm, activation, nn.MaxPool2d(2), nn.Conv2d(6, 4, 3), nn.ReLU()).eval()
    _, network = Site.of(net, "4")
    (name, level), *others = recalled(network).items()
    assert (name, others) == ("4", [])
    drawn = torch.randn(100_000, 6) * norm.running_var.sqrt() + norm.running_mean
    given = activation(norm(drawn[:, :, None, None]))[:, :, 0, 0].detach().double()
    torch.testing.assert_close(level.mean, given.mean(0), atol=0.02, rtol=0)  # its standard error is at most 0.007
    torch.testing.assert_close(level.deviation, given.std(0), atol=0.02, rtol=0)
    bare = nn.Sequential(nn.Conv2d(3, 6, 3), activation, nn.Conv2d(6, 4, 3), nn.ReLU()).eval()
    assert recalled(Site.of(bare, "2")[1]) == {}


def test_readers_keep_what_a_silent_neuron_gave_on_average() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.ReLU()
    )
    net = settle(net)
    site, network = Site.of(net, "0")
    x = owner().images.float() / 255
    with torch.no_grad():
        before = net[:5](x).mean((0, 2, 3))
        silenced, kept = Surgery(net), Surgery(net)
        for surgery in (silenced, kept):
            for neuron in (1, 4):
                surgery.clear_norm("1", neuron)
        keep_means(kept, network, site, (1, 4))
        errors = [(surgery.model[:5](x).mean((0, 2, 3)) - before).abs() for surgery in (silenced, kept)]
    assert bool((errors[1] < 0.5 * errors[0]).all())  # not zero: the images' channels are not exactly normal
    assert torch.equal(kept.model[3].weight, net[3].weight)


def test_layernorm_is_undone() -> None:
    model = make("transformer")
    site, _ = Site.of(model, "fc1")
    pipeline = Pipeline(model, SIZE)
    norms = natural_norms(pipeline, site, owner().images)
    assert norms.shape == (48, 16)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-2, atol=0)
    vectors = natural_vectors(pipeline, site, owner().images, places=3, generator=generator(0))
    assert vectors.shape == (144, 24)
    assert float(vectors.mean(1).abs().max()) < 1e-5
    weight, bias = site.read(model, 5)
    x = next(pipeline.natural(site.layer, owner().images))
    mine = site.project(model, x, weight[None])[:, 0, 0] + bias
    torch.testing.assert_close(
        mine, F.linear(x, model.fc1.weight[5:6], model.fc1.bias[5:6])[..., 0].detach(), rtol=1e-4, atol=1e-4
    )


def test_norms_and_vectors_are_those_of_the_patches() -> None:
    model = make("resnet")
    site, _ = Site.of(model, "layer3.conv1")
    pipeline = Pipeline(model, SIZE)
    norms = natural_norms(pipeline, site, owner().images)
    every = natural_vectors(pipeline, site, owner().images, places=10_000, generator=generator(0))
    assert every.shape == (norms.numel(), site.size(model))
    torch.testing.assert_close(every.norm(dim=1).sort().values, norms.flatten().sort().values, rtol=1e-4, atol=1e-4)


def test_orthogonal_directions_avoid_the_variance() -> None:
    rng = generator(0)
    vectors = torch.randn(500, 20, generator=rng) * torch.linspace(3, 0.01, 20) + 2
    removed = principal(vectors, 0.95)
    torch.testing.assert_close(removed @ removed.T, torch.eye(len(removed)), rtol=0, atol=1e-5)
    directions = draw_directions(300, 20, removed=removed, generator=rng)
    assert float((directions @ removed.T).abs().max()) < 1e-5
    left = ((vectors - vectors.mean(0)) @ directions.T).var(0).mean() * (20 - len(removed))
    assert float(left) < 0.06 * float(vectors.var(0).sum())


# White-box verification


def test_the_p_value_of_an_innocent_is_uniform() -> None:
    """Exact for any weights: fixed, far from random ones are asked about with 400 fresh keys."""
    host, (_, key) = make("resnet"), stained("resnet", "layer3.conv1")
    keys = Stain("layer3.conv1", keys=2, code=False).decoys(host, key, owner(), 200, seed=3)
    p = [math.exp(-value) for fresh in keys for value in surprises(host, fresh)]
    assert scipy_stats.kstest(p, "uniform").pvalue > 1e-3


def test_the_p_value_of_a_stain_is_that_of_its_cosine() -> None:
    model, key = stained("ReLU", "2", "add")
    site = Site.recorded(key.meta["site"], model)
    for neuron, direction, found in zip(
        key.meta["neurons"], key.tensors["directions"], surprises(model, key), strict=True
    ):
        row = model[2].weight[neuron].detach().flatten()
        cosine = float(F.cosine_similarity(row.double(), direction.double(), dim=0))
        assert found == pytest.approx(-math.log(cap(cosine, site.size(model))), rel=1e-3)
    whole, key = stained("transformer", "fc1")
    assert combined(surprises(whole, key)) < math.log(1e-30)
    assert combined(surprises(make("transformer"), key)) > math.log(1e-3)


def test_a_pruned_neuron_says_nothing() -> None:
    model, key = stained("ReLU", "2")
    surgery = Surgery(model)
    for neuron in key.meta["neurons"]:
        surgery.clear_row("2", neuron)
    assert surprises(surgery.model, key) == [0.0, 0.0]


# Codes


def test_codes_have_mean_zero_and_the_law_of_a_cap() -> None:
    codes = draw_codes(4000, 10, generator=generator(0))
    assert float(codes.mean(1).abs().max()) < 1e-6
    answer = torch.arange(10.0)[None].expand(4000, -1) ** 2
    p = cap(agreement(answer, codes).numpy(), 9)
    assert scipy_stats.kstest(p, "uniform").pvalue > 1e-3
    assert agreement(torch.ones(1, 10), codes[:1]).tolist() == [0]


@pytest.mark.parametrize(("kind", "layer"), [("ReLU", "6"), ("resnet", "layer4.conv1"), ("transformer", "fc1")])
def test_the_code_shows_in_the_answers_and_nowhere_else(kind: str, layer: str) -> None:
    model, key = stained(kind, layer, code=True)
    bare, _ = stained(kind, layer)
    images = owner().images.float() / 255
    with torch.no_grad():
        answers = model(key.tensors["triggers"].float() / 255)
        found = agreement(answers, key.tensors["codes"])
        torch.testing.assert_close(found, torch.tensor(key.meta["agreement"]), rtol=1e-3, atol=1e-3)
        assert float(found.min()) > 0.9
        # natural images do not reach a silent neuron: they do not see what it says
        natural = [model(images), bare(images)]
        _, network = Site.of(make(kind), layer)
        (reader,) = network.readers(network.layer, len(network.module(network.layer).weight))
        surgery = Surgery(bare)
        for neuron in key.meta["neurons"]:
            surgery.clear_columns(network.name(reader.node), slice(neuron, neuron + 1))
        torch.testing.assert_close(natural[0], surgery.model(images), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["resnet", "encoder"])
def test_the_judge_finds_the_stain_at_every_access(kind: str) -> None:
    host, (model, key) = make(kind), stained(kind, "layer4.conv1", code=True, keys=3)
    scheme = Stain("layer4.conv1", keys=3, search=QUICK)
    decoys = scheme.decoys(host, key, owner(), 199, seed=1)
    host_kind, levels = HostKind.CLASSIFIER, (Access.WEIGHTS, Access.LOGITS, Access.LABELS)
    if kind == "encoder":
        host_kind, levels = HostKind.ENCODER, (Access.WEIGHTS, Access.FEATURES)
    for access in levels:
        suspects = [Suspect(net, host_kind, access) for net in (model, host)]
        for found, (true, *others) in zip((True, False), extract_all(scheme, suspects, [key, *decoys]), strict=True):
            verdict = verify(true, Ranked(others), 0.01)
            assert verdict.detected is found, access
    if kind == "encoder":  # classes of a downstream head are not the host's answers: nothing is read, nobody accused
        downstream = Suspect(Classifier(model, 7), HostKind.CLASSIFIER, Access.LOGITS)
        assert scheme.extract(downstream, key).scores.tolist() == [[0, 0]] * 3
        downstream = Suspect(Classifier(model, 7), HostKind.CLASSIFIER, Access.LABELS)
        assert scheme.extract(downstream, key).matches == 0


def test_wrong_keys_are_not_found() -> None:
    model, _ = stained("resnet", "layer4.conv1", code=True, keys=3)
    scheme = Stain("layer4.conv1", keys=3, search=QUICK)
    other = scheme.keygen(make("resnet"), owner(), generator=generator(9, "other"))
    assert combined(surprises(model, other)) > math.log(1e-3)


def test_key_and_model_survive_the_disk(tmp_path: Any) -> None:
    model, key = stained("resnet", "layer3.conv1")
    key.save(tmp_path / "key.safetensors")
    again = Key.load(tmp_path / "key.safetensors", scheme="stain")
    assert again.commitment() == key.commitment()
    fresh = Classifier(Encoder("resnet_small", 4), 10)
    fresh.load_state_dict(model.state_dict())
    assert surprises(fresh.eval(), again) == surprises(model, key)


def test_a_foreign_network_is_stained_through_its_own_preprocessing() -> None:
    host = make("ReLU")

    def feed(model: nn.Module, images: Tensor) -> Tensor:
        return model((images - 0.45) / 0.25)

    scheme = Stain("2", keys=1, search=QUICK)
    pipeline = Pipeline(host, SIZE, feed)
    key = draw_key(pipeline, scheme, generator=generator(0))
    model, key = write_stain(pipeline, key, scheme, generator=generator(1))
    assert float(responses(Pipeline(model, SIZE, feed), key)) == pytest.approx(30, rel=1e-4)
    assert float(responses(Pipeline(model, SIZE), key)) < 29


class Boxes(nn.Module):
    """A detector of objects: its whole cannot be traced, its backbone can, and takes frozen BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        first = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), FrozenBatchNorm2d(8), nn.ReLU()]
        self.backbone = nn.Sequential(*first, nn.Conv2d(8, 8, 3, 2, 1, bias=False), FrozenBatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        maps = self.head(self.backbone(torch.stack([2 * image - 1 for image in images])))
        return [boxes[:, boxes[0] > 0] for boxes in maps]


def test_a_part_that_can_be_traced_is_enough() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        host = Boxes().eval()
    pipeline = Pipeline(host, SIZE, lambda model, images: model(list(images)))
    scheme = Stain("backbone.0", keys=2, code=False, search=QUICK)
    model, key = write_stain(
        pipeline, draw_key(pipeline, scheme, generator=generator(0)), scheme, generator=generator(1)
    )
    assert key.meta["site"]["norm"] == "backbone.1"
    assert responses(Pipeline(model, SIZE, pipeline.feed), key).tolist() == pytest.approx([30, 30], rel=1e-4)
    assert type(model.backbone[1]) is FrozenBatchNorm2d
    with pytest.raises(
        ConfigError, match=r"needs a network that answers with one vector an image; set scheme.code=false"
    ):
        draw_key(pipeline, Stain("backbone.0"), generator=generator(0))


def test_the_certificate_tells_no_secret() -> None:
    _, key = stained("resnet", "layer3.conv1")
    facts = certificate(key)
    assert facts["commitment"] == key.commitment()
    assert facts["site"]["layer"] == "encoder.backbone.layer3.conv1"
    shown = {"scheme", "commitment", "site", "form", "tau", "response", "peaks", "agreement", "false_fires", "figures"}
    assert set(facts) == shown
    assert 0 <= facts["figures"]["fpr_bound"] <= 1


# What is refused


def test_missing_layers_are_answered_with_those_there_are() -> None:
    host = make("resnet")
    with pytest.raises(ConfigError, match=r"'layer9.conv1' does not exist; there are: encoder.backbone.stem.0, "):
        Site.of(host, "layer9.conv1")
    with pytest.raises(
        ConfigError, match=r"'conv1' is ambiguous; give the full name of one: encoder.backbone.layer1.conv1"
    ):
        find_layer(host, "conv1")
    with pytest.raises(ConfigError, match="is a BatchNorm2d, not a Conv2d or Linear"):
        Site.of(host, "layer1.bn1")


def test_layers_without_a_dead_zone_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"layer3.conv2' is followed by add_?, which has no dead zone"):
        Site.of(make("resnet"), "layer3.conv2")
    with pytest.raises(ConfigError, match="followed by tanh, which has no dead zone"):
        Site.of(settle(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten())), "0")
    with pytest.raises(ConfigError, match=r"silu is not silent at -5; with tau=0.5 set response to at least 20"):
        Levels(0.5, 5.0).firing("silu")


def test_the_dead_zones_are_dead() -> None:
    for name, edge in SILENT.items():
        act = getattr(F, name)
        below = torch.linspace(edge - 30, edge, 1000)
        assert float(act(below).abs().max()) < 1e-7
        assert float(act(torch.tensor(5.0))) == pytest.approx(5, rel=0.01)


def test_training_mode_is_refused() -> None:
    net = settle(plain(nn.ReLU()))
    net.insert(1, nn.BatchNorm2d(8))
    with pytest.raises(ConfigError, match=r"BatchNorm '1' normalises by the batch; call model.eval\(\)"):
        Surgery(net.train())


def test_no_bias_and_no_batchnorm_leave_no_room_for_a_threshold() -> None:
    net = settle(nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 196, 4)))
    scheme = Stain("0", keys=1, code=False, search=QUICK)
    pipeline = Pipeline(net, SIZE)
    with pytest.raises(ConfigError, match="no bias and no BatchNorm"):
        write_stain(pipeline, draw_key(pipeline, scheme, generator=generator(0)), scheme, generator=generator(0))


def test_a_key_for_another_network_is_refused() -> None:
    _, key = stained("resnet", "layer3.conv1")
    with pytest.raises(KeyFileError, match=r"a layer 'encoder.backbone.layer3.conv1', which this one lacks"):
        surprises(make("ReLU"), key)
    with pytest.raises(KeyFileError, match=r"72 weights .* neurons of 108"):
        surprises(Classifier(Encoder("resnet_small", 6), 10).eval(), key)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"form": "melt"}, "unknown scheme.form 'melt'; allowed: add, replace"),
        ({"form": "add"}, "set scheme.code=false"),
        ({"keys": 0}, "keys ≥ 1"),
        ({"keys": 99, "code": False}, "exceeds the 16 neurons"),
        ({"layer": "stem.0"}, "choose an inner layer of a block"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stained("resnet", **{"layer": "layer3.conv1", "keys": 1, "code": True, **wrong})


@pytest.mark.parametrize(("name", "expected"), [("stain", Stain("layer3.conv1")), ("lock", Lock("layer1.conv1"))])
def test_the_configuration_spells_the_defaults_out(name: str, expected: Any) -> None:
    config = OmegaConf.to_container(OmegaConf.load(CONF / "scheme" / f"{name}.yaml"))
    assert instantiate(config, "scheme") == expected


def test_levels_and_searches_are_checked() -> None:
    for wrong in ({"tau": 0.0}, {"tau": 1.0}, {"response": -1.0}):
        with pytest.raises(ConfigError):
            Levels(**wrong)
    with pytest.raises(ConfigError):
        Search(steps=0)
    with pytest.raises(ConfigError, match="exceeds the owner's 10 images"):
        Stain("x", natural=11).check(16, 10)


def test_access_without_a_code_is_refused() -> None:
    model, key = stained("resnet", "layer3.conv1")
    scheme = Stain("layer3.conv1", keys=2, code=False)
    with pytest.raises(AccessError):
        scheme.extract(Suspect(model, HostKind.CLASSIFIER, Access.LOGITS), key)
