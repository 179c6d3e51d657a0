"""How fast Hallmark is against the alternatives: the README's block, from what ``scripts/benchmark.py`` measured."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hallmark.errors import DataError
from hallmark.report.tables import NOTHING, markdown, plain, points

HEADS = ("what", "against", "ratio of speeds (1: equal)", "rounds from … to")
NOTE = (
    "Alternatives run in turn in one process; the median of the rounds, and the least and the greatest. Ratios of two "
    "measurements on one machine ({machine}): with another processor they differ. "
    "Repeat: {commands}."
)

RATIOS: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "pretrain": (
        ("suite_over_bare", "SimCLR pretraining of {}", "forward, backward and update alone"),
        ("suite_over_lightly", "SimCLR pretraining of {}", "lightly's transform, loader with two workers"),
        ("bare_over_lightly", "forward, backward and update alone, {}", "lightly's transform, loader with two workers"),
        ("suite_over_lightly_example", "SimCLR pretraining of {}", "lightly's own example"),
        ("ratio", "views of 32×32 images, one thread", "lightly's transform"),
        ("hallmark_over_torchvision", "views of 32×32 images, one thread", "torchvision v2"),
        ("hallmark_over_kornia", "views of 32×32 images, one thread", "kornia"),
    ),
    "supervised": (("suite_over_bare", "supervised training, {} mode", "forward, backward and update alone"),),
    "probe": (
        ("speed_up", "24 linear probes as one problem", "one after another, features in memory"),
        ("speed_up_over_loader", "24 linear probes as one problem", "one after another, behind a loader"),
    ),
    "verify": (("speed_up", "ranking a key among 999 decoys", "one key after another"),),
    "stain": (("times_faster", "staining a trained network", "one epoch of fine-tuning a mark in"),),
}
"""By benchmark: the name of a ratio in its file, what is measured, and against what; {} is what it was measured on."""


def block(folder: Path) -> str:
    """The README's table of ratios; a remark where nothing was measured.

    Args:
        folder: ``results/benchmarks``.

    Raises:
        DataError: A file there is no benchmark's.
    """
    measured = {
        name: _read(path) for name in (*RATIOS, "parity", "sweep") if (path := folder / f"{name}.json").is_file()
    }
    if not measured:
        return "*Nothing has been measured yet.*\n"
    lines = [line for name in RATIOS if name in measured for line in _ratios(name, measured[name])]
    machines = sorted({f"{m['cpu']}, {m['threads']} threads" for m in (d["machine"] for d in measured.values())})
    note = NOTE.format(
        machine="; ".join(machines), commands=", ".join(f"`python scripts/benchmark.py {name}`" for name in measured)
    )
    sentences = [sentence for name, tell in _TOLD.items() if name in measured for sentence in tell(measured[name])]
    return markdown(HEADS, lines) + "\n" + " ".join([*sentences, note]) + "\n"


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}); measure it again with scripts/benchmark.py") from None
    if not {"benchmark", "machine"} <= set(content):
        raise DataError(f"{path} was not written by scripts/benchmark.py; measure it again")
    return content


def _ratios(name: str, document: Mapping[str, Any]) -> Iterator[list[str]]:
    for key, what, against in RATIOS[name]:
        for place, spread in _found(document, key, ""):
            spread_text = f"{plain(spread['min'], '.3g')} … {plain(spread['max'], '.3g')}"
            yield [what.format(place).strip(), against, plain(spread["median"], ".3g"), spread_text]


def _found(content: Mapping[str, Any], key: str, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every spread of a name in a document, with the names that it stands under."""
    for name, value in content.items():
        if not isinstance(value, Mapping):
            continue
        if name == key and "median" in value:
            yield place, value
        elif name not in ("machine", "settings", "curves"):
            group = name in ("networks", "augmentation", "probes", "verification", "marking", "supervised")
            yield from _found(value, key, place if group else f"{place} {name}".strip())


def _parity(document: Mapping[str, Any]) -> Iterator[str]:
    found = document["parity"]
    mean, low, high = (points(found[name]) if found[name] is not None else NOTHING for name in _DIFFERENCE)
    yield (
        f"After {found['epochs']} equal epochs on {found['images']:,} images kNN accuracy differs from that of "
        f"lightly's pipeline by {mean} points ({100 * found['confidence']:g} % interval {low} … {high}, "
        f"{found['seeds']} seeds)."
    )


_DIFFERENCE = ("mean_difference", "low", "high")


def _sweep(document: Mapping[str, Any]) -> Iterator[str]:
    found = document["sweep"]
    yield (
        f"Planning {found['stages']:,} stages against a store of {found['entries']:,} takes "
        f"{found['planning_seconds']['median']:.2g} s."
    )


_TOLD = {"parity": _parity, "sweep": _sweep}
