"""Figures of one paper at one scale, drawn from the same measurements as its tables."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hallmark.report import analysis
from hallmark.report.analysis import ATTACK, MODEL
from hallmark.report.canvas import COLOURS, INK, MARKERS, MUTED, Picture, handle
from hallmark.report.distributions import histograms, roc
from hallmark.report.features import QUERIES
from hallmark.report.rows import SUSPECTS
from hallmark.report.tables import ordered, plain

ALGORITHMS = {"": "", "simclr": "SimCLR", "moco_v2": "MoCo v2", "byol": "BYOL"}
TINIEST = 1e-300
"""What a p-value of 0 is drawn as."""


def pictures(rows: pd.DataFrame, features: pd.DataFrame, name: str) -> list[Picture]:
    """All figures of one paper at one scale that its rows suffice for.

    Args:
        rows: Result rows of one paper and scale.
        features: Points of pictures of the same paper and scale, see :mod:`hallmark.report.features`.
        name: Stem of the files' names.
    """
    drawn = [feature_space(features, f"{name}_features"), p_values(rows, f"{name}_pvalues")]
    drawn += robustness(rows, f"{name}_robustness")
    drawn.append(tradeoff(rows, f"{name}_tradeoff"))
    drawn += [*histograms(features, f"{name}_histograms"), *roc(features, f"{name}_roc")]
    return [picture for picture in drawn if picture is not None]


def feature_space(features: pd.DataFrame, name: str) -> Picture | None:
    """Clean and triggered images in feature space, unmarked and marked encoder side by side."""
    features = analysis.distinct(features[features["kind"].isin(QUERIES)])
    suspects = [s for s in ("original", "marked") if (features["suspect"] == s).any()]
    if not suspects:
        return None
    places = ordered(features.drop_duplicates("pretrain")[["experiment", "pretrain"]], ["pretrain"])

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(places), len(suspects), squeeze=False)
        for line, place in zip(axes, places.itertuples(), strict=True):
            here = features[(features["experiment"] == place.experiment) & (features["pretrain"] == place.pretrain)]
            for ax, suspect in zip(line, suspects, strict=True):
                points = here[here["suspect"] == suspect]
                points = points[points["seed"] == points["seed"].min()]
                clean, triggered = (points[points["kind"] == kind] for kind in QUERIES)
                ax.scatter(clean["x"], clean["y"], s=7, c=COLOURS[0], alpha=0.75, linewidths=0)
                ax.scatter(triggered["x"], triggered["y"], s=16, c=COLOURS[1], marker="x", linewidths=0.9)
                words = [_algorithm(place.pretrain), "unmarked" if suspect == "original" else "marked"]
                ax.set_title(" ".join(words).strip())
                ax.tick_params(labelbottom=False, labelleft=False, length=0)
            line[0].set_ylabel("component 2")
        for ax in axes[-1]:
            ax.set_xlabel("component 1")
        handles = [handle("o", COLOURS[0], "clean"), handle("x", COLOURS[1], "with the trigger")]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)

    title = "What the trigger does in feature space"
    caption = (
        "Features of clean images and of the same images with the trigger, on their first two principal components; "
        "one seed. Where the mark took, the triggered images gather; elsewhere they should stay among the clean."
    )
    return Picture(name, title, caption, 0.9 + 2.1 * len(places), draw)


def p_values(rows: pd.DataFrame, name: str) -> Picture | None:
    """Every p-value, by kind of suspect."""
    seen = analysis.verdicts(rows)
    seen = seen[seen["p_value"].notna() & ((seen["attack"] == "none") | (seen["suspect"] == "attacked_innocent"))]
    kinds = [suspect for suspect in SUSPECTS if (seen["suspect"] == suspect).any()]
    if not kinds:
        return None
    accesses = list(ordered(seen[["access"]].drop_duplicates(), ["access"])["access"])

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        height = 0.8 / len(accesses)
        for (line, kind), (lane, access) in itertools.product(enumerate(kinds), enumerate(accesses)):
            chosen = seen[(seen["suspect"] == kind) & (seen["access"] == access)]
            middle = line - 0.4 + (lane + 0.5) * height
            spread = (np.arange(len(chosen)) * 0.618034 % 1 - 0.5) * height * 0.8
            style: dict[str, Any] = {"color": _colour(lane), "marker": _marker(lane)}
            ax.scatter(_log(chosen["p_value"]), middle + spread, s=20, alpha=0.6, linewidths=0, **style)
            for limit in _log(chosen["p_min"].dropna()).unique():
                ax.vlines(limit, middle - height / 2, middle + height / 2, color=MUTED, linestyle=":", linewidth=1.4)
        _alpha_line(seen, rows, ax.axvline)
        ax.set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds])
        ax.set_ylim(len(kinds) - 0.5, -0.5)
        ax.grid(visible=False, axis="y")
        ax.set_xlabel("evidence, −log₁₀ p")
        handles = [handle(_marker(i), _colour(i), access or "any") for i, access in enumerate(accesses)]
        figure.legend(handles=[*handles, *_alpha_handles()], loc="outside lower center", ncols=3)

    caption = (
        "One point per downstream model, access and seed. A suspect is accused from alpha on: marked models should be, "
        "all others should not. No test can go further than the smallest attainable p."
    )
    return Picture(name, "Who is accused", caption, 1.3 + 0.62 * len(kinds), draw)


def robustness(rows: pd.DataFrame, name: str) -> list[Picture]:
    """Accuracy, success or error rate, and evidence over an attack's strength: one picture per attack and unit."""
    done = analysis.attacks(rows)
    done = done[done["access"] == analysis.least_access(done)]
    caption = (
        "Markers are medians over downstream models and seeds; bars reach from the lowest to the highest, or over the "
        "interval of a single rate. Dotted: what unmarked models reach, and the smallest attainable p. Dashed: alpha."
    )
    found = []
    for (attack, unit), part in done.groupby(["attack", "unit"], sort=True):
        stem = "".join(c if c.isalnum() else "_" for c in f"{name}_{attack}_{unit}".lower())
        title = f"Under attack: {attack.replace('_', ' ')}"
        found.append(Picture(stem, title, caption, 5.6, partial(_draw_robustness, part=part, rows=rows)))
    return found


def _draw_robustness(figure: Figure, part: pd.DataFrame, rows: pd.DataFrame) -> None:
    """Three panels over one axis of evenly spaced strengths, since units differ; before the attack comes first."""
    part = part.assign(series=_series(part))
    names = list(dict.fromkeys(ordered(part, ["pretrain", "series"])["series"]))
    strengths = sorted(part["strength"].unique())
    axes = figure.subplots(3, 1, sharex=True)
    share = "wsr" if part["wsr"].notna().any() else "ber"
    panels = (
        ("accuracy", _percent, "accuracy / %"),
        (share, _percent, f"{share.upper()} / %"),
        ("p_value", _log, "−log₁₀ p"),
    )
    for ax, (metric, scaled, label) in zip(axes, panels, strict=True):
        ax.set_ylabel(label)
        for i, name in enumerate(names):
            mine = part[part["series"] == name]
            x = np.arange(len(strengths) + 1) + 0.1 * (i - (len(names) - 1) / 2)
            steps = [mine[f"{metric}_before"], *(mine.loc[mine["strength"] == s, metric] for s in strengths)]
            middle = [scaled(step).median() for step in steps]
            ax.plot(x, middle, color=_colour(i), marker=_marker(i), clip_on=False, zorder=3)
            ends = [(scaled(step).min(), scaled(step).max()) for step in steps]
            if metric == share:
                ends[1:] = [_interval(mine, rows, share, s) or end for s, end in zip(strengths, ends[1:], strict=True)]
            ax.vlines(x, *np.transpose(ends), color=_colour(i), alpha=0.55, linewidth=1.6)
    others = rows["suspect"].isin(("original", "innocent")) & (rows["attack"] == "none") & (rows["metric"] == share)
    if others.any():
        axes[1].axhline(100 * rows.loc[others, "value"].median(), color=MUTED, linestyle=":", linewidth=1.2)
    _alpha_line(part, rows, axes[2].axhline)
    _smallest_line(part, axes[2])
    axes[0].set_ylim(0, 105)
    axes[1].set_ylim(-5, 105)
    axes[2].set_ylim(bottom=0)
    axes[2].set_xticks(range(len(strengths) + 1), ["none", *(plain(s) for s in strengths)])
    axes[2].set_xlabel(part["unit"].iloc[0])
    figure.align_ylabels(axes)
    handles = [handle(_marker(i), _colour(i), name, "-") for i, name in enumerate(names)]
    figure.legend(handles=[*handles, *_alpha_handles()], loc="outside lower center", ncols=3)


def _interval(mine: pd.DataFrame, rows: pd.DataFrame, metric: str, strength: float) -> tuple[float, float] | None:
    """The interval of a rate where one rate alone makes the point; ``None`` elsewhere."""
    here = mine[mine["strength"] == strength]
    if len(here) != 1:
        return None
    marked = rows[(rows["metric"] == metric) & (rows["suspect"] == "marked")]
    rate = marked.merge(here[_ATTACKED], on=_ATTACKED)
    return None if rate["ci_low"].isna().any() or rate.empty else (100 * rate["ci_low"][0], 100 * rate["ci_high"][0])


def tradeoff(rows: pd.DataFrame, name: str) -> Picture | None:
    """What an attack cost the model against what it did to the evidence: one point per attacked model."""
    done = analysis.attacks(rows)
    done = done[(done["access"] == analysis.least_access(done)) & done["loss"].notna() & done["p_value"].notna()]
    if done.empty:
        return None
    alpha = analysis.parameter(done, rows, "alpha").min()
    attacks = sorted(done["attack"].unique())
    done = done.assign(series=_series(done))
    names = list(dict.fromkeys(ordered(done, ["pretrain", "series"])["series"]))

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        for (i, attack), (j, name) in itertools.product(enumerate(attacks), enumerate(names)):
            part = done[(done["attack"] == attack) & (done["series"] == name)]
            style: dict[str, Any] = {"color": _colour(i), "marker": _marker(j)}
            ax.scatter(100 * part["loss"], _log(part["p_value"]), s=26, alpha=0.75, linewidths=0, **style)
        tolerance = 100 * done["tolerance"].min()
        left, right = min(ax.get_xlim()[0], -1.0), max(ax.get_xlim()[1], tolerance + 1)
        top = max(ax.get_ylim()[1], 1.0)
        ax.set(xlim=(left, right), ylim=(-0.06 * top, top))
        _alpha_line(done, rows, ax.axhline)
        _smallest_line(done, ax)
        ax.axvline(tolerance, color=MUTED, linewidth=1.2)
        if alpha == alpha:
            ax.fill_between([left, tolerance], -0.06 * top, -np.log10(alpha), color=COLOURS[4], alpha=0.2, linewidth=0)
            ax.annotate("removed", (0, 0), (4, 4), "axes fraction", textcoords="offset points", color=INK)
        ax.set_xlabel("accuracy lost to the attack / points")
        ax.set_ylabel("evidence left, −log₁₀ p")
        handles = [handle("o", _colour(i), attack) for i, attack in enumerate(attacks)]
        handles += [handle(_marker(j), MUTED, name) for j, name in enumerate(names)]
        figure.legend(handles=[*handles, *_alpha_handles()], loc="outside lower center", ncols=3)

    caption = (
        "One point per attacked model. The vertical line is the loss up to which a model is still worth having; an "
        "attack wins only in the shaded corner: the mark is not detected, and the model is still good."
    )
    return Picture(name, "Fidelity against robustness", caption, 3.9, draw)


_ATTACKED = [*MODEL, "seed", "access", *ATTACK]


def _alpha_line(seen: pd.DataFrame, rows: pd.DataFrame, line: Callable[..., object]) -> None:
    for alpha in sorted(analysis.parameter(seen, rows, "alpha").dropna().unique()):
        line(-np.log10(max(alpha, TINIEST)), color=INK, linestyle="--", linewidth=1.1)


def _smallest_line(seen: pd.DataFrame, ax: Axes) -> None:
    if seen["p_min"].notna().any():
        ax.axhline(float(_log(seen["p_min"]).max()), color=MUTED, linestyle=":", linewidth=1.2)


def _alpha_handles() -> list[Line2D]:
    return [handle("", INK, "alpha", "--"), handle("", MUTED, "smallest p", ":")]


def _series(frame: pd.DataFrame) -> list[str]:
    """What one line of a plot is called: the algorithm, and what else differs within the frame."""
    varying = [c for c in ("experiment", "scheme", "variant", "host", "dataset") if frame[c].nunique() > 1]
    names = (" ".join([_algorithm(line["pretrain"]), *(line[c] for c in varying)]) for line in frame.to_dict("records"))
    return [name.strip() or "host" for name in names]


def _algorithm(name: str) -> str:
    """A pretraining algorithm as papers write it."""
    return ALGORITHMS.get(name, name)


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _marker(i: int) -> str:
    return MARKERS[i % len(MARKERS)]


def _percent(fraction: pd.Series) -> pd.Series:
    return 100 * fraction


def _log(p: pd.Series) -> pd.Series:
    """−log₁₀ p, finite for p = 0."""
    return -np.log10(p.clip(lower=TINIEST)) + 0.0
