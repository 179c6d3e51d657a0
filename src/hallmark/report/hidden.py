"""What is read from images that networks put out, and what hiding it there cost."""

from __future__ import annotations

import pandas as pd

from hallmark.report.tables import Column, Table, ordered, plain

KEYS = ("experiment", "variant", "suspect", "host", "attack", "unit", "strength", "seed")
READ = {
    "psnr": ("PSNR to clean / dB", ".1f"),
    "ssim": ("SSIM to clean", ".3f"),
    "nc": ("NC", ".3f"),
    "nc_blank": ("NC of white", ".3f"),
    "nc_centred": ("centred NC", ".3f"),
    "nc_centred_input": ("of inputs", ".3f"),
    "nc_centred_clean": ("of clean outputs", ".3f"),
    "success_rate": ("success", ".2f"),
    "success_rate_centred": ("centred success", ".2f"),
    "bit_accuracy": ("bits right", ".3f"),
}
"""Metrics at access ``images`` with their headings and digits."""


def hidden_images(rows: pd.DataFrame, name: str) -> Table:
    """One line for each model that an extractor looked at, with the paper's figures and their honest companions."""
    read = rows[(rows["access"] == "images") & rows["metric"].isin(READ)]
    wide = _wide(read).reindex(columns=[*KEYS, *READ])
    task = rows[(rows["task"] == "restoration") & rows["metric"].isin(("psnr", "ssim"))]
    # a model without a mark is measured once for all variants
    wide = wide.assign(bears=wide["variant"].where(wide["suspect"] == "marked", ""))
    utility = _wide(task).reindex(columns=[*KEYS, "psnr", "ssim"])
    utility = utility.rename(columns={"variant": "bears", "psnr": "task_psnr", "ssim": "task_ssim"})
    frame = wide.merge(utility, how="left", on=["bears", *(key for key in KEYS if key != "variant")])
    columns = (
        *(Column(key, key) for key in KEYS),
        Column("task PSNR / dB", "task_psnr", lambda r: plain(r["task_psnr"], ".1f")),
        Column("task SSIM", "task_ssim", lambda r: plain(r["task_ssim"], ".3f")),
        *(Column(head, key, lambda r, key=key, d=digits: plain(r[key], d)) for key, (head, digits) in READ.items()),
    )
    note = (
        "Task: against the true images. To clean: the outputs against the unmarked host's to the same queries. NC is "
        "the paper's and not centred, so that white images score what stands under NC of white. Success is the share "
        "of queries with NC above 0.95, centred success with centred NC above it. Of inputs and of clean outputs: "
        "centred NC of what is read there."
    )
    return Table(
        name, "Hidden images: what is read, and what it cost", note, ordered(frame.drop(columns="bears"), KEYS), columns
    )


def _wide(found: pd.DataFrame) -> pd.DataFrame:
    """One line per value of :data:`KEYS`, one column per metric."""
    wide = found.pivot_table(index=list(KEYS), columns="metric", values="value", aggfunc="first", observed=True)
    return wide.rename_axis(columns=None).reset_index()
