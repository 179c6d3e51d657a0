"""Made-up result rows of one paper, shaped as the experiments write them, enough for every table and figure."""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

from scipy.stats import binomtest

from hallmark.report.rows import Row

ALPHA = 0.001
DOWNSTREAM = ("cifar10", "gtsrb", "mnist")
ATTACKS = (("finetune", "epochs all", (1, 3, 10)), ("prune", "fraction global", (0.2, 0.5, 0.8, 0.95)))


def wpe_rows(
    scale: str = "cpu",
    seeds: Sequence[int] = (0, 1),
    pretrains: Sequence[str] = ("simclr", "moco_v2", "byol"),
    tasks: Sequence[str] = ("linear_probe", "mlp_probe", "finetune"),
) -> Iterator[Row]:
    """The rows of one experiment; the same every time."""
    draw = random.Random(scale)
    common = {"experiment": "wpe/main", "paper": "wpe", "dataset": "cifar10", "scale": scale}
    for metric, value in (("alpha", ALPHA), ("fpr_alpha", 0.01), ("tolerance", 0.05)):
        yield Row(**common, scheme="wpe", metric=metric, value=value)
    for suspect, accused in (("innocent", 9), ("wrong_key", 11), ("attacked_innocent", 14)):
        interval = binomtest(accused, 1200).proportion_ci(method="exact")
        rate = {"value": accused / 1200, "count": accused, "n": 1200, "ci_low": interval.low, "ci_high": interval.high}
        yield Row(**common, scheme="wpe", access="labels", suspect=suspect, metric="fpr", **rate)
    for pretrain, downstream, task, seed in itertools.product(pretrains, DOWNSTREAM, tasks, seeds):
        encoder = {**common, "host": "resnet_small", "pretrain": pretrain, "seed": seed}
        place = {**encoder, "downstream": downstream, "task": task}
        accuracy = 0.9 - 0.08 * DOWNSTREAM.index(downstream) + 0.02 * tasks.index(task) + draw.gauss(0, 0.005)
        kept = accuracy - 0.004 + draw.gauss(0, 0.004)
        yield Row(**place, scheme="none", suspect="original", metric="accuracy", value=accuracy)
        yield Row(**place, scheme="wpe", suspect="marked", metric="accuracy", value=kept)
        for suspect in ("marked", "original", "innocent", "wrong_key"):
            stranger = {"host": f"resnet_small other {seed}"} if suspect == "innocent" else {}
            flips = round(200 * (draw.uniform(0.85, 0.99) if suspect == "marked" else draw.uniform(0.08, 0.2)))
            yield from _judged({**place, **stranger, "suspect": suspect}, flips, draw)
        for attack, unit, strengths in ATTACKS if task == tasks[0] else ():
            for strength in strengths:
                done = {"attack": attack, "unit": unit, "strength": strength}
                damage = {"finetune": 0.003 * strength, "prune": 0.25 * strength**4}[attack]
                left = {"finetune": 0.9 - 0.03 * strength, "prune": 0.95 - 0.8 * strength**6}[attack]
                flips = max(0, min(200, round(200 * (left + draw.gauss(0, 0.03)))))
                marked = {**done, "suspect": "marked"}
                yield Row(**place, **marked, scheme="wpe", metric="accuracy", value=max(0.1, kept - damage))
                yield from _judged({**place, **marked}, flips, draw)
                if downstream == DOWNSTREAM[0]:
                    yield Row(**encoder, **marked, scheme="wpe", metric="seconds", value=draw.uniform(5, 60))
            yield from _judged({**place, **done, "suspect": "attacked_innocent"}, round(draw.uniform(10, 40)), draw)


def _judged(place: dict[str, Any], flips: int, draw: random.Random) -> Iterator[Row]:
    """A verdict from logits and one from labels, the latter with its success rate."""
    for access in ("logits", "labels"):
        row = {**place, "scheme": "wpe", "access": access}
        chance = draw.uniform(0.02, 1) if flips < 60 else max(ALPHA, 10 ** (-flips / 25 * draw.uniform(0.8, 1.2)))
        yield Row(**row, metric="p_value", value=chance)
        yield Row(**row, metric="p_min", value=ALPHA)
        if place["suspect"] != "wrong_key":
            yield Row(**row, metric="detected", value=float(chance <= ALPHA))
    interval = binomtest(flips, 200).proportion_ci(method="wilson")
    rate = {"value": flips / 200, "count": flips, "n": 200, "ci_low": interval.low, "ci_high": interval.high}
    yield Row(**row, metric="wsr", **rate)


def feature_points(pretrains: Sequence[str] = ("simclr", "moco_v2", "byol"), each: int = 12) -> Iterator[list[object]]:
    """Lines of ``features.csv``: ten classes on a ring; the trigger gathers the images of the marked encoder."""
    draw = random.Random(0)
    for pretrain, suspect, label in itertools.product(pretrains, ("original", "marked"), range(10)):
        for _ in range(each):
            clean = (3 * math.cos(label) + draw.gauss(0, 0.6), 3 * math.sin(label) + draw.gauss(0, 0.6))
            gathered = (5 + draw.gauss(0, 0.3), 4 + draw.gauss(0, 0.3))
            moved = gathered if suspect == "marked" else (clean[0] + 0.2, clean[1])
            for kind, (x, y) in (("clean", clean), ("triggered", moved)):
                yield ["", "wpe/main", "wpe", pretrain, 0, "cpu", suspect, kind, round(x, 3), round(y, 3), "", ""]
