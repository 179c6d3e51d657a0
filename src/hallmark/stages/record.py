"""Writing what an experiment found: rows, points of figures, sheets of pictures, and which images belonged to whom."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hallmark.report.features import merge_points
from hallmark.report.rows import Row, merge
from hallmark.stages.disk import disk_errors
from hallmark.stages.experiment import Experiment
from hallmark.stages.graph import Stage
from hallmark.stages.inputs import host_data
from hallmark.stages.manifest import digest
from hallmark.stages.points import points
from hallmark.stages.results import rows
from hallmark.stages.sheets import FILE
from hallmark.stages.store import Store


def record(experiment: Experiment, store: Store, folder: Path) -> tuple[list[Row], int]:
    """Write an experiment's findings into the results folder.

    Args:
        experiment: All its stages are finished.
        store: Where they are.
        folder: ``results/``.

    Returns:
        The rows, and how many of them were new or changed.

    Raises:
        StoreError: A stage's files are damaged.
        DataError: The rows that are there are damaged.
    """

    @cache
    def left_by(key: str) -> Mapping[str, Any]:
        content: dict[str, Any] = json.loads((store.open(key) / "result.json").read_text())
        return content

    def result(stage: Stage) -> Mapping[str, Any]:
        return left_by(stage.key)

    found = rows(experiment, result)
    with disk_errors(folder):
        changed = merge(folder / "runs.csv", found, complete=True)
        merge_points(folder / "features.csv", points(experiment, result))
        _record_sheets(experiment, store, folder / "sheets")
        _record_split(experiment, folder / "splits")
    return found, changed


def _record_sheets(experiment: Experiment, store: Store, folder: Path) -> None:
    """Copy every sheet of pictures, with what it shows beside it."""
    config = experiment.config
    for sheet in experiment.sheets:
        made = store.open(sheet.stage.key)
        about = {
            "paper": config["paper"],
            "experiment": config["name"],
            "scale": config["scale"]["name"],
            "seed": config["seed"],
            "variant": sheet.mark.variant,
            "pretrain": sheet.pretrain,
            "columns": json.loads((made / "result.json").read_text())["columns"],
        }
        words = (about["experiment"], about["scale"], sheet.mark.variant, sheet.pretrain, f"seed{config['seed']}")
        stem = "_".join("".join(c if c.isalnum() else "_" for c in str(word)) for word in words if word)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}.png").write_bytes((made / FILE).read_bytes())
        (folder / f"{stem}.json").write_text(json.dumps(about, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def _record_split(experiment: Experiment, folder: Path) -> None:
    """Write which training images of the host's data set belong to the owner and which to the attacker, as indices.

    The file is named by the split's description, so one that is there is right and needs no data to be loaded.
    """
    config = experiment.config
    parts = {part: host_data(config, part) for part in config["data"]["parts"]}
    name = f"{experiment.dataset.replace('/', '-')}-seed{config['seed']}-{digest(parts)[:8]}.json"
    if (folder / name).exists():
        return
    from hallmark.data.described import DataFolder  # torch; needed once for each split
    from hallmark.data.splits import check_disjoint

    data = DataFolder(Path(config["data_root"]) if config["data_root"] else None)
    indices = {part: data.indices(description) for part, description in parts.items()}
    check_disjoint(indices)
    content = {"description": parts, "indices": {part: found.tolist() for part, found in indices.items()}}
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{name}.tmp"
    partial.write_text(json.dumps(content, separators=(",", ":"), sort_keys=True) + "\n")
    partial.replace(folder / name)
