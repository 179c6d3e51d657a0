"""Figures of distributions: histograms of a mark's numbers, and how well detectors tell marked networks apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from hallmark.report.canvas import COLOURS, INK, MUTED, Picture, handle
from hallmark.report.features import QUERIES, SCORE

LABELS = {"responses": "σ(X w), 1 is right", "weights": "weight"}
"""What the axis of a kind of numbers is called, where that is not the kind's own name."""


def histograms(points: pd.DataFrame, name: str) -> list[Picture]:
    """Marked and original model over each other, a line of panels for each mark; one picture an experiment."""
    drawn = points[~points["kind"].isin((*QUERIES, SCORE))]
    title = "How a mark's numbers are distributed"
    caption = (
        "Shares of the numbers in bins of one width, marked over original; one seed. Responses are of the bits, turned "
        "so that 1 is right for each; weights are of the layer that bears the mark."
    )
    return _by_experiment(drawn, name, title, caption, _draw_histograms, "mark", 1.5)


def roc(points: pd.DataFrame, name: str) -> list[Picture]:
    """Receiver operating characteristic of every detector, a line for each mark; one picture an experiment."""
    drawn = points[points["kind"] == SCORE]
    title = "Does the mark show without the key?"
    caption = (
        "Share of marked networks that a detector finds, against the share of unmarked ones that it accuses, at every "
        "threshold; one curve a seed. On the diagonal it guesses."
    )
    return _by_experiment(drawn, name, title, caption, _draw_roc, "unit", 2.3)


_Draw = Callable[[Figure, pd.DataFrame, list[str]], None]


def _by_experiment(
    points: pd.DataFrame, name: str, title: str, caption: str, draw: _Draw, line: str, height: float
) -> list[Picture]:
    """A picture of each experiment, with panels of ``height`` inches for every value of the column ``line``."""
    found = []
    for experiment, part in points.groupby("experiment", sort=True):
        part = part.assign(mark=_marks(part))
        lines = sorted(part[line].unique())
        stem = f"{name}_{str(experiment).rpartition('/')[2]}"
        found.append(Picture(stem, title, caption, 0.9 + height * len(lines), partial(draw, points=part, lines=lines)))
    return found


def _marks(points: pd.DataFrame) -> list[str]:
    """What a mark is called: its variant, or its scheme, and the algorithm where there are several."""
    several = points["pretrain"].nunique() > 1
    return [
        " ".join([variant or scheme, *([pretrain] if several else [])])
        for scheme, variant, pretrain in zip(points["scheme"], points["variant"], points["pretrain"], strict=True)
    ]


def _draw_histograms(figure: Figure, points: pd.DataFrame, lines: list[str]) -> None:
    points = points[points["seed"] == points["seed"].min()]
    kinds = sorted(points["kind"].unique())
    axes = figure.subplots(len(lines), len(kinds), squeeze=False)
    for line, mark in zip(axes, lines, strict=True):
        for ax, kind in zip(line, kinds, strict=True):
            here = points[(points["mark"] == mark) & (points["kind"] == kind)]
            for suspect, colour in (("original", MUTED), ("marked", COLOURS[1])):
                curve = here[here["suspect"] == suspect].sort_values("x")
                ax.fill_between(curve["x"], curve["y"], step="mid", color=colour, alpha=0.55, linewidth=0)
            ax.set_ylim(bottom=0)
            ax.set_title(mark)
    for ax, kind in zip(axes[-1], kinds, strict=True):
        ax.set_xlabel(LABELS.get(kind, kind))
    for line in axes:
        line[0].set_ylabel("share")
    handles = [handle("s", MUTED, "original"), handle("s", COLOURS[1], "marked")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)


def _draw_roc(figure: Figure, points: pd.DataFrame, lines: list[str]) -> None:
    from hallmark.roc import curve  # scikit-learn takes a second to import

    marks = sorted(points["mark"].unique())
    axes = figure.subplots(len(lines), 1, sharex=True, squeeze=False)[:, 0]
    for ax, unit in zip(axes, lines, strict=True):
        ax.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1)
        for (mark, _), part in points[points["unit"] == unit].groupby(["mark", "seed"], sort=True):
            i = marks.index(mark)
            sides = [part.loc[part["suspect"] == suspect, "x"].tolist() for suspect in ("marked", "innocent")]
            # later curves are thinner, so that those below show where several are perfect
            style = {"color": COLOURS[i % len(COLOURS)], "linewidth": 1 + 0.8 * (len(marks) - 1 - i)}
            ax.plot(*curve(*sides), clip_on=False, solid_capstyle="butt", **style)
        ax.set(xlim=(0, 1), ylim=(0, 1), ylabel="true positives", title=unit)
    axes[-1].set_xlabel("false positives")
    handles = [handle("", COLOURS[i % len(COLOURS)], mark, "-") for i, mark in enumerate(marks)]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
