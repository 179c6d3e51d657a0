"""Sheets of pictures that stages drew: what a mark looks like, and what attacks leave of it."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from hallmark.errors import DataError

FOLDER = "sheets"
"""Below the results; part of the record, like the rows."""
FIELDS = {"paper": str, "experiment": str, "scale": str, "seed": int, "variant": str, "pretrain": str, "columns": list}


@dataclass(frozen=True)
class Sheet:
    """One sheet.

    Attributes:
        file: Its name in :data:`FOLDER`.
        paper: The paper it belongs to.
        scale: The scale.
        title: Experiment, variant and seed.
        columns: What its columns show, from left to right.
        png: The file's content.
    """

    file: str
    paper: str
    scale: str
    title: str
    columns: tuple[str, ...]
    png: bytes

    @property
    def caption(self) -> str:
        """What is to be seen."""
        numbered = (f"({number}) {what}" for number, what in enumerate(self.columns, start=1))
        return f"{self.title}, from left to right: {', '.join(numbered)}."

    @property
    def data(self) -> str:
        """The picture as a URI, for a page that needs nothing else."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def load(results: Path) -> list[Sheet]:
    """Every sheet of the results, in the order of their names.

    Raises:
        DataError: A sheet's description is damaged, or has no picture.
    """
    return [_load(path) for path in sorted((results / FOLDER).glob("*.json"))]


def _load(path: Path) -> Sheet:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        png = path.with_suffix(".png").read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} or its picture cannot be read ({error}); run its experiment again") from None
    if not isinstance(about, dict) or any(not isinstance(about.get(name), kind) for name, kind in FIELDS.items()):
        raise DataError(f"{path} is no description of a sheet; it needs {', '.join(FIELDS)}")
    named = [about["experiment"], about["variant"], f"seed {about['seed']}"]
    title = ", ".join(word for word in named if word)
    columns = tuple(map(str, about["columns"]))
    return Sheet(path.with_suffix(".png").name, about["paper"], about["scale"], title, columns, png)
