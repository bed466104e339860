"""Figures of the means: accuracy with intervals per start, paired differences, and accuracy over rounds."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedstart.report.record import Record, Run
from fedstart.report.style import (
    BACKGROUND,
    FOREGROUND,
    GRID,
    MUTED,
    PAGE,
    Drawing,
    Look,
    grouped,
    headed,
    lane_text,
    lanes,
    legend,
    panels,
)
from fedstart.report.words import between, number, plural, probability, ranked, sample, setting_name, signed
from fedstart.scores import interval

POINTS = 200
"""A curve is drawn through at most this many rounds."""


def means(record: Record, setting: tuple[str, str], looks: Mapping[str, Look], name: str) -> Drawing:
    """Mean accuracy of every start with its 95 % interval, best first."""
    rows = ranked(record, setting)
    figure, axes = lanes(len(rows))
    for lane, row in enumerate(rows):
        look = looks[row["start"]]
        _whisker(axes, lane, row["mean"], row["low"], row["high"], look)
        limits = "" if row["low"] is None else f"  ({between(row['low'], row['high'])})"
        lane_text(axes, lane, record.called(row["start"]), f"{number(row['mean'])}{limits}")
    axes.set_xlabel("mean accuracy over clients (%)")
    _margins(axes)
    best = rows[0]
    caption = (
        f"Mean accuracy over clients, {setting_name(setting)}: mean of the runs, and the 95 % t-interval over them; "
        f"{sample(best)} per start. The axis does not begin at 0."
    )
    words = ", ".join(f"{row['start']} {number(row['mean'])} %" for row in rows)
    return Drawing(f"means-{name}", figure, caption, f"Mean accuracy by start: {words}.")


def differences(record: Record, setting: tuple[str, str], looks: Mapping[str, Look], name: str) -> Drawing | None:
    """Every start minus the reference, paired over tasks and seeds; None when there is nothing to compare."""
    starts = [row["start"] for row in ranked(record, setting)]
    found = [record.contrast(setting, start, record.reference) for start in starts if start != record.reference]
    contrasts = [contrast for contrast in found if contrast is not None]
    if not contrasts:
        return None
    figure, axes = lanes(len(contrasts))
    axes.axvline(0, color=FOREGROUND, linewidth=1)
    for lane, contrast in enumerate(contrasts):
        look = looks[contrast["first"]]
        _whisker(axes, lane, contrast["difference"], contrast["low"], contrast["high"], look)
        p = "" if contrast["p_holm"] is None else f"  ({probability(contrast['p_holm'])})"
        lane_text(axes, lane, record.called(contrast["first"]), f"{signed(contrast['difference'])}{p}")
    axes.set_xlabel("difference in mean accuracy (points)")
    _margins(axes)
    pairs = plural(contrasts[0]["n"], "pair")
    caption = (
        f"Difference to {record.reference}, {setting_name(setting)}, paired over (task, seed): "
        f"mean and 95 % t-interval, n = {pairs}; p from the paired t-test after Holm's correction."
    )
    words = ", ".join(f"{c['first']} {signed(c['difference'])}" for c in contrasts)
    return Drawing(f"differences-{name}", figure, caption, f"Points over {record.reference}: {words}.")


def rounds(
    runs: Mapping[str, Sequence[Run]], looks: Mapping[str, Look], key: str, label: str, name: str, title: str = ""
) -> Drawing | None:
    """A number of `rounds.jsonl` over rounds, one curve per start: mean, and 95 % t-interval as a band."""
    curves = {start: _curves(group, key) for start, group in runs.items()}
    curves = {start: curve for start, curve in curves.items() if len(curve[0])}
    if not curves:
        return None
    groups = grouped(list(curves), looks)
    figure, panes = panels(2.6, groups)
    for axes, names in zip(panes, groups, strict=True):
        if len(groups) > 1:
            _others(axes, curves)
        for start in names:
            numbers, table = curves[start]
            middle, low, high = np.array([_limits(column) for column in table.T]).T
            colour, marker, line = looks[start]
            pattern = {"linestyle": line, "linewidth": 1.8, "marker": marker, "markevery": max(1, len(numbers) // 6)}
            axes.plot(numbers, middle, color=colour, label=start, **pattern)
            if len(table) > 1:
                axes.fill_between(numbers, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.set_ylabel(label)
        legend(figure, axes, len(groups) == 1)
    panes[-1].set_xlabel("round")
    panes[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    headed(figure, panes, title)
    drawn = max(len(table) for _, table in curves.values())
    subject = label.removesuffix(" (%)").capitalize()
    what = f"{subject} after each round{', ' if title else ''}{title}"
    band = "; line = mean over runs, band = 95 % t-interval of the mean" if drawn > 1 else ""
    rest = f"; {BACKGROUND}" if len(groups) > 1 else ""
    caption = f"{what}{band}{rest}; n = {plural(drawn, 'run')}{' per start' if len(runs) > 1 else ''}."
    return Drawing(name, figure, caption, what)


def _others(axes: Axes, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    shared = functools.reduce(np.intersect1d, [numbers for numbers, _ in curves.values()])
    means = [table.mean(axis=0)[np.isin(numbers, shared)] for numbers, table in curves.values()]
    axes.fill_between(shared, np.min(means, axis=0), np.max(means, axis=0), color=GRID, alpha=0.5, linewidth=0)


def _curves(group: Sequence[Run], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Rounds that every run of the group has a number for, and the numbers, shape (runs, rounds)."""
    series = [{line["round"]: line[key] for line in run.rounds if line.get(key) is not None} for run in group]
    series = [one for one in series if one]
    shared = sorted(set.intersection(*(set(one) for one in series))) if series else []
    if len(shared) > POINTS:
        shared = [shared[place] for place in np.linspace(0, len(shared) - 1, POINTS).round().astype(int)]
    return np.array(shared), np.array([[one[number] for number in shared] for one in series], dtype=float)


def _limits(values: np.ndarray) -> tuple[float, float, float]:
    mean, low, high = interval(values)
    return mean, mean if low is None else low, mean if high is None else high


def _whisker(axes: Axes, lane: int, middle: float, low: Any, high: Any, look: Look) -> None:
    if low is not None:
        axes.plot([low, high], [-lane, -lane], color=look.colour, linewidth=3, solid_capstyle="round")
    axes.plot(
        [middle], [-lane], look.marker, color=look.colour, markersize=9, markeredgecolor=PAGE, markeredgewidth=1.2
    )
    if lane:
        axes.axhline(-lane + 0.62, color=MUTED, linewidth=0.4, alpha=0.5)


def _margins(axes: Axes) -> None:
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(5))
