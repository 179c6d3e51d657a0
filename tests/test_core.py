"""Core types: what a suspect may show, what a key file may hold, what evidence may say, who draws which numbers."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from hallmark import precision
from hallmark.core import (
    Access,
    Evidence,
    HostKind,
    Key,
    QueryScheme,
    Suspect,
    derive_seed,
    extract_all,
    generator,
)
from hallmark.core.access import LEVELS
from hallmark.errors import AccessError, KeyFileError

METHODS = {
    Access.WEIGHTS: "weights_module",
    Access.FEATURES: "features",
    Access.LOGITS: "logits",
    Access.LABELS: "labels",
    Access.IMAGES: "images",
}
GIVEN = {
    (HostKind.ENCODER, Access.WEIGHTS): {Access.WEIGHTS, Access.FEATURES},
    (HostKind.ENCODER, Access.FEATURES): {Access.FEATURES},
    (HostKind.CLASSIFIER, Access.WEIGHTS): {Access.WEIGHTS, Access.FEATURES, Access.LOGITS, Access.LABELS},
    (HostKind.CLASSIFIER, Access.FEATURES): {Access.FEATURES, Access.LOGITS, Access.LABELS},
    (HostKind.CLASSIFIER, Access.LOGITS): {Access.LOGITS, Access.LABELS},
    (HostKind.CLASSIFIER, Access.LABELS): {Access.LABELS},
    (HostKind.IMAGE_TO_IMAGE, Access.WEIGHTS): {Access.WEIGHTS, Access.IMAGES},
    (HostKind.IMAGE_TO_IMAGE, Access.IMAGES): {Access.IMAGES},
    (HostKind.DETECTOR, Access.WEIGHTS): {Access.WEIGHTS},
}
"""What each kind of suspect gives at each level that it can be looked at, spelled out."""


class Tiny(nn.Module):
    """Convolution, BatchNorm and a head: enough to be an encoder or a classifier."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(6, classes)

    def features(self, images: Tensor) -> Tensor:
        return self.trunk(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def tiny(kind: HostKind = HostKind.CLASSIFIER) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind is HostKind.CLASSIFIER:
            return Tiny()
        if kind is HostKind.ENCODER:
            return nn.Sequential(Tiny().trunk, nn.Flatten())
        return nn.Conv2d(3, 3, 3, padding=1)


def pictures(count: int = 5) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


# Access


def test_access_is_the_stated_order() -> None:
    below = {
        Access.WEIGHTS: set(Access),
        Access.FEATURES: {Access.FEATURES, Access.LOGITS, Access.LABELS},
        Access.LOGITS: {Access.LOGITS, Access.LABELS},
        Access.LABELS: {Access.LABELS},
        Access.IMAGES: {Access.IMAGES},
    }
    for level in Access:
        assert {other for other in Access if level.includes(other)} == below[level]


def test_access_is_a_partial_order() -> None:
    for a in Access:
        assert a.includes(a)
        for b in Access:
            assert a == b or not (a.includes(b) and b.includes(a))
            for c in Access:
                assert a.includes(c) or not (a.includes(b) and b.includes(c))


def test_levels_of_every_kind_are_the_ones_spelled_out() -> None:
    assert {(kind, level) for kind, levels in LEVELS.items() for level in levels} == set(GIVEN)


# Suspect


@pytest.mark.parametrize(("kind", "level"), sorted(GIVEN))
@pytest.mark.parametrize("asked", sorted(Access))
def test_a_suspect_gives_its_level_and_no_more(kind: HostKind, level: Access, asked: Access) -> None:
    suspect = Suspect(tiny(kind), kind, level)
    call: Callable[..., Any] = getattr(suspect, METHODS[asked])
    arguments = () if asked is Access.WEIGHTS else (pictures(),)
    if asked in GIVEN[kind, level]:
        assert call(*arguments) is not None
        assert suspect.queries == (0 if asked is Access.WEIGHTS else 5)
    else:
        with pytest.raises(AccessError, match=f"{asked}.*grants {level}"):
            call(*arguments)
        assert suspect.queries == 0  # a refused question costs nothing


@pytest.mark.parametrize("kind", sorted(HostKind))
def test_levels_that_a_kind_does_not_have_are_refused(kind: HostKind) -> None:
    for level in set(Access) - LEVELS[kind]:
        with pytest.raises(AccessError, match=f"{kind} hosts have no {level}"):
            Suspect(tiny(kind), kind, level)


@pytest.mark.parametrize(("kind", "level"), sorted(GIVEN))
def test_ask_answers_at_the_granted_level(kind: HostKind, level: Access) -> None:
    suspect, images = Suspect(tiny(kind), kind, level), pictures()
    if level is Access.WEIGHTS:
        with pytest.raises(AccessError, match="weights_module"):
            suspect.ask(images)
    else:
        torch.testing.assert_close(suspect.ask(images), getattr(suspect, METHODS[level])(images), rtol=0, atol=0)


def test_answers_are_the_models_own() -> None:
    model, images = tiny().eval(), pictures()
    suspect = Suspect(model, HostKind.CLASSIFIER, Access.FEATURES)
    with torch.no_grad():
        features, logits = model.features(images), model(images)
    assert torch.equal(suspect.features(images), features)
    assert torch.equal(suspect.logits(images), logits)
    assert torch.equal(suspect.labels(images), logits.argmax(1))
    assert suspect.labels(images).dtype == torch.int64
    assert not suspect.logits(images).requires_grad


def reachable(root: object) -> list[object]:
    """Every object that attributes, containers and bound methods lead to; a function's closure is no attribute."""
    found: list[object] = []
    seen: set[int] = set()
    stack = [root]
    while stack:
        item = stack.pop()
        if id(item) in seen or isinstance(item, (str, int, float, type, FunctionType)):
            continue
        seen.add(id(item))
        found.append(item)
        if isinstance(item, dict):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, set, frozenset)):
            stack += item
        elif isinstance(item, MethodType):
            stack.append(item.__self__)
        elif isinstance(item, partial):
            stack += [item.func, item.args, item.keywords]
        stack += getattr(item, "__dict__", {}).values()
    return found


@pytest.mark.parametrize(("kind", "level"), sorted(GIVEN))
def test_no_attribute_leads_to_the_model(kind: HostKind, level: Access) -> None:
    suspect = Suspect(tiny(kind), kind, level)
    if level is not Access.WEIGHTS:
        suspect.ask(pictures())  # nor does an answer leave a trail
    assert not [item for item in reachable(suspect) if isinstance(item, (nn.Module, Tensor))]
    suspect.stolen = tiny(kind)  # the walk does find a model that is there
    assert [item for item in reachable(suspect) if isinstance(item, nn.Module)]


def test_queries_are_counted_by_image() -> None:
    suspect = Suspect(tiny(), HostKind.CLASSIFIER, Access.WEIGHTS, batch=2)
    suspect.features(pictures(5))
    suspect.labels(pictures(3))
    suspect.weights_module()
    assert suspect.queries == 8


def test_batches_do_not_change_answers() -> None:
    images = pictures(7)
    whole = Suspect(tiny(), HostKind.CLASSIFIER, Access.LOGITS).logits(images)
    parts = Suspect(tiny(), HostKind.CLASSIFIER, Access.LOGITS, batch=3).logits(images)
    # convolutions of other batch sizes may sum in another order; a few float32 roundings of numbers below 1
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)


def test_autocast_still_answers_in_float32_and_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "native_bfloat16", lambda device: True)  # whatever this machine computes in
    images = pictures(7)
    exact = Suspect(tiny(), HostKind.CLASSIFIER, Access.LOGITS).logits(images)
    rounded = Suspect(tiny(), HostKind.CLASSIFIER, Access.LOGITS, autocast=True).logits(images)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    # bfloat16 keeps 8 bits: four operations on numbers of about 1 may be off by a few times 2⁻⁸
    torch.testing.assert_close(rounded, exact, rtol=0, atol=2e-2)


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("training", [True, False])
def test_queries_run_in_evaluation_mode_and_leave_no_trace(training: bool) -> None:
    model = tiny().train(training)
    model.trunk[1].eval()  # a frozen BatchNorm inside a model that trains
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    was = modes(model)
    suspect = Suspect(model, HostKind.CLASSIFIER, Access.FEATURES)
    first = suspect.features(pictures())
    suspect.labels(pictures())
    assert modes(model) == was
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(suspect.features(pictures()), first)


def test_batch_norm_in_training_mode_would_show() -> None:
    """The test above can fail: a forward pass in training mode does change buffers and answers."""
    model = tiny().train()
    before = model.trunk[1].running_mean.clone()
    answers = model.features(pictures())
    assert not torch.equal(model.trunk[1].running_mean, before)
    assert not torch.allclose(answers, Suspect(tiny(), HostKind.CLASSIFIER, Access.FEATURES).features(pictures()))


def test_a_failing_query_restores_the_mode() -> None:
    model = tiny().train()
    with pytest.raises(RuntimeError):
        Suspect(model, HostKind.CLASSIFIER, Access.LOGITS).logits(torch.rand(2, 5, 8, 8))
    assert all(modes(model))


def test_weights_come_as_a_copy_in_evaluation_mode() -> None:
    model = tiny().train()
    suspect = Suspect(model, HostKind.CLASSIFIER, Access.WEIGHTS)
    stolen = suspect.weights_module()
    assert not any(modes(stolen))
    assert all(torch.equal(a, b) for a, b in zip(stolen.parameters(), model.parameters(), strict=True))
    with torch.no_grad():
        for parameter in stolen.parameters():
            parameter.zero_()
    assert all(bool(p.any()) for p in suspect.weights_module().parameters() if p.ndim > 1)
    assert all(modes(model))


# Key


def key(**meta: Any) -> Key:
    rng = torch.Generator().manual_seed(2)
    tensors = {
        "float": torch.randn(3, 4, generator=rng),
        "half": torch.randn(5, generator=rng).bfloat16(),
        "bytes": torch.randint(0, 256, (2, 3), generator=rng, dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
        "number": torch.tensor(7),
    }
    return Key("toy", tensors, {"reading": "cluster", "list": [1, 2.5, None], **meta})


def test_a_key_survives_its_file(tmp_path: Path) -> None:
    saved = key()
    saved.save(tmp_path / "key")
    loaded = Key.load(tmp_path / "key", scheme="toy")
    assert loaded.scheme == "toy"
    assert loaded.meta == saved.meta
    assert set(loaded.tensors) == set(saved.tensors)
    for name, tensor in saved.tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)
    assert loaded.commitment() == saved.commitment()


def test_a_key_of_strided_tensors_survives_too(tmp_path: Path) -> None:
    tensor = torch.arange(12.0).view(3, 4).T
    Key("toy", {"a": tensor}).save(tmp_path / "key")
    assert torch.equal(Key.load(tmp_path / "key").tensors["a"], tensor)
    assert Key("toy", {"a": tensor}).commitment() == Key("toy", {"a": tensor.contiguous()}).commitment()


def refused(path: Path, match: str, **options: Any) -> None:
    with pytest.raises(KeyFileError, match=match) as caught:
        Key.load(path, **options)
    assert len(str(caught.value).splitlines()) == 1


def test_any_altered_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key().save(path)
    content = path.read_bytes()
    for place in range(len(content)):
        altered = bytearray(content)
        altered[place] ^= 1
        path.write_bytes(bytes(altered))
        refused(path, "key")


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_key_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "key"
    key().save(path)
    path.write_bytes(path.read_bytes()[:kept])
    refused(path, "not a readable key file")


def test_a_key_of_another_scheme_is_refused(tmp_path: Path) -> None:
    key().save(tmp_path / "key")
    refused(tmp_path / "key", "scheme 'toy'.*scheme 'wpe'", scheme="wpe")


def test_a_pickle_offered_as_key_is_refused(tmp_path: Path) -> None:
    torch.save({"pattern": torch.zeros(3)}, tmp_path / "key")
    refused(tmp_path / "key", "not a readable key file")


def test_a_missing_key_and_a_folder_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "not a readable key file")
    refused(tmp_path, "not a readable key file")


def test_safetensors_that_are_no_key_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "key")
    refused(tmp_path / "key", "holds no Hallmark key")
    save_file({"a": torch.zeros(2)}, tmp_path / "key", metadata={"format": "hallmark-key-2"})
    refused(tmp_path / "key", "damaged|altered")


def test_the_commitment_binds_every_part() -> None:
    base = key()
    others = [Key("other", base.tensors, base.meta), key(extra=1), key(reading="direction")]
    for name, tensor in base.tensors.items():
        changed = tensor.clone().view(-1)
        changed[0] = ~changed[0] if changed.dtype == torch.bool else changed[0] + 1
        others.append(Key("toy", {**base.tensors, name: changed.view(tensor.shape)}, base.meta))
        others.append(Key("toy", {**base.tensors, name: tensor[None]}, base.meta))
        others.append(Key("toy", {n: t for n, t in base.tensors.items() if n != name}, base.meta))
    others.append(Key("toy", {**base.tensors, "number": base.tensors["number"].double()}, base.meta))
    renamed = {("renamed" if n == "float" else n): t for n, t in base.tensors.items()}
    others.append(Key("toy", renamed, base.meta))
    commitments = [k.commitment() for k in (base, *others)]
    assert len(set(commitments)) == len(commitments)
    shuffled = Key("toy", dict(reversed(base.tensors.items())), dict(reversed(base.meta.items())))
    assert shuffled.commitment() == base.commitment()  # order is no part of a key


# Evidence


def test_evidence_takes_exactly_one_form() -> None:
    scores = torch.zeros(3, 2)
    for wrong in (
        {},
        {"matches": 1},
        {"trials": 1},
        {"matches": 1, "trials": 2, "scores": scores},
    ):
        with pytest.raises(ValueError, match="exactly one form"):
            Evidence(Access.LABELS, **wrong)


@pytest.mark.parametrize(("matches", "trials"), [(-1, 3), (4, 3), (1, 0), (0, -1)])
def test_counts_out_of_range_are_refused(matches: int, trials: int) -> None:
    with pytest.raises(ValueError, match="0 … trials"):
        Evidence(Access.LABELS, matches=matches, trials=trials)


@pytest.mark.parametrize("shape", [(0, 2), (3,), (3, 1), (3, 3), (3, 2, 1)])
def test_scores_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(Q, 2\)"):
        Evidence(Access.FEATURES, scores=torch.zeros(shape))


def test_statistics() -> None:
    assert Evidence(Access.LABELS, matches=3, trials=5).statistic() == 3
    assert Evidence(Access.LABELS, matches=0, trials=0).statistic() == 0
    scores = torch.tensor([[1.0, 0.25], [0.5, 1.0], [0.0, -1.0]])
    # (0.75 - 0.5 + 1) / 3
    assert Evidence(Access.FEATURES, scores=scores).statistic() == pytest.approx(1.25 / 3, rel=1e-12)


# Randomness


def test_a_seed_is_the_hash_of_its_purpose() -> None:
    digest = hashlib.sha256(b'[3,"views",1200]').digest()
    assert derive_seed(3, "views", 1200) == int.from_bytes(digest[:8], "big") // 2


def test_purposes_never_share_a_seed() -> None:
    purposes = [(), ("a",), ("b",), ("a", "b"), ("ab",), ("a", 1), ("a", "1"), ("a", 11), ("a", 1, 1), (1,), ("1",)]
    seeds = {derive_seed(seed, *purpose) for seed in range(50) for purpose in purposes}
    assert len(seeds) == 50 * len(purposes)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_repeat_and_do_not_disturb_each_other() -> None:
    expected = torch.rand(5, generator=generator(1, "views", 3))
    torch.rand(17)
    other = generator(1, "order", 3)
    again = generator(1, "views", 3)
    drawn = []
    for _ in range(5):  # draws of one purpose between those of another
        torch.rand(3, generator=other)
        drawn.append(torch.rand(1, generator=again))
    assert torch.equal(torch.cat(drawn), expected)


def test_streams_of_different_purposes_are_uncorrelated() -> None:
    draws = torch.stack([torch.randn(4000, generator=generator(0, "stream", i)) for i in range(20)])
    correlation = torch.corrcoef(draws) - torch.eye(20)
    # 190 correlations of standard deviation 1/√4000 = 0.0158: five deviations are passed once in 10⁴ such tables
    assert correlation.abs().max() < 5 / 4000**0.5


# Extraction of many keys


def sensitive() -> nn.Module:
    """A classifier whose answers depend on every pixel, so that some offsets flip them."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4, bias=False))
    nn.init.normal_(model[1].weight, generator=torch.Generator().manual_seed(5))
    return model


class Toy(QueryScheme):
    """Adds the key's offset to the shared queries and counts changed labels."""

    name: ClassVar[str] = "toy"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.CLASSIFIER})
    access: ClassVar[frozenset[Access]] = frozenset({Access.LABELS, Access.LOGITS})

    def keygen(self, host: nn.Module, owner_data: Any, *, generator: torch.Generator) -> Key:
        queries = torch.randint(0, 200, (6, 3, 8, 8), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
        offset = torch.randint(0, 56, (1, 3, 8, 8), generator=generator, dtype=torch.uint8)
        return Key(self.name, {"queries": queries, "offset": offset})

    def embed(self, host: nn.Module, key: Key, owner_data: Any, **_: Any) -> tuple[nn.Module, Key]:
        return host, key

    def controls(self, key: Key) -> Tensor:
        return key.tensors["queries"]

    def questions(self, key: Key) -> Tensor:
        return key.tensors["queries"] + key.tensors["offset"]

    def judge(self, access: Access, answers: Tensor, control_answers: Tensor, key: Key) -> Evidence:
        if access is Access.LOGITS:
            return Evidence(access, scores=torch.stack([answers[:, 0], control_answers[:, 0]], dim=1))
        return Evidence(access, matches=int((answers != control_answers).sum()), trials=len(answers))


def test_extraction_in_blocks_equals_one_by_one() -> None:
    toy, model = Toy(), sensitive()
    keys = [toy.keygen(model, None, generator=generator(i)) for i in range(200)]  # 1200 questions: two blocks
    levels = (Access.LOGITS, Access.LABELS)
    together = extract_all(toy, [Suspect(model, HostKind.CLASSIFIER, level) for level in levels], keys)
    for level, found in zip(levels, together, strict=True):
        one_by_one = [toy.extract(Suspect(model, HostKind.CLASSIFIER, level), k) for k in keys]
        statistics = torch.tensor([[a.statistic(), b.statistic()] for a, b in zip(found, one_by_one, strict=True)])
        assert len(statistics[:, 0].unique()) > 2
        # float32 logits of other batch sizes may differ in their last bits
        torch.testing.assert_close(statistics[:, 0], statistics[:, 1], rtol=0, atol=1e-5)


def test_controls_are_asked_once() -> None:
    toy, model = Toy(), tiny()
    suspect = Suspect(model, HostKind.CLASSIFIER, Access.LABELS)
    extract_all(toy, [suspect], [toy.keygen(model, None, generator=generator(i)) for i in range(10)])
    assert suspect.queries == 6 + 10 * 6


def test_keys_with_other_controls_are_refused() -> None:
    toy, model = Toy(), tiny()
    first, second = (toy.keygen(model, None, generator=generator(i)) for i in range(2))
    other = Key("toy", {**second.tensors, "queries": second.tensors["queries"] + 1})
    with pytest.raises(ValueError, match="share their controls"):
        extract_all(toy, [Suspect(model, HostKind.CLASSIFIER, Access.LABELS)], [first, second, other])


def test_extraction_at_a_level_without_the_mark_is_refused() -> None:
    toy, model = Toy(), tiny()
    suspect = Suspect(model, HostKind.CLASSIFIER, Access.FEATURES)
    secret = toy.keygen(model, None, generator=generator(0))
    for attempt in (lambda: toy.extract(suspect, secret), lambda: extract_all(toy, [suspect], [secret])):
        with pytest.raises(AccessError, match="features access; allowed: labels, logits"):
            attempt()
    assert suspect.queries == 0


def test_decoys_are_drawn_by_keygen_and_repeat() -> None:
    toy, model = Toy(), tiny()
    secret = toy.keygen(model, None, generator=generator(0))
    decoys, again = (toy.decoys(model, secret, None, 5, seed=3) for _ in range(2))
    commitments = [k.commitment() for k in (secret, *decoys)]
    assert len(set(commitments)) == 6
    assert [k.commitment() for k in again] == commitments[1:]
    assert [k.commitment() for k in toy.decoys(model, secret, None, 5, seed=4)] != commitments[1:]


def test_no_renaming_moves_a_commitment_to_another_key() -> None:
    """Names and shapes are framed, so that one key's bytes cannot be read as another's."""
    one = Key("s", {"a": torch.zeros(2, dtype=torch.uint8), "b": torch.ones(1, dtype=torch.uint8)})
    others = [
        Key("s", {"a": torch.tensor([0, 0, 1], dtype=torch.uint8)}),
        Key("s", {"a": torch.zeros(1, dtype=torch.uint8), "b": torch.tensor([0, 1], dtype=torch.uint8)}),
        Key("s", {"a": torch.zeros(2, dtype=torch.int8), "b": torch.ones(1, dtype=torch.uint8)}),
        Key("s", one.tensors, {"a": 1}),
        Key("t", one.tensors),
    ]
    assert len({key.commitment() for key in [one, *others]}) == 6
