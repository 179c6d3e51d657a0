"""The tables of the matrix: schemes × attacks, what each removal took, and every strength that was tried."""

from __future__ import annotations

import string
from typing import Any

import pandas as pd

from hallmark.report import analysis
from hallmark.report.contents import outcomes
from hallmark.report.matrix.removal import (
    ABSENT,
    BROKEN,
    IMPOSSIBLE,
    KEPT,
    NOT_RUN,
    OPENED,
    REMOVED,
    SCHEME,
    UNDECIDED,
    attacked,
    embedding_loss,
    strongest_first,
    survived,
)
from hallmark.report.survival import evidence
from hallmark.report.tables import (
    NOTHING,
    Column,
    Record,
    Table,
    compact,
    mean_sd,
    over_seeds,
    p_text,
    plain,
    points,
    share,
)
from hallmark.stats import holm

_LINE = [*SCHEME, "owner"]
_STEP = (*SCHEME, "access", "attack", "unit", "strength")


def matrix(found: pd.DataFrame, rows: pd.DataFrame, name: str) -> Table:
    """Schemes × attacks of one experiment.

    Args:
        found: Cells of :func:`hallmark.report.matrix.removal.cells` of one experiment and scale.
        rows: Result rows of the same.
        name: Stem of its files.

    Returns:
        One line per scheme at the strongest access, and one per weaker access at which any attack ends otherwise.
        For each attack the frame has the state and, as ``<attack> cost``, the share of the host's training.
    """
    attacks = list(dict.fromkeys(found["attack"]))
    letters = dict(zip(dict.fromkeys(found.loc[found["state"] == IMPOSSIBLE, "reason"]), _letters(), strict=False))
    frame = survived(found).merge(embedding_loss(rows), on=list(SCHEME), how="left")
    frame = frame[[_differs(found, line) for line in frame.to_dict("records")]]
    for attack in attacks:
        mine = found.loc[found["attack"] == attack, [*_LINE, "state", "share", "loss", "reason"]]
        names = {key: f"{attack} {key}" for key in ("loss", "reason")} | {"state": attack, "share": f"{attack} cost"}
        frame = frame.merge(mine.rename(columns=names), on=_LINE, how="left")
    columns = (
        Column("lost to the mark / points", "lost", lambda r: loss_text(r["lost"])),
        Column("survives", "survived", lambda r: share(r["survived"], r["decided"])),
    )
    shown = tuple(
        Column(attack.replace("_", " "), f"{attack} cost", lambda r, attack=attack: _cell(r, attack, letters))
        for attack in attacks
    )
    keys = tuple(key for key in ("scheme", "variant") if key == "scheme" or frame[key].any())
    heads = (*(Column(key, key) for key in keys), Column("access", "owner"))
    title = f"Attack cost to removal: {_one(found, 'experiment')}"
    return Table(name, title, _matrix_note(letters), frame, (*heads, *columns, *shown))


def removals(found: pd.DataFrame, rows: pd.DataFrame, name: str) -> Table:
    """What the cheapest removal of each mark by each attack took.

    Args:
        found: Cells of :func:`hallmark.report.matrix.removal.cells`.
        rows: The result rows they were made of.
        name: Stem of its files.
    """
    frame = found[found["state"].isin(BROKEN)].reset_index(drop=True)
    frame = frame.assign(knows=_knowledge(frame, rows))
    columns = (
        Column("cheapest strength", "strength"),
        Column("in", "unit"),
        Column("verified by", "access"),
        Column("removed", "removed", lambda r: share(r["removed"], r["bearing"])),
        *(
            [Column("opened", "opened", lambda r: share(r["opened"], r["bearing"]))]
            if (found["state"] == OPENED).any()
            else []
        ),
        Column("cost / % of training", "share", lambda r: percent(r["share"])),
        Column("attack / s", "seconds", lambda r: plain(r["seconds"], ".3g")),
        Column("training / s", "training", lambda r: plain(r["training"], ".3g")),
        Column("lost / points", "loss", lambda r: loss_text(r["loss"])),
        Column("queries", "queries", lambda r: plain(r["queries"])),
        Column("images", "attacker_images", lambda r: plain(r["attacker_images"])),
        _KNOWS,
    )
    note = (
        "The cheapest strength of the attack that removes the mark, at each access that the owner may have. Removed: "
        "of the models that bore the mark, those that lost it and are worth having; at least half of them. Opened: "
        "locks whose model is worth having without its patch, though it bears the mark still. Queries and images are "
        "what the attacker asked and looked at of its own, 0 where it needs none; knows is what it knows beyond the "
        "victim. A dash: it asks nothing, or no row says it."
    )
    keys = tuple(key for key in ("experiment", "scheme", "variant", "owner", "attack") if frame[key].astype(bool).any())
    return Table(name, "What removal took", note, frame, (*(Column(_HEADS.get(k, k), k) for k in keys), *columns))


def tried(rows: pd.DataFrame, name: str) -> Table:
    """Every attack at every strength on every scheme, at every access; where it cannot be tried, why."""
    done = attacked(rows)
    alpha = analysis.parameter(done, rows, "alpha")
    judged = done["p_value"].dropna()
    corrected = pd.Series(holm(judged.tolist()), index=judged.index, dtype="float64").reindex(done.index)
    flags = {f"is_{outcome}": done["outcome"] == outcome for outcome in analysis.OUTCOMES}
    done = done.assign(**flags, stands=corrected <= alpha)
    means = ("accuracy_before", "accuracy", "loss", "share", *analysis.EVIDENCE, *analysis.COSTS)
    frame = over_seeds(done, _STEP, means)
    totals = done.groupby(list(_STEP), sort=False).agg(
        p_median=("p_value", "median"),
        p_attainable=("p_min", "max"),
        detected=("detected", "sum"),
        judged=("detected", "count"),
        stands=("stands", "sum"),
        **{outcome: (f"is_{outcome}", "sum") for outcome in analysis.OUTCOMES},
    )
    frame = frame.merge(totals.reset_index(), on=list(_STEP)).assign(impossible="")
    frame = pd.concat([frame.assign(knows=_knowledge(frame, rows)), _impossible(rows)], ignore_index=True)
    columns = (
        Column("utility before / %", "accuracy_before_mean", lambda r: mean_sd(r, "accuracy_before")),
        Column("after / %", "accuracy_mean", lambda r: mean_sd(r, "accuracy")),
        Column("lost / points", "loss_mean", lambda r: mean_sd(r, "loss")),
        Column("evidence", "statistic_mean", evidence),
        Column("p-value", "p_median", lambda r: p_text(r["p_median"])),
        Column("smallest p", "p_attainable", lambda r: p_text(r["p_attainable"])),
        Column("detected", "detected", lambda r: share(r["detected"], r["judged"])),
        Column("detected, Holm", "stands", lambda r: share(r["stands"], r["judged"])),
        Column("mark", "removed", lambda r: r["impossible"] or outcomes(r)),
        Column("cost / % of training", "share_mean", lambda r: percent(r["share_mean"])),
        Column("attack / s", "seconds_mean", lambda r: plain(r["seconds_mean"], ".3g")),
        Column("queries", "queries_mean", lambda r: plain(r["queries_mean"])),
        Column("images", "attacker_images_mean", lambda r: plain(r["attacker_images_mean"])),
        _KNOWS,
        Column("models", "models"),
    )
    columns = tuple(c for c in columns if c.head in ("evidence", "mark") or frame[c.key].notna().any())
    family = len(judged)
    note = (
        "All models of a line together; p-values are medians. Utility: accuracy, average precision of detectors, "
        "structural similarity (SSIM) of networks that give images. Detected: p at most alpha. "
        f"Holm: the same after Holm's correction over all {family} verdicts of this table, of which "
        f"{int(done['stands'].sum())} stand; no test whose smallest p lies above alpha/{family} can be the first to. "
        "Removed: the verdict flipped and the model is still worth having; ruined: it flipped, the model is not. The "
        "utility of a locked model is, before, what it does with its patch and, after, what it does without."
    )
    return compact(name, "Every attack at every strength", note, frame, _STEP, columns)


def percent(part: float) -> str:
    """A share in percent, short enough for a cell."""
    if pd.isna(part):
        return NOTHING
    if part < 0.001:
        return "< 0.1"
    return f"{100 * part:.0f}" if part >= 0.0995 else f"{100 * part:.1f}"


def loss_text(loss: float) -> str:
    """A loss, a fraction, in points."""
    return plain(100 * loss, "z.1f").replace("-", "−")


_HEADS = {"owner": "access"}
_KNOWS = Column("knows", "knows", lambda r: NOTHING if pd.isna(r["knows"]) else str(r["knows"]))


def _letters() -> list[str]:
    return [*string.ascii_lowercase, *(a + b for a in string.ascii_lowercase for b in string.ascii_lowercase)]


def _cell(record: Record, attack: str, letters: dict[str, str]) -> str:
    """One cell of the matrix as people read it."""
    state = record[attack]
    if state in BROKEN:
        cost = percent(record[f"{attack} cost"])
        start = state if cost == NOTHING else f"{cost} %" if state == REMOVED else f"{state}, {cost} %"
        return f"{start} ({points(-record[f'{attack} loss'])})"
    if state == IMPOSSIBLE:
        return f"{IMPOSSIBLE} ({letters[record[f'{attack} reason']]})"
    return NOTHING if state == NOT_RUN else str(state)


def _matrix_note(letters: dict[str, str]) -> str:
    reasons = "; ".join(f"({letter}) {reason}" for reason, letter in letters.items())
    return (
        "Each cell: the wall time of the cheapest strength that removes the mark, as a share of the wall time in which "
        "the host was trained from scratch, and in parentheses the points of utility that it changes. Removed is a "
        "mark whose verdict flips while the model stays worth having, on at least half of the models that bore it; "
        f"{OPENED}: the mark is found still, but a locked model is worth having without its patch; "
        f"{KEPT}: no strength does that; {ABSENT}: there was no mark to remove; {UNDECIDED}: the utility was not "
        f"measured; {NOTHING}: not run. The verdict is by the strongest access that the suspect grants and the owner "
        "has; of a weaker access there is a line where it changes something. Verdicts are held against alpha one by "
        "one. Lost to the mark: utility of the unmarked host less the marked one's, which of a locked model is that "
        "with its patch. Survives: attacks that neither remove the mark nor open the lock, of those decided."
        + (f" {IMPOSSIBLE}: {reasons}." if reasons else "")
    )


def _differs(found: pd.DataFrame, line: dict[str, Any]) -> bool:
    """Whether an owner with less access meets another end somewhere than the one with the most."""
    mine = found[(found[list(SCHEME)] == [line[key] for key in SCHEME]).all(axis=1)]
    most = strongest_first(mine["owner"])[0] if mine["owner"].any() else ""
    kept = ["attack", "state", "unit", "strength"]
    here, there = (mine[mine["owner"] == owner].set_index("attack") for owner in (line["owner"], most))
    here = here[here["state"] != NOT_RUN]
    return line["owner"] == most or not here[kept[1:]].equals(there.loc[here.index, kept[1:]])


def _impossible(rows: pd.DataFrame) -> pd.DataFrame:
    """The attacks that cannot be tried, with the reason in place of the outcome."""
    refused = rows[rows["metric"] == "not_applicable"]
    lines = refused.assign(impossible=f"{IMPOSSIBLE}: " + refused["unit"], unit="", access="")
    return lines[[*_STEP, "impossible"]]


def _knowledge(frame: pd.DataFrame, rows: pd.DataFrame) -> list[str | None]:
    """What the attacker of each line knows beyond the victim, in words; ``None`` where no row says it."""
    told = rows[rows["metric"].str.startswith("knows_")]
    places = ["experiment", "scale", "attack", "unit"]
    known = {
        place: ", ".join(part.loc[part["value"] == 1, "metric"].str.removeprefix("knows_").unique()) or "nothing"
        for place, part in told.groupby(places)
    }
    return [known.get(place) for place in frame[places].itertuples(index=False, name=None)]


def _one(frame: pd.DataFrame, column: str) -> str:
    return str(frame[column].iloc[0]) if len(frame) else ""
