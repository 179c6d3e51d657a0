"""The result rows: one metric a row, tidy and long, in one sorted CSV file.

Stages write rows with :func:`merge`, the report reads them with :func:`read`.  The file is the record of what was
measured, so it is byte-stable: the same rows always give the same bytes, whoever wrote them and in whatever order.
Writing needs the standard library only; pandas is imported where a frame is asked for.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from hallmark.errors import DataError, allowed

if TYPE_CHECKING:
    import pandas as pd

SUSPECTS = ("marked", "original", "innocent", "wrong_key", "attacked_innocent")
ACCESS = ("weights", "weights_aligned", "features", "logits", "labels", "images")
TASKS = ("linear_probe", "mlp_probe", "finetune", "knn", "classification", "restoration", "detection")
PRETRAINS = ("simclr", "moco_v2", "byol", "supervised", "foreign", "detection", "restoration")
SCALES = ("smoke", "cpu", "paper")
FRACTIONS = (
    *("accuracy", "knn_accuracy", "original_accuracy", "edited_accuracy", "locked_accuracy", "unlocked_accuracy"),
    *("map", "tolerance"),
    *(
        "p_value",
        "p_min",
        "alpha",
        "fpr_alpha",
        "detected",
        "wsr",
        "foreign_flip",
        "fpr",
        "ber",
        "t_test_p",
        "forged_p",
        "forged_drawn",
    ),
    *("success_rate", "success_rate_centred", "bit_accuracy"),
    *("auc", "tpr"),
)
METRICS = (
    *FRACTIONS,
    *("statistic", "queries", "response_noise", "perturbation_linf", "own_cosine", "key_cosine_clean", "key_cosine"),
    *("embed_loss", "psnr", "psnr_input", "ssim", "fpr_bound", "changed_weights", "response", "outlier_index"),
    *("nc", "nc_blank", "nc_centred", "nc_centred_input", "nc_centred_clean"),
    *("seconds", "images_per_s", "peak_mib", "attacker_images"),
    "not_applicable",
    *("knows_scheme", "knows_layer", "knows_data"),
)
VOCABULARY: dict[str, tuple[str, ...]] = {
    "pretrain": ("", *PRETRAINS),
    "task": ("", *TASKS),
    "access": ("", *ACCESS),
    "suspect": ("", *SUSPECTS),
    "scale": SCALES,
    "metric": METRICS,
}
"""The columns whose words are known, each in the order in which tables and figures show it."""
OPEN = frozenset({"pretrain", "task"})
"""Those of them that an extension may add lower-case words to."""
_WORD = re.compile(r"[a-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured number and everything that identifies it.

    Attributes:
        run: Hash of the stage that measured it.
        experiment: Name of the experiment's file.
        paper: The paper the experiment belongs to, as its folder under ``experiments/`` is called.
        scheme: The watermark, or ``none`` for the unmarked twin.
        host: The host network.
        pretrain: How the host was trained, such as :data:`PRETRAINS`, or empty.
        dataset: What the host was trained on.
        downstream: What the downstream model was trained on, or empty.
        attack: The attack's verb, or ``none``.
        strength: The attack's strength in ``unit``; 0 where nothing was done.
        unit: Unit and variant of the strength, e.g. ``epochs all``; of ``auc`` and ``tpr`` the detector; of
            ``not_applicable`` why.
        task: What it is used for, such as :data:`TASKS`, or empty.
        access: What the verifier could touch, one of :data:`ACCESS`, or empty where nothing was verified.
        suspect: One of :data:`SUSPECTS`, or empty for what holds for the whole experiment, such as ``alpha``.
        seed: The run's seed.
        scale: One of :data:`SCALES`.
        metric: One of :data:`METRICS`.
        value: The number; fractions are 0…1.
        count: Successes behind a rate.
        n: Trials behind a rate.
        ci_low: Lower end of the interval.
        ci_high: Upper end of the interval.
        wall_s: Seconds the stage took.
        device: What it ran on.
        commit: Version of the code.
        variant: The scheme's settings where an experiment compares several, or empty.

    Raises:
        DataError: If a value is outside its vocabulary, not finite, or not the kind of number its column holds.
    """

    run: str = ""
    experiment: str
    paper: str
    scheme: str
    host: str = ""
    pretrain: str = ""
    dataset: str = ""
    downstream: str = ""
    attack: str = "none"
    strength: float = 0.0
    unit: str = ""
    task: str = ""
    access: str = ""
    suspect: str = ""
    seed: int = 0
    scale: str
    metric: str
    value: float | None = None
    count: int | None = None
    n: int | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    wall_s: float | None = None
    device: str = ""
    commit: str = ""
    variant: str = ""

    def __post_init__(self) -> None:
        for column, choices in VOCABULARY.items():
            word = getattr(self, column)
            if word not in choices and not (column in OPEN and isinstance(word, str) and _WORD.fullmatch(word)):
                raise DataError(allowed(word, choices, column))
        for column in COLUMNS:
            if column in NUMBERS:
                number_text(getattr(self, column), column)
            elif not isinstance(getattr(self, column), str):
                raise DataError(
                    f"{column} is {getattr(self, column)!r}; it has to be a text, empty where there is none"
                )
        if self.strength is None or self.seed is None:
            raise DataError("strength and seed identify a row and cannot be empty; write 0 where there is none")
        if self.attack == "none" and self.strength != 0:
            raise DataError(f"attack none has strength {self.strength!r}; where nothing was done it is 0")
        if self.metric in FRACTIONS and self.value is not None and not 0 <= self.value <= 1:
            raise DataError(f"{self.metric} is {self.value!r}; fractions are written 0 to 1")

    def as_dict(self) -> dict[str, object]:
        """The row as ``{column: value}``, in the order of :data:`COLUMNS`."""
        return {column: getattr(self, column) for column in COLUMNS}

    def cells(self) -> tuple[str, ...]:
        """The row's texts in the file, in the order of :data:`COLUMNS`."""
        return tuple(
            number_text(value, column) if column in NUMBERS else str(value) for column, value in self.as_dict().items()
        )


COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(Row))
FLOATS = ("strength", "value", "ci_low", "ci_high", "wall_s")
INTEGERS = ("seed", "count", "n")
NUMBERS = frozenset(FLOATS + INTEGERS)
IDENTITY: tuple[str, ...] = tuple(
    c for c in COLUMNS if c not in {"run", "value", "count", "n", "ci_low", "ci_high", "wall_s", "device", "commit"}
)
"""The columns that say what was measured; no two rows of a file are equal in all of them."""


def number_text(value: object, column: str = "value") -> str:
    """A number as the file holds it: integers exact, floats at their shortest with at most six significant digits.

    Args:
        value: A number or ``None``.
        column: The column it belongs to; decides whether it has to be an integer.

    Returns:
        ``""`` for ``None``; never ``-0``, and no ``.0`` behind a whole number.

    Raises:
        DataError: If it is not a finite number, or not whole where the column needs that.
    """
    if value is None:
        return ""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise DataError(f"{column} is {value!r}; it has to be a number or empty") from None
    if not math.isfinite(number):
        raise DataError(f"{column} is {number}; it has to be finite, or empty where there is no number")
    if column in INTEGERS:
        if not number.is_integer():
            raise DataError(f"{column} is {value!r}; it has to be a whole number")
        return str(int(value))  # type: ignore[call-overload]
    return repr(float(f"{number:.6g}") + 0.0).removesuffix(".0")


def read(path: str | Path) -> pd.DataFrame:
    """The rows of a file as a frame.

    Args:
        path: A CSV file with the columns :data:`COLUMNS`.

    Returns:
        One line per row: text columns as ``str``, ``seed`` and floats as numbers (empty is NaN), ``count`` and ``n`` as
        nullable integers.

    Raises:
        DataError: If the file is missing or a line breaks a rule; the message names the line and the value.
    """
    import pandas as pd

    frame = pd.DataFrame([row.as_dict() for row in _rows(Path(path))], columns=list(COLUMNS))
    types = dict.fromkeys(FLOATS, "float64") | {"seed": "int64", "count": "Int64", "n": "Int64"}
    return frame.astype(types)


def merge(path: str | Path, rows: Iterable[Row], *, complete: bool = False) -> int:
    """Put rows into a file; a new row replaces the one that is equal in :data:`IDENTITY`.

    The file is locked, sorted and replaced in one step, so that several processes can write and none can read half.

    Args:
        path: The CSV file; made with its folder if it is missing.
        rows: The new rows.
        complete: Whether they are all there is of their experiment, seed and scale; older rows of these then go, so
            that no table mixes what two configurations measured.

    Returns:
        How many rows were added, altered or removed; with 0 the file is not touched.

    Raises:
        DataError: If two of the new rows claim the same identity with different content, or the file is damaged.
    """
    path = Path(path)
    new: dict[tuple[str, ...], Row] = {}
    for row in rows:
        previous = new.setdefault(_identity(row), row)
        if previous.cells() != row.cells():
            raise DataError(f"two rows claim the same place ({_place(row)}); give them another seed or experiment")
    if not new:
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        old = {_identity(row): row for row in _rows(path)} if path.exists() else {}
        changed = sum(key not in old or old[key].cells() != row.cells() for key, row in new.items())
        if complete:
            runs = {_run_of(row) for row in new.values()}
            kept = {key: row for key, row in old.items() if key in new or _run_of(row) not in runs}
            changed += len(old) - len(kept)
            old = kept
        if changed:
            _write(path, sorted((old | new).values(), key=_order))
    return changed


def _rows(path: Path) -> Iterator[Row]:
    """The validated rows of a file, in its order."""
    if not path.is_file():
        raise DataError(f"{path} does not exist; run an experiment first, it writes its rows there")
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file)
        header = tuple(next(lines, ()))
        if header != COLUMNS:
            odd = sorted(set(header) ^ set(COLUMNS)) or ["their order"]
            raise DataError(f"{path}, line 1: wrong columns ({', '.join(odd)}); expected {','.join(COLUMNS)}")
        seen: dict[tuple[str, ...], int] = {}
        for cells in lines:
            where = f"{path}, line {lines.line_num}"
            if len(cells) != len(COLUMNS):
                raise DataError(f"{where}: {len(cells)} cells instead of {len(COLUMNS)}")
            try:
                row = Row(**{c: _typed(c, text) for c, text in zip(COLUMNS, cells, strict=True)})  # type: ignore[arg-type]
            except DataError as error:
                raise DataError(f"{where}: {error}") from None
            first = seen.setdefault(_identity(row), lines.line_num)
            if first != lines.line_num:
                raise DataError(f"{where}: the same place as line {first} ({_place(row)}); delete one of them")
            yield row


def _typed(column: str, text: str) -> str | float | int | None:
    """The value of one cell; raises :class:`DataError` if it is not the number it has to be."""
    if column not in NUMBERS:
        return text
    if text == "":
        return None
    try:
        return int(text) if column in INTEGERS else float(text)
    except ValueError:
        kind = "a whole number" if column in INTEGERS else "a number"
        raise DataError(f"{column} is {text!r}; it has to be {kind} or empty") from None


def _identity(row: Row) -> tuple[str, ...]:
    return tuple(text for column, text in zip(COLUMNS, row.cells(), strict=True) if column in IDENTITY)


def _run_of(row: Row) -> tuple[str, int, str]:
    return row.experiment, row.seed, row.scale


def _order(row: Row) -> tuple[str | float, ...]:
    """Sorts rows by identity, numbers as numbers."""
    return tuple(getattr(row, column) for column in IDENTITY)


def _place(row: Row) -> str:
    return ", ".join(text for text in _identity(row) if text)


def _write(path: Path, rows: Iterable[Row]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(row.cells() for row in rows)
    partial.replace(path)
