"""Where the time went: the wall time of all stages behind some rows, by what they did."""

from __future__ import annotations

import pandas as pd

from hallmark.report.tables import Column, Table, plain

KINDS = ("pretrain", "embed", "attack", "transfer", "verify", "survey")
"""What a stage does, in the order of the graph; surveys are all figures that belong to no suspect's task or verdict."""


def spent(rows: pd.DataFrame) -> pd.DataFrame:
    """Wall time by kind of stage; a stage counts once in each experiment that has rows of it.

    Args:
        rows: Result rows.

    Returns:
        One line per ``experiment``, ``scale``, ``device`` and ``kind`` with ``stages``, ``seconds`` and their ``share``
        of the experiment's.
    """
    own = rows[(rows["run"] != "") & (rows["metric"] != "fpr")]  # a rate is of many stages
    own = own.assign(kind=[_kind(*row) for row in own[["metric", "attack", "suspect", "task"]].itertuples(index=False)])
    rank = own["kind"].map({kind: place for place, kind in enumerate(_SUREST)})
    stages = own.assign(rank=rank).sort_values("rank", kind="stable").drop_duplicates(["experiment", "scale", "run"])
    groups = stages.groupby(["experiment", "scale", "device", "kind"], sort=False)["wall_s"]
    frame = groups.agg(stages="size", seconds="sum").reset_index()
    whole = frame.groupby(["experiment", "scale"])["seconds"].transform("sum")
    frame = frame.assign(share=frame["seconds"] / whole, order=frame["kind"].map(KINDS.index))
    return frame.sort_values(["experiment", "order", "device"], ignore_index=True).drop(columns="order")


def table(rows: pd.DataFrame, name: str) -> Table:
    """The wall time of every experiment by kind of stage."""
    columns = (
        *(Column(key, key) for key in ("experiment", "kind", "stages")),
        Column("minutes", "seconds", lambda r: plain(r["seconds"] / 60, ".1f")),
        Column("share / %", "share", lambda r: plain(100 * r["share"], ".0f")),
        Column("on", "device"),
    )
    note = (
        "Wall time of the stages as their processes took it, one after another: where several share a store and the "
        "cores, the clock on the wall runs less. A stage that experiments share counts in each; decoys that are made "
        "once for many and pictures leave no row and are not in it."
    )
    return Table(name, "Where the time went", note, spent(rows), columns)


_SUREST = ("verify", "pretrain", "embed", "attack", "transfer", "survey")  # a stage has rows of several metrics


def _kind(metric: str, attack: str, suspect: str, task: str) -> str:
    """What a stage does that one of its rows says something of."""
    if metric == "p_value":
        return "verify"
    if metric == "seconds":
        return "attack" if attack != "none" else "embed" if suspect == "marked" else "pretrain"
    return "transfer" if task else "survey"
