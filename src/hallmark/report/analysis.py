"""From rows to measurements: pairs, verdicts, and what an attack did.

Everything here is one line per model and seed; averaging over seeds is left to the tables.  Frames that come in hold
the rows of one paper; nothing here ever joins rows of different scale, because ``scale`` is part of every key.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from hallmark.errors import DataError
from hallmark.report.rows import IDENTITY

SETTING = ("experiment", "scheme", "variant", "host", "dataset", "scale")
MODEL = (*SETTING, "pretrain", "downstream", "task")
ATTACK = ("attack", "unit", "strength")
CONTROLS = ("original", "innocent", "wrong_key", "attacked_innocent")
"""The suspects that do not bear the owner's mark, or are not asked for it with the owner's key."""
LEAST_ACCESS = ("labels", "images", "logits", "features", "weights", "weights_aligned")
VERDICT = ("p_value", "p_min", "detected", "wsr", "ber", "embed_loss", "foreign_flip")
EVIDENCE = ("wsr", "ber", "statistic")
"""What verdicts are made of: shares of flipped answers or wrong bits, and mean differences of paired scores."""
COSTS = ("seconds", "queries", "attacker_images")
"""What an attack takes: wall time, answers of the victim, images of the attacker's."""
UTILITIES = ("accuracy", "map", "ssim")
"""What says a model's worth, as a fraction: of classifiers and encoders, of detectors, of networks that give images; of
each model the first that was measured."""
TOLERANCE = 0.05
"""The loss of accuracy up to which an attacked model is still worth having, where an experiment declares none."""
OUTCOMES = ("kept", "removed", "ruined", "absent", "unknown")
"""What became of a mark under attack: still detected; gone from a model worth having; gone together with the model's
worth; not detected before the attack either; undecided, since the verdict or the model's worth was not measured."""


def parameter(frame: pd.DataFrame, rows: pd.DataFrame, metric: str, default: float | None = None) -> pd.Series:
    """The number an experiment declared, such as its ``alpha``, for every line of a frame.

    Args:
        frame: Has the columns ``experiment`` and ``scale``.
        rows: Result rows that hold the declaration.
        metric: ``alpha``, ``fpr_alpha`` or ``tolerance``.
        default: Taken where the experiment declares none; ``None`` leaves NaN.

    Returns:
        One number per line of ``frame``, with its index.

    Raises:
        DataError: If one experiment declares two different numbers at one scale.
    """
    declared: dict[tuple[str, str], float] = {}
    for row in rows[rows["metric"] == metric].itertuples():
        place = (row.experiment, row.scale)
        if declared.setdefault(place, row.value) != row.value:
            raise DataError(f"experiment {place[0]} at scale {place[1]} declares two values of {metric}; keep one")
    places = zip(frame["experiment"], frame["scale"], strict=True)
    values = [declared.get(place, float("nan") if default is None else default) for place in places]
    return pd.Series(values, index=frame.index, dtype="float64")


def architecture(frame: pd.DataFrame) -> pd.Series:
    """The host's architecture, without how an innocent host came about, so that innocents can be counted together."""
    return frame["host"].str.split().str[0].fillna("")


def distinct(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with what several experiments share counted once: one stage measured it, whoever asked.

    Equal numbers of different stages, which ``run`` tells apart, are different measurements.
    """
    provenance = {"experiment", "wall_s", "device", "commit"}
    return frame.drop_duplicates([column for column in frame.columns if column not in provenance])


def least_access(frame: pd.DataFrame) -> str:
    """The weakest access at which anything was verified, the hardest case for the owner; empty if there is none."""
    return next((access for access in LEAST_ACCESS if (frame["access"] == access).any()), "")


def paired(rows: pd.DataFrame, column: str, left: str, right: str) -> pd.DataFrame:
    """Pairs of rows that differ in one column only, such as the marked model and its unmarked twin.

    A twin bears the same scheme, or ``none`` because no scheme was ever applied to it.

    Args:
        rows: Result rows of one metric.
        column: The identity column in which the two differ, e.g. ``suspect``.
        left: Its value on the left side.
        right: Its value on the right side.

    Returns:
        The left rows that have a partner, with ``left``, ``right`` and ``difference`` (left − right, rounded to nine
        places, so that 0.90 − 0.85 is 0.05).
    """
    mark = [c for c in ("scheme", "variant") if c != column]
    keys = [c for c in IDENTITY if c not in {column, *mark}]
    lefts = rows[rows[column] == left]
    rights = rows[rows[column] == right][[*keys, *mark, "value"]].rename(columns={"value": "right"})
    same = lefts.merge(rights, on=[*keys, *mark])
    rest = lefts.merge(rights[[*mark, *keys]], how="left", on=[*keys, *mark], indicator=True)
    rest = rest[rest["_merge"] == "left_only"].drop(columns="_merge")
    unmarked = rest.iloc[:0].assign(right=[])
    if "scheme" in mark:
        unmarked = rest.merge(rights[rights["scheme"] == "none"].drop(columns=mark), on=keys)
    pairs = pd.concat([part for part in (same, unmarked) if len(part)] or [same], ignore_index=True)
    pairs = pairs.rename(columns={"value": "left"})
    return pairs.assign(difference=(pairs["left"] - pairs["right"]).round(9))


def verdicts(rows: pd.DataFrame) -> pd.DataFrame:
    """What the verifier said about every suspect.

    Returns:
        One line per suspect model, access and seed: the identity columns but ``metric``, the metrics :data:`VERDICT`
        (NaN where not measured), ``count`` and ``n`` behind ``wsr``, and ``run``.  A p-value without a verdict of its
        own, such as a wrong key's, is held against the experiment's alpha.
    """
    keys = [c for c in IDENTITY if c != "metric"]
    frame = _wide(rows, VERDICT, keys)
    alpha = parameter(frame, rows, "alpha")
    judged = (frame["p_value"] <= alpha).astype("float64").where(frame["p_value"].notna() & alpha.notna())
    frame["detected"] = frame["detected"].fillna(judged)
    trials = rows[rows["metric"] == "wsr"][[*keys, "count", "n"]]
    return frame.merge(trials, on=keys, how="left").merge(_runs(rows, keys), on=keys, how="left")


def attacks(rows: pd.DataFrame) -> pd.DataFrame:
    """What every attack did to every marked model.

    A mark counts as removed only if it was detected before, is not detected any more, **and** the attacked model lost
    no more of its worth than the experiment tolerates.  Before is the same experiment's row with attack ``none``.

    A verdict on the encoder itself goes with the mean accuracy of the downstream models that were built on it.

    Args:
        rows: Result rows.

    Returns:
        One line per attacked model, access and seed: :data:`MODEL`, ``seed``, :data:`ATTACK`, ``access``; the verdict
        before (``…_before``) and after; ``accuracy``, of :data:`UTILITIES` the one that was measured,
        ``accuracy_before`` and ``loss`` (before − after, fractions); what the attack took, :data:`COSTS`;
        ``tolerance``; ``outcome``, one of :data:`OUTCOMES`.
    """
    marked = rows[rows["suspect"] == "marked"]
    model = [*MODEL, "seed"]
    verdict = _wide(marked, ("p_value", "p_min", "detected", *EVIDENCE), [*model, *ATTACK, "access"])
    before = verdict[verdict["attack"] == "none"].drop(columns=[*ATTACK, "p_min"])
    before = before.rename(columns={name: f"{name}_before" for name in ("p_value", "detected", *EVIDENCE)})
    frame = verdict[verdict["attack"] != "none"].merge(before, on=[*model, "access"], how="left")
    frame = frame.merge(_losses(marked), on=[*model, *ATTACK], how="left")
    costs = {metric: _cost(frame, marked, metric) for metric in COSTS}
    frame = frame.assign(**costs, tolerance=parameter(frame, rows, "tolerance", TOLERANCE))
    frame["outcome"] = fates(frame)
    places = [*model, *ATTACK, "access"]
    frame = frame.merge(_runs(marked, places), on=places, how="left")
    return frame.sort_values([*model, *ATTACK, "access"], ignore_index=True)


def removals(rows: pd.DataFrame) -> pd.DataFrame:
    """The outcome of every verified attack as rows of a metric ``removed``, for claims to select from.

    Args:
        rows: Result rows.

    Returns:
        Rows with the columns of ``rows``; ``value`` is 1 for removed, 0 for kept or ruined, NaN where the mark was
        absent before or the model's worth is unknown.
    """
    frame = attacks(rows)
    frame = frame[frame["detected"].notna()]
    value = frame["outcome"].map({"kept": 0.0, "ruined": 0.0, "removed": 1.0}).astype("float64")
    paper = rows["paper"].iloc[0] if len(rows) else ""
    frame = frame.assign(metric="removed", suspect="marked", paper=paper, value=value)
    return frame.reindex(columns=rows.columns).astype(rows.dtypes)


def fates(frame: pd.DataFrame) -> list[str]:
    """Of :data:`OUTCOMES`, one a line: from ``detected_before``, ``detected``, ``loss`` and ``tolerance``."""
    told = (frame[name] for name in ("detected_before", "detected", "loss", "tolerance"))
    return [_outcome(*line) for line in zip(*told, strict=True)]


def _outcome(before: float, after: float, loss: float, tolerance: float) -> str:
    if before == 0:
        return "absent"
    if before != 1 or after != after:
        return "unknown"
    if after == 1:
        return "kept"
    if loss != loss:
        return "unknown"
    return "removed" if loss <= tolerance else "ruined"


def _wide(rows: pd.DataFrame, metrics: Sequence[str], keys: Sequence[str]) -> pd.DataFrame:
    """One line per value of ``keys``, one column per metric."""
    chosen = rows[rows["metric"].isin(metrics)]
    wide = chosen.pivot_table(index=list(keys), columns="metric", values="value", aggfunc="first", observed=True)
    return wide.reindex(columns=list(metrics)).rename_axis(columns=None).reset_index()


def _runs(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The stage that judged each place."""
    return rows[rows["metric"] == "p_value"][[*keys, "run"]].drop_duplicates(list(keys))


def _first(rows: pd.DataFrame, metric: str, keys: Sequence[str]) -> pd.DataFrame:
    """The values of a metric that does not depend on the other columns."""
    chosen = rows[rows["metric"] == metric].drop_duplicates(list(keys))
    return chosen[[*keys, "value"]].rename(columns={"value": metric})


def worth(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The utility that was measured at each place, as ``accuracy``; what was judged says no worth."""
    unjudged = rows[(rows["access"] == "") & (rows["task"] != "")]
    chosen = [_first(unjudged, metric, keys).rename(columns={metric: "accuracy"}) for metric in UTILITIES]
    return pd.concat(chosen).drop_duplicates(list(keys))


def _losses(marked: pd.DataFrame) -> pd.DataFrame:
    """Accuracy before and after each attack and its loss, per downstream model and, averaged, per encoder."""
    keys = [*MODEL, "seed", *ATTACK]
    accuracy = worth(marked, keys)
    clean = accuracy[accuracy["attack"] == "none"].drop(columns=list(ATTACK))
    clean = clean.rename(columns={"accuracy": "accuracy_before"})
    own = accuracy[accuracy["attack"] != "none"].merge(clean, on=[*MODEL, "seed"], how="left")
    own["loss"] = (own["accuracy_before"] - own["accuracy"]).round(9)
    encoder = [key for key in keys if key not in ("downstream", "task")]
    numbers = ["accuracy", "accuracy_before", "loss"]
    mean = own[own["task"] != ""].groupby(encoder)[numbers].mean().reset_index()
    return pd.concat([own, mean.assign(downstream="", task="")]).drop_duplicates(keys)


def _cost(frame: pd.DataFrame, rows: pd.DataFrame, metric: str) -> pd.Series:
    """What each attack took: on the encoder, before any task, where that was measured; else on the model itself."""
    keys = [*MODEL, "seed", *ATTACK]
    taken = _first(rows, metric, keys)
    encoder = taken[(taken["downstream"] == "") & (taken["task"] == "")].drop(columns=["downstream", "task"])
    shared = frame.merge(encoder, on=[k for k in keys if k not in {"downstream", "task"}], how="left")[metric]
    own = frame.merge(taken, on=keys, how="left")[metric]
    return shared.fillna(own)
