"""What a paper leads us to expect, read from ``experiments/<paper>/expected.yaml``.

Beside title, citation and deviations the file lists the paper's claims, each with the checks that decide it::

    - id: wpe.fidelity
      claim: downstream accuracy is kept
      paper: null                              # the paper's number, or {value: 0.91, source: "Table 3, p. 6"}
      tests:
        - metric: accuracy                     # of runs.csv, or `removed`: 1 where an attack removed the mark
          where: {attack: none}                # column: value or list of values
          pair: {suspect: [marked, original]}  # the difference of the two, paired by all else; metric: two metrics
          column: value                        # value, ci_low or ci_high
          over: [seed]                         # columns to aggregate over first ...
          aggregate: mean                      # ... by mean, median, min or max
          all: ">= -0.02"                      # a number, or what the experiment declared: alpha, fpr_alpha, tolerance
          cover: {pretrain: 3}                 # at least so many different values
          require: {pretrain: [simclr, byol]}  # all of these values

and, where the paper's tables are known, their numbers, to be laid beside ours::

    - source: Table 5
      metric: embed_loss                       # of runs.csv
      where: {experiment: uchida/table5}       # column: value or list of values
      by: variant                              # the column that tells the numbers apart
      paper: {direct: 0.124, diff: 0.062}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hallmark.errors import DataError, allowed
from hallmark.report.against import Numbers
from hallmark.report.claims import DECLARED, OPERATORS, Check, Claim, Limit
from hallmark.report.rows import IDENTITY, METRICS, VOCABULARY

_LIMIT = re.compile(rf"({'|'.join(OPERATORS)})\s*(-?)\s*({'|'.join(DECLARED)}|\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)")


@dataclass(frozen=True)
class Expected:
    """What one paper leads us to expect.

    Attributes:
        paper: The name of its folder, as in the rows' ``paper``.
        title: The paper's title.
        citation: Authors, year, where it appeared.
        command: What reproduces an experiment, with ``{experiment}`` and ``{scale}`` to fill in.
        deviations: What is ours and not the paper's.
        claims: Its claims, and our own controls.
        numbers: What its tables print.
    """

    paper: str
    title: str
    citation: str = ""
    command: str = "hallmark experiment={experiment} scale={scale}"
    deviations: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    numbers: tuple[Numbers, ...] = ()


def load(path: Path) -> Expected:
    """Read an ``expected.yaml``.

    Raises:
        DataError: If the file is not what this module shows; the message names the file and the place.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    try:
        fields = _fields(content, Expected, "file")
        claims = tuple(_claim(item) for item in fields.pop("claims", ()))
        numbers = tuple(_numbers(item) for item in fields.pop("numbers", ()))
        deviations = tuple(fields.pop("deviations", ()))
        expected = Expected(**fields, deviations=deviations, claims=claims, numbers=numbers)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: an entry has the wrong shape ({error}); hallmark.report.expected shows each"
        ) from None
    if expected.paper != path.parent.name:
        raise DataError(f"{path}: paper is {expected.paper!r}; it has to be the folder's name, {path.parent.name!r}")
    return expected


def _claim(content: object) -> Claim:
    fields = _fields(content, Claim, "claim")
    paper = fields.get("paper") or ""
    if isinstance(paper, Mapping):
        paper = " ".join([str(paper.get("value", "")), f"({paper['source']})" if "source" in paper else ""]).strip()
    try:
        tests = tuple(_check(item) for item in fields["tests"])
    except DataError as error:
        raise DataError(f"claim {fields['id']}: {error}") from None
    return Claim(fields["id"], fields["claim"], tests, str(paper))


def _check(content: object) -> Check:
    fields = _fields(content, Check, "test")
    _known(fields["metric"], (*METRICS, "removed"), "metric")
    _known(fields.get("column", "value"), ("value", "ci_low", "ci_high"), "column")
    _known(fields.get("aggregate", "mean"), ("mean", "median", "min", "max"), "aggregate")
    limit = _LIMIT.fullmatch(str(fields["all"]).strip())
    if limit is None:
        raise DataError(f"cannot read the limit {fields['all']!r}; write e.g. '<= alpha' or '>= -0.02'")
    parsed: dict[str, Any] = {"all": Limit(limit[1], -1 if limit[2] else 1, limit[3])}
    for part in ("where", "require"):
        parsed[part] = {column: _values(column, values) for column, values in fields.get(part, {}).items()}
    if "pair" in fields:
        ((column, sides),) = fields["pair"].items()
        left, right = _values(column, sides)
        parsed["pair"] = (column, left, right)
    parsed["over"] = tuple(fields.get("over", ()))
    for column in (*parsed["over"], *fields.get("cover", {})):
        _known(column, IDENTITY, "column")
    return Check(**{**fields, **parsed})


def _numbers(content: object) -> Numbers:
    fields = _fields(content, Numbers, "group of numbers")
    _known(fields["metric"], METRICS, "metric")
    _known(fields["by"], IDENTITY, "column")
    where = {column: _values(column, values) for column, values in fields.get("where", {}).items()}
    _values(fields["by"], list(fields["paper"]))
    return Numbers(**{**fields, "where": where})


def _values(column: str, values: object) -> tuple[Any, ...]:
    """The values of a column, checked against its vocabulary."""
    _known(column, IDENTITY, "column")
    listed = tuple(values) if isinstance(values, list) else (values,)
    for value in listed:
        _known(value, VOCABULARY.get(column, listed), column)
    return listed


def _known(value: object, choices: tuple[Any, ...], what: str) -> None:
    if value not in choices:
        raise DataError(allowed(value, choices, what))


def _fields(content: object, kind: type, what: str) -> dict[str, Any]:
    """The content as the fields of a dataclass, none unknown and none that is needed missing."""
    if not isinstance(content, dict):
        raise DataError(f"a {what} has to be a mapping, got {content!r}")
    names = kind.__dataclass_fields__  # type: ignore[attr-defined]
    for name in content:
        _known(name, tuple(names), f"entry of a {what}")
    for name in sorted(_NEEDED[kind] - set(content)):
        raise DataError(f"a {what} needs the entry {name!r}; this one has {', '.join(map(str, content))}")
    return dict(content)


_NEEDED: Mapping[type, set[str]] = {
    Expected: {"paper", "title"},
    Claim: {"id", "claim", "tests"},
    Check: {"metric", "all"},
    Numbers: {"source", "metric", "by", "paper"},
}
