"""The tables of one paper at one scale, each made from its rows."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from hallmark.report import analysis
from hallmark.report.analysis import ATTACK, MODEL, SETTING
from hallmark.report.tables import (
    NOTHING,
    Column,
    Record,
    Table,
    compact,
    mean_sd,
    ordered,
    over_seeds,
    p_text,
    plain,
    points,
    share,
)
from hallmark.stats import mean_interval


def fidelity(rows: pd.DataFrame, name: str) -> Table:
    """Accuracy of the marked model beside its unmarked twin."""
    chosen = rows[rows["metric"].isin(("accuracy", "knn_accuracy")) & (rows["attack"] == "none")]
    pairs = analysis.paired(chosen, "suspect", "marked", "original")
    keys = [*MODEL, "metric"]
    frame = over_seeds(pairs, keys, ("left", "right", "difference"))
    frame = frame.merge(_difference_intervals(pairs, keys), on=keys)
    frame = frame.rename(columns=lambda c: c.replace("left", "marked").replace("right", "original"))
    columns = (
        Column("marked / %", "marked_mean", lambda r: mean_sd(r, "marked")),
        Column("original / %", "original_mean", lambda r: mean_sd(r, "original")),
        Column("difference / points", "difference_mean", lambda r: mean_sd(r, "difference")),
        Column("95 % interval", "difference_low", lambda r: _points_range(r["difference_low"], r["difference_high"])),
        Column("seeds", "models"),
    )
    note = (
        "Mean ± standard deviation over seeds; the difference is marked − original, paired by seed, with Student's "
        "interval of its mean where there is more than one seed."
    )
    return compact(name, "Fidelity: accuracy with and without the mark", note, frame, keys, columns)


def verdict(rows: pd.DataFrame, name: str) -> Table:
    """What the verifier said about every kind of suspect."""
    seen = analysis.verdicts(rows)
    seen = seen[(seen["attack"] == "none") | (seen["suspect"] == "attacked_innocent")]
    seen = seen.assign(host=analysis.architecture(seen))
    own = ("scheme", "variant")
    keys = [*(key for key in MODEL if key not in own), "access", "suspect", *ATTACK, *own]
    frame = _verdict_numbers(seen, keys)
    columns = [
        Column("p-value", "p_highest", _p_range),
        Column("smallest p", "p_attainable", lambda r: p_text(r["p_attainable"])),
        Column("detected", "detected", _yes_no),
        Column("WSR / %", "wsr_mean", _wsr),
        Column("BER / %", "ber_mean", lambda r: mean_sd(r, "ber")),
        Column("loss per bit", "embed_loss_mean", lambda r: plain(r["embed_loss_mean"], ".3g")),
        Column("foreign flips / %", "foreign_flip_mean", lambda r: mean_sd(r, "foreign_flip")),
        Column("models", "models"),
    ]
    note = (
        "p-values are given as lowest … highest over seeds. Smallest p is what the test can attain at best; a mark "
        "cannot be found where it lies above alpha. WSR is the share of triggered queries that flip into the modal "
        "answer, BER the share of wrong bits."
    )
    return compact(name, "Verdicts: who is accused, and how surely", note, frame, keys, columns)


def false_positives(rows: pd.DataFrame, name: str) -> Table:
    """The measured false positive rate against the nominal one."""
    keys = [*MODEL, "access", "suspect", "seed"]
    judged = rows[(rows["metric"] == "fpr") & (rows["unit"] == "")]  # with one, it is not keys that were tried
    frame = ordered(judged, keys)[[*keys, "value", "count", "n", "ci_low", "ci_high"]]
    frame = frame.rename(columns={"value": "rate"})
    nominal = analysis.parameter(frame, rows, "fpr_alpha")
    frame["alpha"] = nominal.fillna(analysis.parameter(frame, rows, "alpha"))
    frame["verdict"] = [_rate_verdict(low, alpha) for low, alpha in zip(frame["ci_low"], frame["alpha"], strict=True)]
    columns = (
        Column("rate / %", "rate", lambda r: plain(100 * r["rate"], ".3g")),
        Column("accused", "count", lambda r: share(r["count"], r["n"])),
        Column(
            "interval / %",
            "ci_high",
            lambda r: f"{plain(100 * r['ci_low'], '.2g')} … {plain(100 * r['ci_high'], '.2g')}",
        ),
        Column("alpha / %", "alpha", lambda r: plain(100 * r["alpha"])),
        Column("verdict", "verdict"),
    )
    note = (
        "Share of null trials with p ≤ alpha, the level fixed for this measurement, with its interval; where keys are "
        "ranked, each suspect model counts as one cluster of trials (Korn and Graubard 1998). “above alpha”: the "
        "whole interval lies above the nominal rate."
    )
    return compact(name, "False positive rate: measured against nominal", note, frame, keys, columns)


def detection(rows: pd.DataFrame, name: str) -> Table:
    """How well detectors tell marked networks from unmarked ones without the key."""
    keys = [*MODEL, "unit", "access", "seed"]
    parts = []
    for metric in ("auc", "tpr"):
        chosen = rows[rows["metric"] == metric][[*keys, "value", "count", "n", "ci_low", "ci_high"]]
        parts.append(chosen.rename(columns={c: f"{metric}_{c}" for c in ("value", "count", "n", "ci_low", "ci_high")}))
    frame = ordered(parts[0].merge(parts[1], on=keys), keys).rename(columns={"unit": "detector"})
    frame["fpr_alpha"] = analysis.parameter(frame, rows, "fpr_alpha")
    keys[keys.index("unit")] = "detector"
    columns = (
        Column("AUC", "auc_value", lambda r: plain(r["auc_value"], ".3f")),
        Column("interval", "auc_ci_low", lambda r: f"{r['auc_ci_low']:.2f} … {r['auc_ci_high']:.2f}"),
        Column("networks", "auc_n"),
        Column("found", "tpr_count", lambda r: share(r["tpr_count"], r["tpr_n"])),
        Column("accused at most / %", "fpr_alpha", lambda r: plain(100 * r["fpr_alpha"])),
    )
    note = (
        "AUC: the probability that a marked network scores higher than an unmarked one, with Newcombe's interval; 0.5 "
        "is guessing. Found: marked networks at the lowest threshold that accuses no more of the unmarked."
    )
    return compact(name, "Detection: does the mark show without the key?", note, frame, keys, columns)


def attack_summary(rows: pd.DataFrame, name: str) -> Table:
    """Every attack at every strength, over all downstream models."""
    note = "All downstream models and seeds of a line together; the p-value is the median. "
    keys = [*SETTING, "pretrain", *ATTACK, "access"]
    return _attack_table(rows, name, "Attacks: what is left of mark and model", note, keys)


def attack_models(rows: pd.DataFrame, name: str) -> Table:
    """Every attack at every strength on every downstream model."""
    note = "One line per downstream model; seeds together, the p-value is the median. "
    return _attack_table(rows, name, "Attacks, model by model", note, [*MODEL, *ATTACK, "access"])


def headline(rows: pd.DataFrame, name: str) -> Table:
    """One line per algorithm and task: is the mark there, does it cost anything, is anyone else accused?"""
    keys = [*SETTING, "pretrain", "task"]
    seen = analysis.verdicts(rows)
    access = analysis.least_access(seen)
    seen = seen[seen["access"] == access].assign(host=analysis.architecture(seen))
    marked = _verdict_numbers(seen[(seen["suspect"] == "marked") & (seen["attack"] == "none")], keys)
    others = seen[seen["suspect"].isin(analysis.CONTROLS)]
    per_scheme = [others[others["scheme"].isin((s, "none"))].assign(scheme=s) for s in marked["scheme"].unique()]
    controls = _verdict_numbers(pd.concat(per_scheme or [others]), keys)
    controls = controls[[*keys, "detected", "judged"]].rename(columns={"detected": "accused", "judged": "controls"})
    chosen = rows[(rows["metric"] == "accuracy") & (rows["attack"] == "none")]
    pairs = over_seeds(analysis.paired(chosen, "suspect", "marked", "original"), keys, ("left", "difference"))
    frame = marked.merge(controls, on=keys, how="left").merge(pairs.drop(columns="models"), on=keys, how="left")
    columns = (
        Column("accuracy, marked / %", "left_mean", lambda r: mean_sd(r, "left")),
        Column("cost / points", "difference_mean", lambda r: mean_sd(r, "difference")),
        Column("p-value", "p_highest", _p_range),
        Column("mark found", "detected", lambda r: share(r["detected"], r["judged"])),
        Column("others accused", "accused", lambda r: share(r["accused"], r["controls"])),
    )
    note = (
        f"Verified by {access or 'nothing yet'} alone. Mean ± standard deviation over downstream sets and seeds; the "
        "cost is marked − original; others are the unmarked original, innocent models, wrong keys and attacked "
        "innocents."
    )
    return compact(name, "At a glance", note, ordered(frame, keys), keys, columns)


def _verdict_numbers(seen: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """p-values, verdicts and success rates of all lines that ``keys`` leave together."""
    frame = over_seeds(seen, keys, ("wsr", "ber", "embed_loss", "foreign_flip"))
    groups = seen.groupby(list(keys), sort=False)
    totals = groups.agg(
        p_lowest=("p_value", "min"),
        p_highest=("p_value", "max"),
        p_attainable=("p_min", "max"),
        detected=("detected", "sum"),
        judged=("detected", "count"),
        wsr_count=("count", "sum"),
        wsr_trials=("n", "sum"),
    )
    return frame.merge(totals.reset_index(), on=list(keys))


def _attack_table(rows: pd.DataFrame, name: str, title: str, note: str, keys: Sequence[str]) -> Table:
    done = analysis.attacks(rows)
    flags = {f"is_{outcome}": done["outcome"] == outcome for outcome in analysis.OUTCOMES}
    done = done.assign(**flags)
    frame = over_seeds(done, keys, ("accuracy", "loss", "wsr", "ber", "seconds", "queries"))
    groups = done.groupby(list(keys), sort=False)
    totals = groups.agg(
        p_median=("p_value", "median"),
        detected=("detected", "sum"),
        judged=("detected", "count"),
        tolerance=("tolerance", "max"),
        **{outcome: (f"is_{outcome}", "sum") for outcome in analysis.OUTCOMES},
    )
    frame = frame.merge(totals.reset_index(), on=list(keys))
    columns = (
        Column("utility / %", "accuracy_mean", lambda r: mean_sd(r, "accuracy")),
        Column("lost / points", "loss_mean", lambda r: mean_sd(r, "loss")),
        Column("WSR / %", "wsr_mean", lambda r: mean_sd(r, "wsr")),
        Column("BER / %", "ber_mean", lambda r: mean_sd(r, "ber")),
        Column("p-value", "p_median", lambda r: p_text(r["p_median"])),
        Column("detected", "detected", _yes_no),
        Column("mark", "removed", outcomes),
        Column("queries", "queries_mean", lambda r: plain(r["queries_mean"], "g")),
        Column("attack / s", "seconds_mean", lambda r: plain(r["seconds_mean"], ".3g")),
        Column("models", "models"),
    )
    limits = ", ".join(plain(100 * t) for t in sorted(frame["tolerance"].unique()))
    note += (
        "Utility: accuracy, average precision of detectors, SSIM of networks that give images. "
        f"Removed: the verdict flipped and the model lost at most {limits or plain(100 * analysis.TOLERANCE)} points; "
        "ruined: it flipped, but the model lost more; absent: it was not detected before the attack."
    )
    return compact(name, title, note, frame, keys, columns)


def _difference_intervals(pairs: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Student's interval of the mean difference over seeds, NaN for a single one, as fractions."""
    lines = []
    for place, group in pairs.groupby(list(keys), sort=False, dropna=False):
        ends = mean_interval(group["difference"].tolist()) if len(group) > 1 else (float("nan"),) * 2
        lines.append((*place, *ends))
    return pd.DataFrame(lines, columns=[*keys, "difference_low", "difference_high"])


def _points_range(low: float, high: float) -> str:
    return NOTHING if pd.isna(low) else f"{points(low)} … {points(high)}"


def _rate_verdict(low: float, alpha: float) -> str:
    if pd.isna(low) or pd.isna(alpha):
        return NOTHING
    return "above alpha" if low > alpha else "consistent"


def _yes_no(record: Record) -> str:
    if record["judged"] == 1:
        return "yes" if record["detected"] else "no"
    return share(record["detected"], record["judged"])


def _p_range(record: Record) -> str:
    low, high = p_text(record["p_lowest"]), p_text(record["p_highest"])
    return low if low == high else f"{low} … {high}"


def _wsr(record: Record) -> str:
    flips = share(record["wsr_count"], record["wsr_trials"])
    return mean_sd(record, "wsr") + (f" ({flips})" if flips != NOTHING else "")


def outcomes(record: Record) -> str:
    """What became of the marks of one line: one of :data:`analysis.OUTCOMES`, or how many of each."""
    found = [(name, int(record[name])) for name in analysis.OUTCOMES if record[name]]
    return found[0][0] if sum(n for _, n in found) == 1 else ", ".join(f"{n} {name}" for name, n in found)
