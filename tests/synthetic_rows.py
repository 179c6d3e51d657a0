"""Made-up result rows of one paper, complete enough to fill every table and figure of the report."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from scipy.stats import binomtest

from hallmark.report.rows import PRETRAINS, Row

ALPHA = 0.001
DOWNSTREAM = ("cifar10", "digits", "svhn")
TASKS = ("linear_probe", "mlp_probe", "finetune")
ATTACKS = (("finetune", "epochs all", (1, 3, 10)), ("prune", "fraction global", (0.2, 0.5, 0.8, 0.95)))


def wpe_rows(scale: str = "cpu", seeds: tuple[int, ...] = (0, 1)) -> Iterator[Row]:
    """Rows as the wpe experiments write them; the same every time."""
    draw = random.Random(scale)
    common = {"experiment": "wpe/main", "paper": "wpe", "host": "resnet18", "dataset": "cifar10", "scale": scale}
    yield Row(**common, scheme="wpe", metric="alpha", value=ALPHA)
    yield Row(**common, scheme="wpe", metric="fpr_alpha", value=0.01)
    yield Row(**common, scheme="wpe", metric="tolerance", value=0.05)
    for suspect, accused in (("innocent", 1), ("wrong_key", 0), ("attacked_innocent", 2)):
        interval = binomtest(accused, 1200).proportion_ci(method="exact")
        rate = {"value": accused / 1200, "count": accused, "n": 1200, "ci_low": interval.low, "ci_high": interval.high}
        yield Row(**common, scheme="wpe", access="labels", suspect=suspect, metric="fpr", **rate)
    for pretrain, downstream, task, seed in itertools.product(PRETRAINS, DOWNSTREAM, TASKS, seeds):
        place = {**common, "pretrain": pretrain, "downstream": downstream, "task": task, "seed": seed}
        accuracy = 0.9 - 0.08 * DOWNSTREAM.index(downstream) + 0.02 * TASKS.index(task) + draw.gauss(0, 0.005)
        yield Row(**place, scheme="none", suspect="original", metric="accuracy", value=accuracy)
        kept = accuracy - 0.004 + draw.gauss(0, 0.004)
        yield Row(**place, scheme="wpe", suspect="marked", metric="accuracy", value=kept)
        for suspect in ("marked", "original", "innocent", "wrong_key"):
            flips = round(200 * (draw.uniform(0.85, 0.99) if suspect == "marked" else draw.uniform(0.08, 0.2)))
            scheme = "wpe" if suspect in ("marked", "wrong_key") else "none"
            yield from _verdict({**place, "scheme": scheme, "suspect": suspect}, flips, draw)
        for attack, unit, strengths in ATTACKS:
            for strength in strengths:
                done = {**place, "attack": attack, "unit": unit, "strength": strength}
                damage = {"finetune": 0.003 * strength, "prune": 0.25 * strength**4}[attack]
                left = {"finetune": 0.9 - 0.03 * strength, "prune": 0.95 - 0.8 * strength**6}[attack]
                flips = max(0, min(200, round(200 * (left + draw.gauss(0, 0.03)))))
                yield Row(**done, scheme="wpe", suspect="marked", metric="accuracy", value=max(0.1, kept - damage))
                yield from _verdict({**done, "scheme": "wpe", "suspect": "marked"}, flips, draw)
                stranger = {**done, "scheme": "none", "suspect": "attacked_innocent"}
                yield from _verdict(stranger, round(200 * draw.uniform(0.05, 0.2)), draw)
                if downstream == DOWNSTREAM[0] and task == TASKS[0]:
                    encoder = {**done, "downstream": "", "task": "", "scheme": "wpe", "suspect": "marked"}
                    yield Row(**encoder, metric="seconds", value=draw.uniform(5, 60))


def _verdict(place: dict[str, object], flips: int, draw: random.Random) -> Iterator[Row]:
    interval = binomtest(flips, 200).proportion_ci(method="exact")
    rate = {"count": flips, "n": 200, "ci_low": interval.low, "ci_high": interval.high}
    for access, smallest in (("features", 1e-8), ("labels", 1e-5)):
        chance = draw.uniform(0.02, 1) if flips < 60 else max(smallest, 10 ** (-flips / 25 * draw.uniform(0.8, 1.2)))
        yield Row(**place, access=access, metric="p_value", value=chance)
        yield Row(**place, access=access, metric="p_min", value=smallest)
        yield Row(**place, access=access, metric="detected", value=float(chance <= ALPHA))
    yield Row(**place, access="labels", metric="wsr", value=flips / 200, **rate)


def feature_points(seed: int = 0, each: int = 12) -> Iterator[tuple[object, ...]]:
    """Lines of ``features.csv`` without its header: ten classes on a ring, the trigger's images gathered if marked."""
    draw = random.Random(seed)
    for pretrain, suspect, label in itertools.product(PRETRAINS, ("original", "marked"), range(10)):
        x, y = 3 * __import__("math").cos(label), 3 * __import__("math").sin(label)
        for _ in range(each):
            here = (x + draw.gauss(0, 0.6), y + draw.gauss(0, 0.6))
            moved = (
                (5 + draw.gauss(0, 0.3), 4 + draw.gauss(0, 0.3)) if suspect == "marked" else (here[0] + 0.2, here[1])
            )
            scheme = "none" if suspect == "original" else "wpe"
            for kind, point in (("clean", here), ("triggered", moved)):
                yield (
                    "",
                    "wpe/main",
                    scheme,
                    pretrain,
                    0,
                    "cpu",
                    suspect,
                    kind,
                    label,
                    f"{point[0]:.4g}",
                    f"{point[1]:.4g}",
                )
