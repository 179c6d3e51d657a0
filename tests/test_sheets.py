"""Sheets of pictures: drawn, kept beside the rows, and shown."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from hallmark.composition import compose
from hallmark.errors import DataError
from hallmark.report import sheets as shown
from hallmark.report.hidden import hidden_images
from hallmark.report.rows import Row
from hallmark.stages import sheets
from hallmark.stages.plan import plan


def test_a_sheet_has_a_row_a_picture_and_a_column_a_kind() -> None:
    columns = {name: torch.full((3, 3, 8, 8), level, dtype=torch.uint8) for name, level in (("a", 10), ("b", 200))}
    columns["b"][2] = 77
    sheet = sheets.image(columns)
    gap = sheets.GAP
    assert sheet.size == (2 * 8 + gap, 3 * 8 + 2 * gap)
    assert [sheet.getpixel((x, y))[0] for x, y in ((0, 0), (8, 0), (8 + gap, 0), (8 + gap, 2 * (8 + gap)))] == [
        *(10, 255, 200, 77)
    ]


def test_a_sheet_shows_the_strongest_of_each_attack() -> None:
    found = plan(compose(["experiment=deep_watermark/later_attacks", "scale=smoke"]), lambda name: name)
    (sheet,) = found.sheets
    others = [role for role in sheet.stage.inputs if role not in ("host", "marked")]
    assert "surrogate 0.75 fraction unet l2" in others
    assert not any(role.startswith(("surrogate 0.25", "surrogate 0.5", "postprocess 10 jpeg")) for role in others)
    assert sheet.stage in found.stages
    assert not plan(compose(["experiment=demo", "scale=smoke"]), lambda name: name).sheets  # nothing to see there


def about(**changes: object) -> dict[str, object]:
    fields = {"paper": "p", "experiment": "p/main", "scale": "cpu", "seed": 1, "variant": "logo", "pretrain": ""}
    return {**fields, "columns": ["input", "mark"], **changes}


def test_the_report_finds_sheets_and_says_what_they_show(tmp_path: Path) -> None:
    folder = tmp_path / "sheets"
    folder.mkdir()
    Image.new("RGB", (2, 2)).save(folder / "one.png")
    (folder / "one.json").write_text(json.dumps(about()))
    (sheet,) = shown.load(tmp_path)
    assert sheet.caption == "p/main, logo, seed 1, from left to right: (1) input, (2) mark."
    assert sheet.data.startswith("data:image/png;base64,iVBOR")
    (folder / "one.json").write_text(json.dumps(about(columns=None)))
    with pytest.raises(DataError, match="no description of a sheet"):
        shown.load(tmp_path)
    (folder / "one.json").write_text(json.dumps(about()))
    (folder / "one.png").unlink()
    with pytest.raises(DataError, match="or its picture cannot be read"):
        shown.load(tmp_path)


def test_the_table_of_hidden_images_joins_what_is_read_with_what_the_task_lost() -> None:
    shared = {"experiment": "p/main", "paper": "p", "scale": "cpu", "host": "unet"}
    read, task = {"access": "images", "scheme": "s"}, {"task": "restoration"}
    made = [
        Row(**shared, **read, suspect="marked", variant="a", metric="nc_centred", value=0.9),
        Row(**shared, **read, suspect="original", variant="a", metric="nc_centred", value=0.01),
        Row(**shared, **read, suspect="original", variant="b", metric="nc_centred", value=0.02),
        Row(**shared, **task, suspect="marked", scheme="s", variant="a", metric="psnr", value=30.0),
        Row(**shared, **task, suspect="original", scheme="none", metric="psnr", value=31.0),
    ]
    table = hidden_images(pd.DataFrame([row.as_dict() for row in made]), "t")
    found = {(r["suspect"], r["variant"]): (r["nc_centred"], r["task_psnr"]) for r in table.frame.to_dict("records")}
    assert found == {("marked", "a"): (0.9, 30.0), ("original", "a"): (0.01, 31.0), ("original", "b"): (0.02, 31.0)}
    assert "0.900" in table.texts()[0]
    assert hidden_images(pd.DataFrame([made[3].as_dict()]), "t").frame.empty
