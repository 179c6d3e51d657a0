"""Which scheme to choose when, by rule and from the rows alone.

For each experiment, that is each kind of host, and each access that an owner may have to suspects, the choice is among
the schemes that are found on the models they mark, cost these no more utility than an attack may, and do not accuse
innocents beyond alpha at any level the owner has; what was not measured speaks against a scheme too.  The one that
survives the largest share of the attacks it was tried under is chosen; among equals the one that costs less utility,
then the first by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from hallmark.report import analysis
from hallmark.report.matrix.calibration import INNOCENT
from hallmark.report.matrix.removal import (
    BROKEN,
    REMOVED,
    SCHEME,
    decided,
    embedding_loss,
    grants,
    strongest_first,
    survived,
)
from hallmark.report.matrix.tables import loss_text, percent
from hallmark.report.tables import NOTHING, plain

COSTLY = "since the model loses too much"
Guilty = Mapping[tuple[str, str, str], list[str]]


@dataclass(frozen=True)
class Choice:
    """The schemes that an owner may choose from, the best first.

    Attributes:
        experiment: Whose hosts are marked.
        owner: What the owner may touch of suspects.
        ranked: ``scheme``, ``variant``, ``survived``, ``decided`` and ``lost`` (utility, a fraction), a line a scheme.
        cheapest: In words, the cheapest removal of the first; empty if nothing removes it.
        left_out: Schemes that are no choice, by the reason in words.
    """

    experiment: str
    owner: str
    ranked: pd.DataFrame
    cheapest: str
    left_out: Mapping[str, tuple[str, ...]]


def choices(found: pd.DataFrame, rows: pd.DataFrame, guilty: Guilty) -> list[Choice]:
    """What the rule says for every kind of host and every access.

    Args:
        found: Of :func:`hallmark.report.matrix.removal.cells`.
        rows: The result rows they were made of, of one scale.
        guilty: Of :func:`hallmark.report.matrix.calibration.uncalibrated`.
    """
    scores = survived(found).merge(embedding_loss(rows), on=list(SCHEME), how="left")
    scores["tolerance"] = analysis.parameter(scores, rows, "tolerance", analysis.TOLERANCE)
    clean = analysis.verdicts(rows[rows["suspect"] == "marked"])
    clean = clean[clean["attack"] == "none"]
    trials = rows[(rows["metric"] == "fpr") & rows["suspect"].isin(INNOCENT)]
    asked = set(trials[["experiment", "scheme", "variant"]].itertuples(index=False, name=None))
    made = []
    for experiment, part in scores[scores["owner"] != ""].groupby("experiment", sort=True):
        for owner in strongest_first(part["owner"]):
            best = [_best(own, owner) for _, own in part.groupby(["scheme", "variant"], sort=True)]
            here = pd.DataFrame([line for line in best if line is not None])
            seen = decided(clean[clean["experiment"] == experiment], owner)
            flaws = _flaws(here, seen, owner, guilty, asked)
            fit = here[~flaws.any(axis=1) & (here["decided"] > 0)]
            order = fit.assign(rate=fit["survived"] / fit["decided"], cost=fit["lost"].round(4))
            ranked = order.sort_values(["rate", "cost", "scheme", "variant"], ascending=[False, True, True, True])
            made.append(
                Choice(
                    experiment=str(experiment),
                    owner=owner,
                    ranked=ranked.reset_index(drop=True),
                    cheapest=_cheapest(found, ranked.iloc[0]) if len(ranked) else "",
                    left_out={
                        str(flaw): tuple(_out(line, flaw) for line in here[flaws[flaw]].to_dict("records"))
                        for flaw in flaws
                        if flaws[flaw].any()
                    },
                )
            )
    return made


def paragraph(made: list[Choice], scale: str) -> str:
    """The choices as Markdown, with a heading; empty if there is nothing to choose from."""
    if not made:
        return ""
    lines = [f"- {sentence(choice)}\n" for choice in made]
    return (
        "## Which mark when\n\n"
        "By rule, from the rows of the matrix: of the schemes that are found on the models they mark, leave them worth "
        "having and accuse no more innocents than alpha allows, the one that survives the largest share of attacks, "
        f"then the one that costs the least utility. Scale: {scale}; another scale, host or attacker may choose "
        "otherwise.\n\n" + "".join(lines)
    )


def sentence(choice: Choice) -> str:
    """One choice in words."""
    start = f"{choice.experiment.rpartition('/')[2]}, by {choice.owner.replace('_', ' ')}:"
    out = "; ".join(f"{flaw}: {', '.join(names)}" for flaw, names in choice.left_out.items())
    left_out = f" Left out, {out}." if out else ""
    if choice.ranked.empty:
        return f"{start} no scheme that was tried qualifies.{left_out}"
    first, *rest = choice.ranked.to_dict("records")
    text = f"{start} {_label(first['scheme'], first['variant'])} survives {_score(first)}"
    text += f"; {choice.cheapest}." if choice.cheapest else "."
    if rest:
        second = rest[0]
        text += f" Next: {_label(second['scheme'], second['variant'])}, {_score(second)}."
    return text + left_out


def _score(line: Mapping[str, object]) -> str:
    lost = loss_text(line["lost"])  # type: ignore[arg-type]
    cost = "" if lost == NOTHING else f" and costs {lost} points"
    return f"{line['survived']} of {line['decided']} attacks{cost}"


def _flaws(
    here: pd.DataFrame, seen: pd.DataFrame, owner: str, guilty: Guilty, asked: Collection[tuple[str, str, str]]
) -> pd.DataFrame:
    """What speaks against each scheme: a column of flags for each reason."""
    found = seen.groupby(["scheme", "variant"])["detected"].mean()
    names = list(zip(here["scheme"], here["variant"], strict=True))
    places = [(experiment, *name) for experiment, name in zip(here["experiment"], names, strict=True)]
    flags = {
        "since innocents are accused too often": [any(grants(owner, a) for a in guilty.get(p, ())) for p in places],
        "since no innocent was asked by fresh keys": [place not in asked for place in places],
        "since it is not found": [not found.get(name, 0) > 0.5 for name in names],
        COSTLY: (here["lost"] > here["tolerance"]).tolist(),
        "since what it costs was not measured": here["lost"].isna().tolist(),
    }
    return pd.DataFrame(flags, index=here.index)


def _best(own: pd.DataFrame, owner: str) -> pd.Series | None:
    """A scheme's line at the strongest of its levels that the owner has."""
    levels = [level for level in strongest_first(own["owner"]) if grants(owner, level)]
    return own[own["owner"] == levels[0]].iloc[0] if levels else None


def _cheapest(found: pd.DataFrame, line: pd.Series) -> str:
    mine = found[(found[[*SCHEME, "owner"]] == line[[*SCHEME, "owner"]].tolist()).all(axis=1)]
    gone = mine[mine["state"].isin(BROKEN)].sort_values(["share", "loss", "attack"])
    if gone.empty:
        return ""
    first = gone.iloc[0]
    what = f"{first['attack']}, {plain(first['strength'])} {first['unit']}".rstrip()
    cost = percent(first["share"])
    price = "removes it" if first["state"] == REMOVED else "opens it"
    price += "" if cost == NOTHING else f" for {cost} % of training the host"
    return f"{what}, {price} and {loss_text(first['loss'])} points of utility"


def _out(line: Mapping[str, Any], flaw: str) -> str:
    """A scheme that is no choice, with what it costs where that is the reason."""
    cost = f" ({loss_text(line['lost'])} points)" if flaw == COSTLY else ""
    return _label(line["scheme"], line["variant"]) + cost


def _label(scheme: str, variant: str) -> str:
    return f"{scheme} {variant}".strip()
