"""How far suspects respond to a perturbation that every encoder responds to: the controls of awencoder."""

from __future__ import annotations

import pandas as pd

from hallmark.report import analysis
from hallmark.report.tables import Column, Record, Table, over_seeds, plain

KEYS = ("experiment", "scheme", "variant", "host", "pretrain", "access", "suspect", "attack", "unit", "strength")
METRICS = ("response", "response_noise", "perturbation_linf", "own_cosine", "key_cosine_clean", "key_cosine")
_SHARES = ("features", "logits")
"""Where a response is a share of the way to the key image; by labels it is a count, and ``wsr`` is its share."""
_HEADS = {"pretrain": "algorithm"}


def responses(rows: pd.DataFrame, name: str) -> Table:
    """Shares of the way to the key image, beside what random noise of the same size does, and where features go."""
    found = measured(rows)
    wide = found.pivot_table(
        index=[*KEYS, "downstream", "task", "seed"], columns="metric", values="value", aggfunc="first", observed=True
    )
    wide = wide.reindex(columns=list(METRICS)).rename_axis(columns=None).reset_index()
    wide = wide.assign(host=analysis.architecture(wide))
    frame = over_seeds(wide, KEYS, METRICS)
    columns = (
        Column("of the way / %", "response_mean", lambda r: _percent(r, "response")),
        Column("under random ±ε / %", "response_noise_mean", lambda r: _percent(r, "response_noise")),
        Column("‖w‖∞ · 255", "perturbation_linf_mean", lambda r: plain(255 * r["perturbation_linf_mean"], ".3g")),
        Column("cosine to own place", "own_cosine_mean", lambda r: plain(r["own_cosine_mean"], ".2f")),
        Column("to the key image before", "key_cosine_clean_mean", lambda r: plain(r["key_cosine_clean_mean"], ".2f")),
        Column("and after", "key_cosine_mean", lambda r: plain(r["key_cosine_mean"], ".2f")),
        Column("models", "models"),
    )
    note = (
        "Mean over downstream models, hosts of a kind and seeds. Of the way: how far perturbed queries go from where "
        "they were to the key image, in cosine distance by features and in total variation by logits. The clean "
        "original answers by construction: the perturbation was made on it. Verdicts rank the true key among "
        "perturbations made in the same way."
    )
    keys = tuple(Column(_HEADS.get(key, key), key) for key in KEYS if frame[key].nunique() > 1)
    return Table(name, "Responses: how far the perturbation moves whom", note, frame, (*keys, *columns))


def sentences(rows: pd.DataFrame) -> list[str]:
    """How far the clean original responds, in a sentence a level; none where nothing was measured."""
    found = measured(rows)
    found = found[found["attack"] == "none"]
    lines = []
    for access in _SHARES:
        part = found[found["access"] == access]
        mean = part.groupby(["suspect", "metric"])["value"].mean()
        if ("original", "response") in mean:
            gone = _share(mean, "original", "response")
            text = f"By {access} the clean original goes {gone} of the way to the key image"
            if ("marked", "response") in mean:
                text += f" and the marked model {_share(mean, 'marked', 'response')}"
            noise = _share(mean, "original", "response_noise")
            lines.append(f"{text}; under random noise of the same size the original goes {noise}.")
    return lines


def measured(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of :data:`METRICS` that are shares, of schemes that measure noise too; no attacked marked models."""
    found = rows[rows["metric"].isin(METRICS) & rows["access"].isin(_SHARES)]
    paired = set(found.loc[found["metric"] == "response_noise", "scheme"])  # other schemes respond to other things
    attacked = (found["attack"] != "none") & (found["suspect"] == "marked")
    return found[found["scheme"].isin(paired) & ~attacked]


def _percent(record: Record, name: str) -> str:
    return plain(100 * record[f"{name}_mean"], "z.1f").replace("-", "−")


def _share(mean: pd.Series, suspect: str, metric: str) -> str:
    return f"{100 * mean[suspect, metric]:z.0f} %".replace("-", "−")
