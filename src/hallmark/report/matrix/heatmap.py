"""The matrix as a picture: schemes × attacks, coloured by what removal costs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from hallmark.report.canvas import COLOURS, GRID, GROUND, INK, MUTED, WIDTH, Picture
from hallmark.report.matrix.calibration import label
from hallmark.report.matrix.removal import ABSENT, BROKEN, IMPOSSIBLE, KEPT, NOT_RUN, OPENED, UNDECIDED, survived
from hallmark.report.matrix.tables import percent
from hallmark.report.tables import NOTHING

COST = LogNorm(1e-4, 10.0)
"""Shares of the host's training that the colours span, the same in every heat map: 0.01 % to 1000 %."""
COLOUR_MAP = "cividis"
"""Even in lightness, and much the same to eyes that lack a colour (Nuñez, Anderton and Renslow 2018)."""
_FILLS: dict[str, tuple[dict[str, Any], str]] = {
    KEPT: ({"facecolor": GROUND, "edgecolor": GRID, "hatch": "..."}, "kept"),
    IMPOSSIBLE: ({"facecolor": GRID, "edgecolor": MUTED, "hatch": "////", "linewidth": 0}, ""),
    ABSENT: ({"facecolor": GRID, "edgecolor": GRID}, "×"),
    UNDECIDED: ({"facecolor": GRID, "edgecolor": GRID}, "?"),
    NOT_RUN: ({"facecolor": GROUND, "edgecolor": GRID}, NOTHING),
}
_LEGEND = {
    KEPT: "kept: not removed",
    IMPOSSIBLE: "n/a",
    ABSENT: "×: no mark before",
    UNDECIDED: "?: undecided",
    NOT_RUN: f"{NOTHING}: not run",
}


def heat_map(found: pd.DataFrame, guilty: Collection[tuple[str, str, str]], name: str) -> Picture:
    """Schemes × attacks of one experiment, coloured by what removal costs at the strongest access.

    Args:
        found: Cells of :func:`hallmark.report.matrix.removal.cells`, of one experiment and one owner a scheme.
        guilty: Schemes, by experiment, scheme and variant, that bear the dagger.
        name: Stem of its files.
    """
    scores = survived(found).assign(rate=lambda frame: frame["survived"] / frame["decided"].clip(lower=1))
    schemes = scores.sort_values(["rate", "scheme", "variant"], ascending=[False, True, True])
    broken = found["state"].isin(BROKEN).groupby(found["attack"]).sum()
    attacks = sorted(broken.index, key=lambda attack: (-broken[attack], attack))
    states = {(line.scheme, line.variant, line.attack): line for line in found.itertuples()}
    present = [state for state in _FILLS if (found["state"] == state).any()]
    title = f"Attack cost to removal: {found['experiment'].iloc[0]}"
    caption = (
        "Wall time of the cheapest strength that removes the mark, in percent of the wall time in which the host was "
        "trained from scratch; verified by the strongest access. Dark is cheap. Schemes that survive most come first, "
        "and attacks that remove most."
        + (" With a ring: the mark is found still, but the lock is open." if (found["state"] == OPENED).any() else "")
    )
    height = 1.9 + 0.32 * len(schemes)
    width = max(WIDTH, 2.2 + 0.42 * len(attacks))

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        costs = np.full((len(schemes), len(attacks)), np.nan)
        for i, scheme in enumerate(schemes.itertuples()):
            for j, attack in enumerate(attacks):
                cell = states[scheme.scheme, scheme.variant, attack]
                if cell.state in BROKEN:
                    costs[i, j] = cell.share
                _annotate(ax, i, j, cell)
        mesh = ax.pcolormesh(np.clip(costs, COST.vmin, COST.vmax), cmap=COLOUR_MAP, norm=COST)
        ax.set(xlim=(0, len(attacks)), ylim=(len(schemes), 0))
        names = [label(record, guilty) for record in schemes.to_dict("records")]
        ax.set_yticks(np.arange(len(schemes)) + 0.5, names)
        labels = [attack.replace("_", " ") for attack in attacks]
        ax.set_xticks(np.arange(len(attacks)) + 0.5, labels, rotation=50, ha="right", rotation_mode="anchor")
        ax.tick_params(length=0)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
        patches = [Patch(**_FILLS[state][0], label=_LEGEND[state]) for state in present]
        if patches:
            figure.legend(
                handles=patches, loc="outside lower center", ncols=max(2, min(len(patches), int(width / 1.8)))
            )
        if len(schemes) < 3:
            return  # too low for a bar; the cells say the numbers
        bar = figure.colorbar(mesh, ax=ax, pad=0.02, aspect=max(8, 4 * len(schemes)), label="cost / % of training")
        bar.solids.set_rasterized(False)  # a picture in the picture would be fetched by the page
        bar.ax.set_yticks([1e-4, 1e-3, 1e-2, 1e-1, 1, 10], ["0.01", "0.1", "1", "10", "100", "1000"])
        bar.ax.minorticks_off()
        bar.outline.set_visible(False)  # type: ignore[operator]

    return Picture(name, title, caption, height, draw, width)


def _annotate(ax: Axes, i: int, j: int, cell: Any) -> None:
    """What one cell says beside its colour."""
    if cell.state in _FILLS:
        style, text = _FILLS[cell.state]
        ax.add_patch(Rectangle((j, i), 1, 1, **style))
        colour = INK
    else:
        known = cell.share == cell.share
        text = percent(cell.share).replace("< ", "<") if known else "gone"
        # not the neutral colours, which the page turns round in the dark: these stand on a colour that stays
        light = known and COST(np.clip(cell.share, COST.vmin, COST.vmax)) > 0.5
        colour = "#101010" if light or not known else "#fafafa"
        if cell.state == OPENED:
            text += "°"
        if not known:
            ax.add_patch(Rectangle((j, i), 1, 1, facecolor=COLOURS[5], edgecolor=GROUND))
    ax.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=7.5, color=colour)
