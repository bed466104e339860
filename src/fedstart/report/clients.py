"""Figures of the clients: how their accuracies are spread, and who gains and loses between two starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fedstart import keys
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
    lane_text,
    lanes,
    legend,
    panels,
    plot,
    shortened,
)
from fedstart.report.words import number, plural, setting_name

STEPS = 200
"""A distribution is drawn with at most this many steps."""
DOTS = 1500
"""A scatter plot shows at most this many clients."""


def by_start(record: Record, setting: tuple[str, str]) -> dict[str, list[Run]]:
    """The finished downstream runs of a setting, by start, in the order of the summary."""
    runs = [run for run in record.downstream if run.setting == setting]
    found = {start: [run for run in runs if run.start == start] for start in record.starts}
    return {start: group for start, group in found.items() if group}


def pooled(group: Sequence[Run]) -> np.ndarray:
    """Accuracies in percent of the clients of all runs together."""
    return np.concatenate([run.scores.accuracy for run in group if run.scores is not None])


def cumulative(groups: Mapping[str, Sequence[Run]], looks: Mapping[str, Look], where: str, name: str) -> Drawing:
    """Share of clients with at most a given accuracy, per start."""
    panes = grouped(list(groups), looks)
    figure, every = panels(2.6, panes)
    shares = np.linspace(0, 1, STEPS + 1)[1:]
    levels = [np.quantile(pooled(group), shares, method="inverted_cdf") for group in groups.values()]
    for axes, names in zip(every, panes, strict=True):
        if len(panes) > 1:
            axes.fill_betweenx(shares, np.min(levels, axis=0), np.max(levels, axis=0), color=GRID, alpha=0.5, lw=0)
        for start in names:
            _steps(axes, start, groups[start], looks[start])
        axes.set_ylabel("share of clients")
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        legend(figure, axes, len(panes) == 1)
    every[-1].set_xlabel("client accuracy (%)")
    counts = _counts(groups)
    caption = (
        f"Share of clients whose accuracy is at most the value on the axis{where}, "
        f"clients of all runs pooled ({counts}). A curve further right is better; its foot shows the worst-served."
        f"{f' Behind: {BACKGROUND}.' if len(panes) > 1 else ''}"
    )
    return Drawing(name, figure, caption, f"Cumulative distribution of client accuracy{where}.")


def _steps(axes: Axes, start: str, group: Sequence[Run], look: Look) -> None:
    values = np.sort(pooled(group))
    shares = np.arange(1, len(values) + 1) / len(values)
    if len(values) > STEPS:
        shares = np.linspace(0, 1, STEPS + 1)[1:]
        values = np.quantile(values, shares, method="inverted_cdf")
    x, y = np.concatenate([values[:1], values]), np.concatenate([[0.0], shares])
    axes.plot(x, y, drawstyle="steps-post", color=look.colour, linestyle=look.line, linewidth=1.8, label=start)


def spread(groups: Mapping[str, Sequence[Run]], looks: Mapping[str, Look], where: str, name: str) -> Drawing:
    """The same accuracies as violins, with quartiles and mean."""
    figure, axes = lanes(len(groups))
    for lane, (start, group) in enumerate(groups.items()):
        values = pooled(group)
        look = looks[start]
        body = axes.violinplot([values], [-lane - 0.02], orientation="horizontal", widths=0.4, showextrema=False)
        for shape in body["bodies"]:  # pyright: ignore[reportGeneralTypeIssues]
            shape.set_facecolor(look.colour)
            shape.set_alpha(0.45)
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
        axes.plot([low, high], [-lane - 0.02] * 2, color=look.colour, linewidth=3.5, solid_capstyle="butt")
        axes.plot([middle], [-lane - 0.02], look.marker, color=look.colour, markersize=8, markeredgecolor=PAGE)
        lane_text(axes, lane, start, f"{number(low)} | {number(middle)} | {number(high)}")
    axes.set_xlabel("client accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    caption = (
        f"Distribution of client accuracy{where}, clients of all runs pooled ({_counts(groups)}). "
        "Shape = density, bar = middle half of the clients, marker = median; the numbers are the three quartiles."
    )
    return Drawing(name, figure, caption, f"Violin plots of client accuracy{where}.")


def matched(groups: Mapping[str, Sequence[Run]], first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies of the same clients of the same tasks and seeds under two starts, each of shape (clients,)."""
    other = {run.pair: run.scores for run in groups.get(second, ())}
    left: list[float] = []
    right: list[float] = []
    for run in groups.get(first, ()):
        against = other.get(run.pair)
        if run.scores is not None and against is not None:
            _, mine, theirs = np.intersect1d(run.scores.clients, against.clients, return_indices=True)
            left.extend(run.scores.accuracy[mine])
            right.extend(against.accuracy[theirs])
    return np.array(left), np.array(right)


def gains(
    groups: Mapping[str, Sequence[Run]],
    setting: tuple[str, str],
    first: str,
    second: str,
    looks: Mapping[str, Look],
    name: str,
) -> Drawing | None:
    """Each client's accuracy from `first` minus from `second`, sorted; None without a shared client."""
    left, right = matched(groups, first, second)
    if not len(left):
        return None
    change = np.sort(left - right)[::-1]
    gaining, losing = int((change > 0).sum()), int((change < 0).sum())
    total = len(change)
    shown = change if total <= STEPS else np.quantile(change, np.linspace(1, 0, STEPS))
    edges = np.linspace(0, 100, len(shown) + 1)
    figure, axes = plot(3.2)
    axes.stairs(np.maximum(shown, 0), edges, fill=True, color=looks[first].colour)
    axes.stairs(np.minimum(shown, 0), edges, fill=True, color=looks[second].colour)
    axes.axhline(0, color=FOREGROUND, linewidth=1)
    axes.set_xlim(0, 100)
    axes.set_xlabel("clients, largest gain first (%)")
    axes.set_ylabel("difference (points)")
    axes.margins(y=0.12)
    words = f"{gaining} gain, {losing} lose, {total - gaining - losing} equal"
    axes.set_title(f"{shortened(first, 24)} minus {shortened(second, 24)}\n{words}", loc="left")
    caption = (
        f"Who gains and who loses from {first} instead of {second}, {setting_name(setting)}: "
        f"every client by the difference of its accuracy, n = {plural(total, 'client')} of all tasks and seeds; "
        f"above 0 it does better from {first}."
    )
    return Drawing(name, figure, caption, f"{first} against {second}: {words}.")


def scatter(
    groups: Mapping[str, Sequence[Run]],
    setting: tuple[str, str],
    first: str,
    second: str,
    looks: Mapping[str, Look],
    name: str,
) -> Drawing | None:
    """Each client's accuracy from `first` over its accuracy from `second`: do the weak gain or the strong?"""
    left, right = matched(groups, first, second)
    if not len(left):
        return None
    total = len(left)
    if total > DOTS:
        kept = np.sort(keys.generator(0, "report-scatter", total).choice(total, DOTS, replace=False))
        left, right = left[kept], right[kept]
    low, high = min(left.min(), right.min()), max(left.max(), right.max())
    edge = 0.04 * max(high - low, 1.0)
    figure, axes = plot(4.0)
    axes.plot([low - edge, high + edge], [low - edge, high + edge], color=MUTED, linewidth=1)
    axes.plot(right, left, looks[first].marker, color=looks[first].colour, alpha=0.6, markersize=6, markeredgewidth=0)
    axes.set(xlim=(low - edge, high + edge), ylim=(low - edge, high + edge), aspect="equal")
    axes.set_xlabel(f"accuracy from {shortened(second, 24)} (%)")
    axes.set_ylabel(f"accuracy from {shortened(first, 24)} (%)")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    drawn = f"{DOTS:,} of {total:,} clients, drawn at random" if total > DOTS else plural(total, "client")
    caption = (
        f"Accuracy from {first} over that from {second}, {setting_name(setting)}: one mark per client, n = {drawn}; "
        f"above the line the client does better from {first}. At the left are the clients that {second} serves worst."
    )
    return Drawing(name, figure, caption, f"Client accuracy from {first} over that from {second}.")


def _counts(groups: Mapping[str, Sequence[Run]]) -> str:
    clients = {len(pooled(group)) for group in groups.values()}
    runs = {len(group) for group in groups.values()}
    per = " per start" if len(groups) > 1 else ""
    return f"n = {_span(clients)} clients in {_span(runs)} run{'' if runs == {1} else 's'}{per}"


def _span(values: set[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
