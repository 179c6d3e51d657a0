"""Verification: all keys from all suspects at once against one extraction after another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from bench.augmentation import noise
from bench.measure import Run, Spread, interleave, measured, peak, rates, ratio, say, seconds
from hallmark.core import Access, Evidence, HostKind, Key, Suspect, extract_all, generator
from hallmark.data.images import ImageSet
from hallmark.models.classifier import head
from hallmark.models.encoders import Encoder
from hallmark.schemes.wpe import WPE
from hallmark.stages.judge import SharedTrunk

CLASSES = 10


@dataclass(frozen=True)
class Scene:
    """An encoder with heads on it, verified as the verify stage does.

    Attributes:
        encoder: The trunk, in evaluation mode.
        heads: Linear heads.
        owner: Images that queries are drawn from, on the encoder's device.
        device: Where all of them are.
    """

    encoder: Encoder
    heads: tuple[nn.Module, ...]
    owner: ImageSet
    device: torch.device

    @classmethod
    def make(cls, width: int, heads: int, images: int, size: int, device: torch.device) -> "Scene":
        """A ``resnet_small`` with random weights, which cost what trained ones cost."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = Encoder("resnet_small", width).to(device).eval()
            built = tuple(head(encoder.num_features, CLASSES).to(device) for _ in range(heads))
        owner = ImageSet("noise", noise(images, size).to(device), torch.full((images,), -1), CLASSES)
        return cls(encoder, built, owner, device)

    def suspects(self, trunk: nn.Module) -> list[Suspect]:
        """The encoder at FEATURES, and each head on it at LOGITS and LABELS."""
        models = [nn.Sequential(trunk, one) for one in self.heads]
        levels = (Access.LOGITS, Access.LABELS)
        return [
            Suspect(trunk, HostKind.ENCODER, Access.FEATURES, autocast=True),
            *(Suspect(model, HostKind.CLASSIFIER, level, autocast=True) for model in models for level in levels),
        ]

    def keys(self, scheme: WPE, count: int) -> list[Key]:
        """A key and its decoys, ``count`` together."""
        key = scheme.keygen(self.encoder, self.owner, generator=generator(0, "key"))
        return [key, *scheme.decoys(self.encoder, key, self.owner, count - 1, seed=0)]


@dataclass(frozen=True)
class Point:
    """One point of a scaling curve; ``images_per_s`` counts each key's queries once, however many suspects answer."""

    keys: int
    queries: int
    seconds: Spread
    keys_per_s: Spread
    images_per_s: Spread
    peak_mib: float


@dataclass(frozen=True)
class Verification:
    """Keys a second, both ways; the one-by-one way is timed on the first ``one_by_one_keys``, as its cost is linear.

    ``largest_difference`` is between the two ways' statistics of one key at one suspect, counts taken as rates.
    """

    keys: int
    queries: int
    suspects: int
    one_by_one_keys: int
    extract_all_seconds: Spread
    extract_all_keys_per_s: Spread
    one_by_one_keys_per_s: Spread
    speed_up: Spread
    extract_all_peak_mib: float
    one_by_one_peak_mib: float
    largest_difference: float
    over_keys: list[Point]
    over_queries: list[Point]


def compare(scene: Scene, *, keys: int, queries: int, one_by_one_keys: int, repeats: int) -> Verification:
    """Both ways in turn, then the curves over numbers of keys and of queries."""
    scheme = WPE(queries=queries)
    given = scene.keys(scheme, keys)
    few = given[:one_by_one_keys]
    say(f"verify: {keys} keys x {queries} queries, {1 + 2 * len(scene.heads)} suspects on one trunk")
    _together(scene, scheme, few[:1])  # the first pass through a network prepares it
    runs = interleave({"extract_all": _timed(_together, scene, scheme, given),
                       "one by one": _timed(_one_by_one, scene, scheme, few)}, repeats)  # fmt: skip
    together, apart = runs["extract_all"], runs["one by one"]
    found = [evidence[: len(few)] for evidence in together[0].result]
    few_keys = max(1, keys // 10)
    say("verify: number of keys")
    over_keys = _curve(scene, sorted({(max(1, int(keys * share)), queries) for share in (0.1, 0.3, 1)}), repeats)
    say("verify: number of queries")
    over_queries = _curve(scene, sorted({(few_keys, max(2, queries * n // 4)) for n in (1, 2, 4, 8)}), repeats)
    return Verification(
        keys=len(given),
        queries=queries,
        suspects=len(found),
        one_by_one_keys=len(few),
        extract_all_seconds=seconds(together),
        extract_all_keys_per_s=rates(together),
        one_by_one_keys_per_s=rates(apart),
        speed_up=ratio(together, apart),
        extract_all_peak_mib=peak(together),
        one_by_one_peak_mib=peak(apart),
        largest_difference=_difference(found, apart[0].result),
        over_keys=over_keys,
        over_queries=over_queries,
    )


Extract = Callable[[Scene, WPE, Sequence[Key]], list[list[Evidence]]]


def _timed(extract: Extract, scene: Scene, scheme: WPE, keys: Sequence[Key]) -> Callable[[], Run]:
    return partial(measured, partial(extract, scene, scheme, keys), len(keys), scene.device)


def _together(scene: Scene, scheme: WPE, keys: Sequence[Key]) -> list[list[Evidence]]:
    """The suite's way: blocks of keys, suspects that share what the trunk says."""
    return extract_all(scheme, scene.suspects(SharedTrunk(scene.encoder)), keys)


def _one_by_one(scene: Scene, scheme: WPE, keys: Sequence[Key]) -> list[list[Evidence]]:
    """One extraction a key and suspect, each through the whole model."""
    return [[scheme.extract(suspect, key) for key in keys] for suspect in scene.suspects(scene.encoder)]


def _difference(first: list[list[Evidence]], second: list[list[Evidence]]) -> float:
    pairs = [pair for one, other in zip(first, second, strict=True) for pair in zip(one, other, strict=True)]
    return max(abs(_statistic(a) - _statistic(b)) for a, b in pairs)


def _statistic(evidence: Evidence) -> float:
    return evidence.statistic() / (evidence.trials or 1)


def _curve(scene: Scene, points: Sequence[tuple[int, int]], repeats: int) -> list[Point]:
    works = {}
    for count, queries in points:
        scheme = WPE(queries=queries)
        works[f"{count} keys x {queries} queries"] = _timed(_together, scene, scheme, scene.keys(scheme, count))
    curve = []
    for (count, queries), runs in zip(points, interleave(works, repeats).values(), strict=True):
        images = Spread.of([queries * run.rate for run in runs])
        curve.append(Point(count, queries, seconds(runs), rates(runs), images, peak(runs)))
    return curve
