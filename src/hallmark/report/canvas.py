"""What all figures share: their look, and how they become bytes that are the same every time.

Widths suit a phone: one column, type of about ten points.  Colours are Okabe and Ito's, which colour-blind readers can
tell apart, and every colour is doubled by a marker or a line style.  Texts stay texts in the SVG, and the neutral
colours are the four of :data:`NEUTRALS`, so that the page can restyle both.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

INK, MUTED, GRID, GROUND = "#1b1f24", "#667080", "#dde2e8", "#ffffff"
NEUTRALS = {INK: "ink", MUTED: "muted", GRID: "grid", GROUND: "card"}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH = 4.6
"""Of a figure, in inches, unless it needs more."""
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": GROUND,
    "figure.facecolor": GROUND,
    "savefig.facecolor": GROUND,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "hatch.linewidth": 0.6,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
}


@dataclass(frozen=True)
class Picture:
    """A figure, drawn when its bytes are asked for.

    Attributes:
        name: Stem of its files.
        title: Its heading.
        caption: How to read it.
        height: In inches.
        draw: Fills the empty figure.
        width: In inches; what is wider than :data:`WIDTH` scrolls in a box of its own on the page.
    """

    name: str
    title: str
    caption: str
    height: float
    draw: Callable[[Figure], None]
    width: float = WIDTH

    @cached_property
    def svg(self) -> bytes:
        """The vector image."""
        text = self._render(format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))).decode()
        return "".join(f"{line.rstrip()}\n" for line in text.splitlines()).encode()

    @cached_property
    def png(self) -> bytes:
        """The same as pixels."""
        return self._render(format="png", dpi=160, metadata={"Software": None})

    def _render(self, **options: Any) -> bytes:
        """Draws in a context of its own, so that nobody's matplotlib settings show; no date or version goes in."""
        settings: Any = {**mpl.rcParamsDefault, **STYLE, "svg.hashsalt": self.name}
        with mpl.rc_context(settings):
            figure = Figure(figsize=(self.width, self.height), layout="constrained")
            figure.suptitle(self.title, x=0.02, ha="left")
            self.draw(figure)
            data = io.BytesIO()
            figure.savefig(data, **options)
        return data.getvalue()


def handle(marker: str, colour: str, label: str, line: str = "") -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], color=colour, marker=marker, linestyle=line, label=label)  # type: ignore[arg-type]
