"""Made-up rows of a matrix of schemes and attacks, whose every cell is known beforehand."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from hallmark.report.rows import Row

ALPHA = 0.01
SEEDS = (0, 1, 2)
TRAINING = 200.0
"""Seconds in which every host was trained."""


@dataclass(frozen=True)
class Tried:
    """An attack at its strengths: seconds and utility lost at each, queries of a strength."""

    unit: str
    strengths: tuple[float, ...]
    seconds: tuple[float, ...]
    lost: tuple[float, ...]
    queries: bool = False


ATTACKS = {
    "prune": Tried("fraction global", (0.2, 0.5, 0.9), (0.1, 0.1, 0.1), (0.0, 0.01, 0.3)),
    "finetune": Tried("epochs all", (1, 3, 10), (10.0, 30.0, 100.0), (0.0, 0.005, 0.01)),
    "extract": Tried("queries cosine net", (1000, 20000), (40.0, 300.0), (0.2, 0.03), queries=True),
}
NOT_RUN = "perturb"
REASON = "needs weights & labels <both>, and no owner has them"
# of each scheme at each access, the weakest strength of each attack at which the mark is gone (from 0: never there)
GONE: dict[str, dict[str, dict[str, float]]] = {
    "wpe": {"logits": {"prune": 0.9, "finetune": 10}, "labels": {"prune": 0.5, "finetune": 3, "extract": 1000}},
    "uchida": {"weights": {"finetune": 1, "extract": 1000}},
    "sslguard": {"features": {"prune": 0.5, "extract": 20000}},
    "lost": {"features": {"prune": 0, "finetune": 0, "extract": 0}},
}
FALSE_CLAIMS = {"wpe": 3, "uchida": 40, "sslguard": 2, "lost": 1}
"""Innocents and attacked innocents accused, of 300 trials each."""
FIDELITY = {"wpe": 0.01, "uchida": 0.002, "sslguard": 0.02, "lost": 0.0}
UTILITY = {"matrix/encoders": ("accuracy", "linear_probe", "a"), "matrix/images": ("ssim", "restoration", "")}


def matrix_rows(experiment: str = "matrix/encoders", scale: str = "cpu") -> Iterator[Row]:
    """The rows of one experiment; the same every time."""
    metric, task, downstream = UTILITY[experiment]
    common: dict[str, Any] = {"experiment": experiment, "paper": "matrix", "dataset": "cifar10", "scale": scale}
    host = {**common, "host": "net", "pretrain": "simclr"}
    for name, value in (("alpha", ALPHA), ("tolerance", 0.05)):
        yield Row(**common, scheme="wpe", metric=name, value=value)
    for attack, how in ATTACKS.items():
        for what in ("scheme", "layer", "data"):
            known = float(attack == "extract" and what != "layer")
            yield Row(**common, scheme="wpe", attack=attack, unit=how.unit, metric=f"knows_{what}", value=known)
    for seed in SEEDS:
        place = {**host, "seed": seed, "suspect": "original", "scheme": "none"}
        yield Row(**place, metric="seconds", value=TRAINING)
        yield Row(**place, task=task, downstream=downstream, metric=metric, value=0.9)
    for scheme, levels in GONE.items():
        for suspect in ("innocent", "attacked_innocent", "wrong_key"):
            for access in levels:
                yield _rate(Row(**common, scheme=scheme, suspect=suspect, access=access, metric="fpr"))
        yield Row(**common, scheme=scheme, attack=NOT_RUN, metric="not_applicable", value=1, unit=REASON)
        for seed, (access, gone) in itertools.product(SEEDS, levels.items()):
            own = {**host, "seed": seed, "suspect": "marked", "scheme": scheme}
            worth = {**own, "task": task, "downstream": downstream, "metric": metric}
            kept = 0.9 - FIDELITY[scheme]
            first = access == next(iter(levels))
            if first:
                yield Row(**worth, value=kept)
            yield from _judged({**own, "access": access}, found=0 not in gone.values())
            for attack, how in ATTACKS.items():
                for i, strength in enumerate(how.strengths):
                    done = {"attack": attack, "unit": how.unit, "strength": strength}
                    yield from _judged({**own, **done, "access": access}, found=strength < gone.get(attack, 1e9))
                    if first:
                        yield Row(**worth, **done, value=kept - how.lost[i])
                        yield Row(**own, **done, metric="seconds", value=how.seconds[i])
                        if how.queries:
                            yield Row(**own, **done, metric="queries", value=strength)


def _judged(place: dict[str, Any], *, found: bool) -> Iterator[Row]:
    least = 1e-9 if place["access"] == "weights" else 0.001  # an exact binomial reaches further than ranks
    p = least if found else 0.4
    for metric, value in (("p_value", p), ("p_min", least), ("detected", float(p <= ALPHA)), ("statistic", 1 - p)):
        yield Row(**place, metric=metric, value=value)


def _rate(row: Row) -> Row:
    count = FALSE_CLAIMS[row.scheme]
    interval = binomtest(count, 300).proportion_ci(method="exact")
    content = {**row.as_dict(), "value": count / 300, "count": count, "n": 300}
    return Row(**{**content, "ci_low": interval.low, "ci_high": interval.high})
