"""Figures of the matrix: what removal costs, what fidelity it stands against, and how marks fade with strength."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hallmark.report.canvas import COLOURS, MARKERS, MUTED, Picture, handle
from hallmark.report.matrix.calibration import DAGGER, label
from hallmark.report.matrix.heatmap import heat_map
from hallmark.report.matrix.removal import SCHEME, attacked, decided, embedding_loss, strongest_first, survived
from hallmark.report.tables import plain
from hallmark.stats import mean_interval, wilson

Guilty = Collection[tuple[str, str, str]]


def pictures(found: pd.DataFrame, rows: pd.DataFrame, guilty: Guilty, name: str) -> list[Picture]:
    """All figures of the matrix at one scale.

    Args:
        found: Of :func:`hallmark.report.matrix.removal.cells`.
        rows: The result rows they were made of.
        guilty: Schemes, by experiment, scheme and variant, that bear the dagger.
        name: Stem of the files' names.
    """
    best = found[found["owner"] == found.groupby(list(SCHEME), dropna=False)["owner"].transform("first")]
    drawn = []
    for experiment, part in best.groupby("experiment", sort=True):
        own = f"{name}_{stem(str(experiment))}"
        drawn.append(heat_map(part, guilty, f"{own}_heatmap"))
        front = pareto(part, rows, guilty, f"{own}_pareto")
        drawn += [front] if front is not None else []
    return drawn + curves(rows, guilty, f"{name}_curve")


def pareto(found: pd.DataFrame, rows: pd.DataFrame, guilty: Guilty, name: str) -> Picture | None:
    """Utility lost by embedding against the share of attacks survived, one point a scheme."""
    points = survived(found).merge(embedding_loss(rows), on=list(SCHEME), how="left")
    points = points[points["decided"] > 0]
    unknown = [label(record, guilty) for record in points[points["lost"].isna()].to_dict("records")]
    points = points[points["lost"].notna()]
    if points.empty:
        return None
    points = points.assign(rate=100 * points["survived"] / points["decided"], lost=100 * points["lost"])
    front = points.sort_values(["lost", "rate"], ascending=[True, False])
    front = front[front["rate"] > front["rate"].shift().cummax().fillna(-1)]

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        ax.step(front["lost"], front["rate"], where="post", color=MUTED, linewidth=1.2, linestyle="--", zorder=1)
        handles = []
        for i, record in enumerate(points.to_dict("records")):
            colour, marker, title = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], label(record, guilty)
            hollow = "none" if title.endswith(DAGGER) else colour
            style: dict[str, Any] = {"marker": marker, "markeredgecolor": colour, "markerfacecolor": hollow}
            ax.plot(record["lost"], record["rate"], linestyle="", markersize=7, clip_on=False, zorder=3, **style)
            entry = handle(marker, colour, f"{title} {record['survived']}/{record['decided']}")
            entry.set_markerfacecolor(hollow)
            handles.append(entry)
        ax.set_ylim(-4, 104)
        ax.margins(x=0.08)
        ax.set_xlabel("utility lost to the mark / points")
        ax.set_ylabel("attacks survived / %")
        figure.legend(handles=handles, loc="outside lower center", ncols=2)

    caption = (
        "One point a scheme: what embedding cost the host, and the share of the attacks it was tried under that "
        "neither remove it nor open its lock, verified by the strongest access. The dashed line joins the schemes that "
        "no other beats in both."
        + (" Hollow: accuses innocents more often than alpha." if any(_guilty(points, guilty)) else "")
        + (f" Not drawn, since what they cost was not measured: {', '.join(unknown)}." if unknown else "")
    )
    heading = f"Fidelity against robustness: {found['experiment'].iloc[0]}"
    return Picture(name, heading, caption, 3.2 + 0.21 * ((len(points) + 1) // 2), draw)


def curves(rows: pd.DataFrame, guilty: Guilty, name: str) -> list[Picture]:
    """How mark and utility fade with an attack's strength, where there are several.

    A picture for every experiment, attack and unit, a panel for every scheme.
    """
    done = attacked(rows)
    best = [
        decided(part, strongest_first(part["access"])[0])
        for _, part in done.groupby(["experiment", "scheme", "variant"], sort=True)
    ]
    done = pd.concat(best) if best else done
    caption = (
        "Circles: share of the models on which the mark is found, with Wilson's interval, by the strongest access. "
        "Squares: utility that is left, in percent of what it was before, with Student's interval of the mean over "
        "models where there are several. Both with 95 %."
    )
    found = []
    for (experiment, attack, unit), part in done.groupby(["experiment", "attack", "unit"], sort=True):
        if part["strength"].nunique() < 2:
            continue
        own = f"{name}_{stem(str(experiment))}_{_file(f'{attack} {unit}')}"
        schemes = list(part[["scheme", "variant"]].drop_duplicates().itertuples(index=False, name=None))
        height = 1.45 + 1.25 * ((len(schemes) + 1) // 2)
        title = f"{str(experiment).rpartition('/')[2]} under {str(attack).replace('_', ' ')}"
        draw = partial(_draw_curves, part=part, schemes=schemes, guilty=guilty)
        found.append(Picture(own, title, caption, height, draw))
    return found


def _draw_curves(figure: Figure, part: pd.DataFrame, schemes: list[tuple[str, str]], guilty: Guilty) -> None:
    axes = figure.subplots((len(schemes) + 1) // 2, 2, sharex=True, sharey=True, squeeze=False).ravel()
    strengths = sorted(part["strength"].unique())
    for ax, (scheme, variant) in zip(axes, schemes, strict=False):
        mine = part[(part["scheme"] == scheme) & (part["variant"] == variant)]
        here = [mine[mine["strength"] == strength] for strength in strengths]
        first = next(step for step in here if len(step))
        _line(ax, [_found(first["detected_before"]), *(_found(step["detected"]) for step in here)], -0.08, 0, "o")
        left = [_mean(first["as_stolen"] / first["accuracy_before"])]
        left += [_mean(step["accuracy"] / step["accuracy_before"]) for step in here]
        _line(ax, left, 0.08, 1, "s")
        ax.set_title(label({"experiment": part["experiment"].iloc[0], "scheme": scheme, "variant": variant}, guilty))
        ax.set_ylim(-5, 110)
        ax.set_xticks(range(len(strengths) + 1), ["none", *map(plain, strengths)])
    for ax in axes[len(schemes) :]:
        ax.set_axis_off()
    for ax in axes[::2]:
        ax.set_ylabel("%")
    for ax in axes[max(0, len(schemes) - 2) : len(schemes)]:
        ax.tick_params(labelbottom=True)
    handles = [handle("o", COLOURS[0], "mark found", "-"), handle("s", COLOURS[1], "utility left", "-")]
    unit = str(part["unit"].iloc[0])
    figure.legend(handles=handles, loc="outside lower center", ncols=2, title=unit, title_fontsize=9.5)


def _line(ax: Axes, steps: list[tuple[float, float, float]], shift: float, colour: int, marker: str) -> None:
    x = np.arange(len(steps)) + shift
    middle, low, high = np.transpose(steps)
    ax.vlines(x, low, high, color=COLOURS[colour], alpha=0.55, linewidth=1.6)
    ax.plot(x, middle, color=COLOURS[colour], marker=marker, clip_on=False, zorder=3)


def _found(flags: pd.Series) -> tuple[float, float, float]:
    """Share of detected models and its interval, in percent."""
    known = flags.dropna()
    if known.empty:
        return (np.nan,) * 3
    rate = wilson(int(known.sum()), len(known))
    return 100 * rate.rate, 100 * rate.low, 100 * rate.high


def _mean(parts: pd.Series) -> tuple[float, float, float]:
    """Mean of shares and its interval, in percent; of a single one no interval."""
    known = (100 * parts).dropna().tolist()
    if not known:
        return (np.nan,) * 3
    low, high = mean_interval(known) if len(known) > 1 else (known[0], known[0])
    return float(np.mean(known)), low, high


def _guilty(frame: pd.DataFrame, guilty: Guilty) -> list[bool]:
    return [place in guilty for place in frame[["experiment", "scheme", "variant"]].itertuples(index=False, name=None)]


def stem(experiment: str) -> str:
    """What the names of files call an experiment: the last part of its name."""
    return _file(experiment.rpartition("/")[2])


def _file(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text.lower())
