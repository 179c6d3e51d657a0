"""The mirror of an experiment on wandb; the rows on disk are the record."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import wandb

from hallmark.report.rows import Row
from hallmark.stages.manifest import digest


def publish(config: Mapping[str, Any], rows: Sequence[Row], pictures: Sequence[Path]) -> None:
    """Send an experiment's configuration, rows and figures as one wandb run; ``WANDB_MODE=offline`` works.

    Args:
        config: The resolved configuration; its digest is the run's id, so that a repeated command updates its run.
        rows: Every row of the experiment.
        pictures: PNG files to show.
    """
    logger = config["logger"]
    semantic = {name: value for name, value in config.items() if name not in _PLACES}
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
        run.log({path.stem: wandb.Image(str(path)) for path in pictures})
    finally:
        run.finish()


_PLACES = frozenset({"store", "results", "data_root", "download", "budget", "plan", "logger"})
