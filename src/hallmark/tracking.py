"""The mirror of an experiment on wandb; the rows on disk are the record."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import wandb
from PIL import Image

from hallmark.report import reading
from hallmark.report.build import present
from hallmark.report.rows import Row
from hallmark.stages.manifest import digest


def publish(config: Mapping[str, Any], rows: Sequence[Row], results: Path) -> None:
    """Send an experiment's configuration and rows as one wandb run, with the tables and figures of its paper.

    Tables and figures are those that the report shows of the paper at the experiment's scale, under the names that they
    have in the results folder.  ``WANDB_MODE=offline`` works.

    Args:
        config: The resolved configuration; its digest is the run's id, so that a repeated command updates its run.
        rows: Every row of the experiment.
        results: Folder of ``runs.csv``, where the rows are already.

    Raises:
        DataError: A file of the results is damaged.
    """
    logger = config["logger"]
    semantic = {name: value for name, value in config.items() if name not in _PLACES}
    runs = reading.runs(results)
    shown = present(runs, reading.points(results, runs), config["paper"], config["scale"]["name"])
    run = wandb.init(
        project=logger["project"],
        entity=logger["entity"],
        dir=logger["folder"],
        group=config["name"],
        job_type="experiment",
        name=f"{config['name']} seed {config['seed']} {config['scale']['name']}",
        id=digest(semantic)[:16],
        resume="allow",
        config=semantic,
    )
    try:
        columns = [field.name for field in fields(Row)]
        run.log({"rows": wandb.Table(columns=columns, data=[list(row.as_dict().values()) for row in rows])})
        run.log({f"tables/{t.name}": wandb.Table(columns=t.heads, data=t.texts()) for t in shown.tables})
        for picture in shown.pictures:
            drawn = wandb.Image(Image.open(io.BytesIO(picture.png)), caption=f"{picture.title}. {picture.caption}")
            run.log({f"figures/{picture.name}": drawn})
    finally:
        run.finish()


_PLACES = frozenset({"store", "results", "data_root", "download", "budget", "plan", "logger"})
