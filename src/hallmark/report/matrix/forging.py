"""What the matrix says of forged keys in a sentence."""

from __future__ import annotations

import pandas as pd

from hallmark.report.surveys import forgeries

TRIED = "best of "
"""How a forger is called who does nothing but try strings."""


def facts(rows: pd.DataFrame) -> tuple[str, ...]:
    """For how many schemes a key passes on an innocent model that was made for it, by what the forger may choose.

    Args:
        rows: Result rows of one scale.

    Returns:
        One sentence, or none where nobody forged.
    """
    keys = forgeries(rows)
    keys = keys[(keys["model"] == "innocent") & keys["drawn"].notna()]
    if not len(keys):
        return ()
    alphas = rows[rows["metric"] == "alpha"].groupby("experiment")["value"].max()
    passed = keys["value"] <= keys["experiment"].map(alphas) * (1 + 1e-9)
    drawn, tried = keys["drawn"] == 1, keys["forger"].str.startswith(TRIED)
    every = _everywhere(keys[~tried], passed)
    bound = _everywhere(keys[drawn & ~tried], passed)
    trying = _everywhere(keys[tried], passed)
    strings = f"; by trying strings alone for {_of(trying)}" if len(trying) else ""
    return (
        f"Forged keys: one made for an innocent model passes for {_of(every)} schemes; one that a public string gives, "
        f"with images and networks made for the model, for {_of(bound, len(every))}{strings}. None matches a "
        "commitment that is older than the model.",
    )


def _everywhere(keys: pd.DataFrame, passed: pd.Series) -> pd.Series:
    """By scheme, whether some key passes on every host and at every seed."""
    place = ["scheme", "experiment", "host", "pretrain", "variant", "seed"]
    somehow = passed[keys.index].groupby([keys[name] for name in place], observed=True).any()
    return somehow.groupby(level="scheme", observed=True).all()


def _of(passing: pd.Series, total: int | None = None) -> str:
    return f"{int(passing.sum())} of {len(passing) if total is None else total}"
