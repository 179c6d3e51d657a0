"""What it costs to remove a mark: every scheme of an experiment against every attack, at every access of the owner.

An attack removes a mark at one strength if, of at least half of the models that bore it, the mark is gone *and* the
model is still worth having.  What that costs is the attack's wall time as a share of the time in which the same host
was trained from scratch, both as they were measured: nobody pays more for a stolen model than for one of their own.  A
locked model can be opened besides, see :mod:`hallmark.report.matrix.locks`; that counts as not surviving.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from hallmark.core import Access
from hallmark.report import analysis
from hallmark.report.analysis import ATTACK, COSTS, LEAST_ACCESS, OUTCOMES, SETTING, UTILITIES
from hallmark.report.matrix import locks

SCHEME = ("experiment", "scale", "scheme", "variant")
STEP = (*SCHEME, "attack", "unit", "strength")
REMOVED, OPENED, KEPT, ABSENT, UNDECIDED, IMPOSSIBLE, NOT_RUN = STATES = (
    *("removed", "opened", "not removed", "absent", "undecided"),
    *("n/a", "not run"),
)
"""What a cell says: the cheapest strength that brings a thief something removes the mark, or opens the lock and leaves
the mark; none does either; the mark was not there before; what would decide was not measured; the attack cannot be
tried on the scheme; nobody has tried."""
BROKEN = (REMOVED, OPENED)
"""The states in which an attack has brought the thief what it is after."""
_TRAINED = ("experiment", "host", "dataset", "pretrain", "seed", "scale")
_SUSPECT = (*SETTING, "pretrain", "seed", *ATTACK)
_NUMBERS = ("as_stolen", "accuracy_before", "accuracy", "loss", "share", "training", *COSTS)


def attacked(rows: pd.DataFrame) -> pd.DataFrame:
    """What every attack did to every marked model that was judged, and what it took.

    Args:
        rows: Result rows.

    Returns:
        The lines of :func:`hallmark.report.matrix.locks.valued` with ``training``, the seconds in which the host was
        trained from scratch (NaN of hosts that came from elsewhere), and ``share``, the attack's seconds over them.
    """
    done = locks.valued(analysis.attacks(rows), rows)
    done = done[done["detected"].notna()].merge(_training(rows), on=list(_TRAINED), how="left")
    return done.assign(share=done["seconds"] / done["training"])


def grants(owner: str, access: str) -> bool:
    """Whether an owner who may touch a suspect at one level can verify at the other."""
    if "weights_aligned" in (owner, access):
        return owner == "weights_aligned"
    return Access(owner).includes(Access(access))


def decided(done: pd.DataFrame, owner: str) -> pd.DataFrame:
    """The verdict on each suspect at the strongest access that the suspect grants and the owner has.

    Args:
        done: Verdicts on suspects: the columns of rows that identify one, ``access`` and ``p_min``.
        owner: What the owner may touch.

    Returns:
        Those lines.  A level at which nothing could be read, such as the weights of another architecture, counts as not
        granted if there is another.
    """
    seen = done[[grants(owner, access) for access in done["access"]]]
    readable = (~(seen["p_min"] >= 1)).astype(int)
    rank = seen["access"].map(LEAST_ACCESS.index).astype(int) + len(LEAST_ACCESS) * readable
    best = rank.groupby([seen[key] for key in _SUSPECT], dropna=False).transform("max")
    return seen[rank == best]


def steps(lines: pd.DataFrame) -> pd.DataFrame:
    """All models together, at each strength of each attack.

    Args:
        lines: Of :func:`attacked`.

    Returns:
        One line per :data:`STEP`: means of utility, its loss and the costs; how many models came to each of
        :data:`OUTCOMES`, and how many were opened; ``bearing``, those whose mark was there before and whose fate is
        known; ``removes`` and ``opens``, whether it was removed from at least half of these, and whether these were
        opened or lost it; ``access``, the levels of the verdicts.
    """
    flags = {outcome: lines["outcome"] == outcome for outcome in OUTCOMES}
    groups = lines.assign(**flags).groupby(list(STEP), dropna=False)
    frame = groups[list(_NUMBERS)].mean().join(groups[[*OUTCOMES, "opened"]].sum())
    frame = frame.join(groups["access"].agg(lambda levels: ", ".join(strongest_first(levels))).rename("access"))
    frame["bearing"] = frame[["kept", "removed", "ruined"]].sum(axis=1)
    gone, open_ = frame["removed"], frame["opened"]
    frame["removes"] = (frame["bearing"] > 0) & (2 * gone >= frame["bearing"])
    frame["opens"] = (open_ > 0) & (2 * (gone + open_) >= frame["bearing"])
    return frame.reset_index()


def cells(rows: pd.DataFrame) -> pd.DataFrame:
    """The matrix, one line a cell.

    Args:
        rows: Result rows.

    Returns:
        One line per experiment, scale, scheme, variant, ``owner`` (what the owner may touch, the most first) and
        attack: ``state``, one of :data:`STATES`; ``reason`` where it is impossible; where it is removed or opened the
        cheapest strength that does it, ``strength`` in ``unit``, with ``share``, ``seconds``, ``training``, ``loss``,
        ``queries`` and ``attacker_images``; ``removed`` and ``opened`` of ``bearing`` models; ``access`` of the
        verdicts.  Costs are compared in whole percents of the host's training, then by queries, then by loss: clocks
        are no finer.
    """
    done = attacked(rows)
    found: list[dict[str, Any]] = []
    for (experiment, scale), part in rows[rows["scheme"] != "none"].groupby(["experiment", "scale"]):
        mine = done[(done["experiment"] == experiment) & (done["scale"] == scale)]
        reasons = part[part["metric"] == "not_applicable"]
        attacks = sorted({*mine["attack"], *reasons["attack"]} - {"none"})
        for (scheme, variant), own in part.groupby(["scheme", "variant"]):
            place = {"experiment": experiment, "scale": scale, "scheme": scheme, "variant": variant}
            lines = mine[(mine["scheme"] == scheme) & (mine["variant"] == variant)]
            about = reasons[(reasons["scheme"] == scheme) & reasons["variant"].isin((variant, ""))]
            verified = own.loc[(own["metric"] == "p_value") & (own["suspect"] == "marked"), "access"]
            if attacks and (len(verified) or len(about)):
                found += _lines(place, lines, strongest_first(verified) or [""], attacks, about)
    return pd.DataFrame(found, columns=list(_CELL))


def survived(table: pd.DataFrame) -> pd.DataFrame:
    """How many attacks a mark, and its lock if it is one, survives, of those that were decided.

    Args:
        table: Of :func:`cells`.

    Returns:
        One line per :data:`SCHEME` and ``owner``, in the order of ``table``: ``survived``, ``decided``.
    """
    flags = table.assign(survived=table["state"] == KEPT, decided=table["state"].isin((KEPT, *BROKEN)))
    return flags.groupby([*SCHEME, "owner"], sort=False, dropna=False)[["survived", "decided"]].sum().reset_index()


def embedding_loss(rows: pd.DataFrame) -> pd.DataFrame:
    """The utility that embedding cost, original − marked, mean over models, a fraction; a line per :data:`SCHEME`.

    A locked model's is what it does with its patch, NaN where nobody measured that.
    """
    worth = rows["metric"].isin(UTILITIES) & (rows["access"] == "") & (rows["task"] != "") & (rows["attack"] == "none")
    pairs = analysis.paired(rows[worth], "suspect", "marked", "original")
    lost = (pairs["right"] - locks.worth(pairs, rows, "left")).round(9) + 0.0
    return pairs.assign(lost=lost).groupby(list(SCHEME), sort=False)["lost"].mean().reset_index()


def strongest_first(levels: Iterable[str]) -> list[str]:
    """Different levels of access, the owner's best first."""
    return sorted(set(levels), key=LEAST_ACCESS.index, reverse=True)


_CELL = (
    *(*SCHEME, "owner", "attack", "state", "reason", "unit", "strength", "share", "seconds", "training", "loss"),
    *("queries", "attacker_images", "removed", "opened", "bearing", "access"),
)
_BESIDE = ("unit", "strength", "share", "seconds", "training", "loss", "queries", "attacker_images", "access")


def _lines(
    place: dict[str, Any], lines: pd.DataFrame, owners: list[str], attacks: list[str], reasons: pd.DataFrame
) -> Iterator[dict[str, Any]]:
    """The cells of one scheme, for every owner."""
    for owner in owners:
        tried = steps(decided(lines, owner)) if len(lines) else lines
        for attack in attacks:
            # attack none: the scheme cannot mark this host at all
            why = "; ".join(dict.fromkeys(reasons.loc[reasons["attack"].isin((attack, "none")), "unit"]))
            yield {**place, "owner": owner, "attack": attack, **_cell(tried[tried["attack"] == attack], why)}


def _cell(tried: pd.DataFrame, why: str) -> dict[str, Any]:
    """What all strengths of an attack say together."""
    if tried.empty:
        return {"state": IMPOSSIBLE if why else NOT_RUN, "reason": why}
    breaking = tried[tried["removes"] | tried["opens"]]
    if len(breaking):
        percents = (100 * breaking["share"]).map(math.ceil, na_action="ignore")
        order = breaking.assign(percents=percents, asked=breaking["queries"].fillna(0))
        first = order.sort_values(["percents", "asked", "loss", "unit", "strength"]).iloc[0]
        state = REMOVED if first["removes"] else OPENED
        return {"state": state, **{name: first[name] for name in (*_BESIDE, "removed", "opened", "bearing")}}
    open_ = (tried["bearing"] == 0) & (tried["unknown"] > 0)
    state = UNDECIDED if open_.any() else KEPT if tried["bearing"].any() else ABSENT
    levels = strongest_first(", ".join(tried["access"]).split(", "))
    return {"state": state, "removed": 0, "opened": 0, "bearing": tried["bearing"].sum(), "access": ", ".join(levels)}


def _training(rows: pd.DataFrame) -> pd.DataFrame:
    """Seconds in which each host was trained from scratch; of a foreign one only loading was timed."""
    own = rows[(rows["metric"] == "seconds") & (rows["suspect"] == "original") & (rows["attack"] == "none")]
    own = own[(own["task"] == "") & (own["pretrain"] != "foreign")].drop_duplicates(list(_TRAINED))
    return own[[*_TRAINED, "value"]].rename(columns={"value": "training"})
