"""Tables of what owners measured beside utility and verdicts."""

from __future__ import annotations

import pandas as pd

from hallmark.report.tables import NOTHING, Column, Record, Table, ordered, plain

KEYS = ("experiment", "host", "pretrain", "variant", "seed")
_HEADS = {"pretrain": "algorithm"}
_RATES = {"": "bound", " expected": "expected", " longest": "longest", " hold-out": "hold-out"}
_USES = {
    ("original_accuracy", ""): "original",
    ("original_accuracy", "patch"): "original, patch",
    ("edited_accuracy", ""): "edited",
    ("edited_accuracy", "patch"): "edited, patch",
    ("locked_accuracy", ""): "locked",
    ("locked_accuracy", "random patch"): "locked, random patch",
    ("locked_accuracy", "shifted patch"): "locked, shifted patch",
    ("unlocked_accuracy", "patch"): "unlocked",
}

_WORN = "patch, "
_WORKING = ("edited", "unlocked")


def false_fires(rows: pd.DataFrame, name: str) -> Table:
    """How often random detectors of a layer fire on natural images, beside what bounds that."""
    found = rows[rows["metric"].isin(("fpr", "fpr_bound")) & rows["unit"].str.startswith("tau ")]
    parts = found["unit"].str.extract(r"^(tau [\d.]+)(.*)$")
    kinds = parts[1].map(_RATES).where(found["metric"] == "fpr_bound", "rate")
    frame = _wide(found.assign(threshold=parts[0], kind=kinds), (*KEYS, "threshold"), ("rate", *_RATES.values()))
    columns = (
        Column("measured / %", "rate", lambda r: _percent(r, "rate")),
        Column("expected / %", "expected", lambda r: _percent(r, "expected")),
        Column("bound / %", "bound", lambda r: _percent(r, "bound")),
        Column("bound, longest features / %", "longest", lambda r: _percent(r, "longest")),
        Column("bound, hold-out / %", "hold-out", lambda r: _percent(r, "hold-out")),
    )
    note = (
        "Share of test images that fire, over random directions of the layer. The bound holds over the draw of the "
        "direction and of the image with 95 %; expected is the same without what pays for the sample, a union over "
        "places; longest holds for every image of such features; hold-out is the largest limit of any one direction."
    )
    return _table(name, "False fires of detectors", note, frame, (*KEYS, "threshold"), columns)


def worn_patches(rows: pd.DataFrame, name: str) -> Table:
    """Whether a lock still opens after its patch went through an operation."""
    found = _uses(rows)
    found = found[found["unit"].str.startswith(_WORN)]
    kinds = found["metric"].str.removesuffix("_accuracy")
    wide = _wide(
        found.assign(kind=kinds, operation=found["unit"].str.removeprefix(_WORN)), (*KEYS, "operation"), _WORKING
    )
    columns = tuple(Column(f"{use} / %", use, lambda r, use=use: _percent(r, use, ".1f")) for use in _WORKING)
    note = (
        "Accuracy on images whose patch went through the operation with them. Edited is what is left after the "
        "operation alone; what unlocked has less than that, the lock takes."
    )
    return _table(name, "Worn patches", note, wide, (*KEYS, "operation"), columns)


def locked_use(rows: pd.DataFrame, name: str) -> Table:
    """What a lock leaves of a classifier or detector with and without its patch."""
    found = _uses(rows)
    found = found[~found["unit"].str.startswith(_WORN)]
    kinds = [_USES[metric, unit] for metric, unit in zip(found["metric"], found["unit"], strict=True)]
    frame = _wide(found.assign(kind=kinds), KEYS, tuple(_USES.values()))
    columns = tuple(Column(f"{use} / %", use, lambda r, use=use: _percent(r, use, ".1f")) for use in _USES.values())
    note = (
        "Top-1 accuracy on the same test images; of detectors, average precision over IoU 0.50 to 0.95. Edited: all "
        "that a lock needs is in place, and nothing is locked."
    )
    return _table(name, "What a lock leaves", note, frame, KEYS, columns)


def forgeries(rows: pd.DataFrame) -> pd.DataFrame:
    """Every forged key in a line: ``model``, ``level`` and ``forger`` that its unit names, its p-value as ``value``.

    ``drawn`` is 1 where the string that the forger named gives the key, 0 where it does not, and missing where nobody
    asked.
    """
    place = [*KEYS[:1], "scheme", *KEYS[1:], "unit"]
    found = rows[rows["metric"] == "forged_p"]
    asked = rows[rows["metric"] == "forged_drawn"][[*place, "value"]].rename(columns={"value": "drawn"})
    merged = found.merge(asked.drop_duplicates(place), on=place, how="left")
    parts = merged["unit"].str.split(", ", n=2, expand=True).reindex(columns=range(3))
    return merged.assign(model=parts[0], level=parts[1], forger=parts[2])


def forged_keys(rows: pd.DataFrame, name: str) -> Table:
    """p-values of keys that were made after the model was there, and whether a draw from a seed admits them."""
    found = forgeries(rows)
    scheme = ("scheme",) if found["scheme"].nunique() > 1 else ()
    ruled = bool(found["drawn"].notna().any())
    keys = (*KEYS[:1], *scheme, *KEYS[1:], "model", "level", "forger")
    frame = ordered(found[[*keys, "value", *(("drawn",) if ruled else ())]], keys)
    columns = [Column("p-value", "value", lambda r: plain(r["value"], ".3g"))]
    if ruled:
        columns.append(Column("drawn from a seed", "drawn", lambda r: _ANSWERS.get(r["drawn"], NOTHING)))
    return _table(name, "Forged keys", _RULED if ruled else _UNRULED, frame, keys, tuple(columns))


_ANSWERS = {0.0: "no", 1.0: "yes"}
_UNRULED = (
    "What a judge finds who is not told that the key is younger than the model: on an unmarked model, and on one "
    "with somebody else's stain. By weights, a key drawn from a public string is worth as much as the strings that "
    "were tried; by answers it binds nothing, since trigger images are made for it. What no number here shows is "
    "the commitment of the rightful owner, which is older."
)
_RULED = (
    "What a judge finds who is not told that the key is younger than the model: on an unmarked model, and on one with "
    "somebody else's mark. Computed: all in the key is the forger's choice. One public string: all that is drawn in it "
    "is drawn from a string that the forger names, and only images or networks are made for the model. Best of N "
    "strings: nothing is made, N strings are tried, which is worth a p-value of about 1/N. Drawn from a seed: whether "
    "the string gives the key, with the images and the original that the forger presents; where a computed key says "
    "yes, that rule takes nothing away. A commitment by hash and time defeats every line, whatever its p-value: a "
    "forged key is made of the model, so it is younger, and matches no commitment that is older."
)


def _uses(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of locks, those of detectors under the names that classifiers' have."""
    detected = rows[(rows["metric"] == "map") & (rows["task"] == "")]
    roles = detected["variant"].str.extract(r"^(.*?) ?(\w+)$")  # of a detector, the variant ends in which network it is
    detected = detected.assign(variant=roles[0], metric=roles[1] + "_accuracy")
    return pd.concat([rows[rows["metric"].isin({metric for metric, _ in _USES})], detected])


def _wide(found: pd.DataFrame, keys: tuple[str, ...], kinds: tuple[str, ...]) -> pd.DataFrame:
    """One line per value of ``keys``, one column per ``kind``."""
    wide = found.pivot_table(index=list(keys), columns="kind", values="value", aggfunc="first", observed=True)
    return ordered(wide.reindex(columns=list(kinds)).rename_axis(columns=None).reset_index(), keys)


def _percent(record: Record, name: str, digits: str = ".3g") -> str:
    return plain(100 * record[name], digits)


def _table(
    name: str, title: str, note: str, frame: pd.DataFrame, keys: tuple[str, ...], columns: tuple[Column, ...]
) -> Table:
    return Table(name, title, note, frame, (*(Column(_HEADS.get(key, key), key) for key in keys), *columns))
