"""Accuracy over the number of local steps, where algorithms of a study are one method with different tau."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from fedstart.report.lab_panes import counted
from fedstart.report.page import Block, Section
from fedstart.report.record import Record
from fedstart.report.style import BACKGROUND, GRID, Drawing, Look, grouped, headed, legend, panels, plain
from fedstart.report.words import between, number, plural

Row = Mapping[str, Any]
_DODGE = 0.035
"""How far apart the marks of two starts are at one tau, as a share of the axis."""


class Member(NamedTuple):
    """An algorithm with a constant number of local steps: `method` and `rest` say what else it is."""

    algorithm: str
    method: str
    rest: str
    local_steps: int
    rounds: int


def section(record: Record, looks: Mapping[str, Look]) -> Section | None:
    """The section of the page; None where no two algorithms are one method with different tau."""
    found = families(record)
    partitions = list(dict.fromkeys(partition for _, partition in record.pairings))
    drawings: list[Drawing] = []
    for family in found:
        where = f"{family[0].method}, " if len(found) > 1 else ""
        for partition in partitions:
            rows = _placed(record, family, partition)
            if len({tau for tau, _ in rows}) > 1:
                name, title = f"tau-{len(drawings) + 1}", f"{where}{partition}"
                drawings.append(accuracy(family, rows, looks, name, title))
    if not drawings:
        return None
    return Section("tau", "Local steps", tuple(map(work, found)), (Block("", tuple(drawings)),))


def families(record: Record) -> list[list[Member]]:
    """The algorithms that differ in their constant tau alone, and in rounds; each family by ascending tau.

    Where a tau comes twice, only those with the same number of local steps in all (rounds times tau) are a family.
    """
    alike: dict[str, list[Member]] = {}
    for algorithm in dict.fromkeys(algorithm for algorithm, _ in record.pairings):
        member = _member(record, algorithm)
        if member is not None:
            alike.setdefault(member.rest, []).append(member)
    found: list[list[Member]] = []
    for members in alike.values():
        twice = len({member.local_steps for member in members}) < len(members)
        by_work: dict[int, list[Member]] = {}
        for member in members:
            by_work.setdefault(member.rounds * member.local_steps if twice else 0, []).append(member)
        found += [sorted(one, key=lambda member: member.local_steps) for one in by_work.values() if len(one) > 1]
    return found


def work(family: Sequence[Member]) -> str:
    """How many rounds and local steps the algorithms of a family take."""
    names = ", ".join(plain(member.algorithm) for member in family)
    said = f"{names}: {plain(family[0].method)} with different numbers τ of local steps."
    steps = {member.rounds * member.local_steps for member in family}
    rounds = {member.rounds for member in family}
    each = ", ".join(f"{plural(member.rounds, 'round')} at τ = {member.local_steps:,}" for member in family)
    if len(steps) == 1:
        return f"{said} Equal numbers of local steps: rounds × τ = {steps.pop():,} in each ({each})."
    if len(rounds) == 1:
        return f"{said} Each has {plural(rounds.pop(), 'round')}, so a larger τ means more local steps in all."
    return f"{said} Rounds × τ is not the same in each: {each}."


def accuracy(
    family: Sequence[Member], rows: Sequence[tuple[int, Row]], looks: Mapping[str, Look], name: str, title: str
) -> Drawing:
    """Mean accuracy with its 95 % interval over tau, one line per start. `rows` are pairs of tau and a row."""
    curves = {start: [(tau, row) for tau, row in rows if row["start"] == start] for start in looks}
    curves = {start: points for start, points in curves.items() if points}
    groups = grouped(list(curves), looks)
    figure, panes = panels(2.7, groups)
    taus = sorted({tau for tau, _ in rows})
    for axes, names in zip(panes, groups, strict=True):
        counted(axes, taus, 6)
        if len(groups) > 1:
            means = [[row["mean"] for at, row in rows if at == tau] for tau in taus]
            axes.fill_between(taus, [*map(min, means)], [*map(max, means)], color=GRID, alpha=0.5, linewidth=0)
        width = _DODGE * math.log(taus[-1] / taus[0])
        shifts = np.exp((np.arange(len(names)) - (len(names) - 1) / 2) * width)
        for start, shift in zip(names, shifts, strict=True):
            _curve(axes, curves[start], float(shift), looks[start], start)
        axes.margins(x=0.06)
        axes.set_ylabel("mean accuracy (%)")
        legend(figure, axes, len(groups) == 1)
    panes[-1].set_xlabel("τ, local steps per round")
    headed(figure, panes, title)
    counts = sorted({row["n"] for _, row in rows})
    sample = plural(counts[0], "run") if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,} runs"
    bars = " and bar = 95 % t-interval" if any(row["low"] is not None for _, row in rows) else ""
    names = ", ".join(plain(member.algorithm) for member in family)
    caption = (
        f"Mean accuracy over the number τ of local steps, {plain(title)} ({names}): mark = mean over the runs{bars}, "
        f"n = {sample} per mark; marks of one τ stand side by side{f'; {BACKGROUND}' if len(groups) > 1 else ''}."
    )
    words = [f"from {start}: {', '.join(_said(tau, row) for tau, row in points)}" for start, points in curves.items()]
    return Drawing(name, figure, caption, f"Mean accuracy by local steps, {plain(title)}: {'; '.join(words)}.")


def _member(record: Record, algorithm: str) -> Member | None:
    """What the settings of the algorithm's runs say; None without a constant number of local steps."""
    for run in record.downstream:
        settings = run.about.get("settings")
        if run.setting[0] != algorithm or not isinstance(settings, dict):
            continue
        plan = settings.get("plan")
        if not isinstance(plan, dict):
            return None
        tau, rounds = plan.get("local_steps"), plan.get("rounds")
        if plan.get("schedule") is not None or not isinstance(tau, int) or not isinstance(rounds, int) or tau < 1:
            return None
        method = str(settings.get("method", ""))
        rest = {key: value for key, value in plan.items() if key not in ("local_steps", "rounds", "seed")}
        told = json.dumps([method, settings.get("settings"), rest], sort_keys=True)
        return Member(algorithm, method, told, tau, rounds)
    return None


def _placed(record: Record, family: Sequence[Member], partition: str) -> list[tuple[int, Row]]:
    """The rows of a family on a partition with their tau, ascending."""
    return [(one.local_steps, row) for one in family for row in record.of((one.algorithm, partition))]


def _curve(axes: Axes, points: Sequence[tuple[int, Row]], shift: float, look: Look, label: str) -> None:
    places = [tau * shift for tau, _ in points]
    pattern = {"linestyle": look.line, "linewidth": 1.8, "marker": look.marker, "markersize": 6.5}
    axes.plot(places, [row["mean"] for _, row in points], color=look.colour, label=label, **pattern)
    for at, (_, row) in zip(places, points, strict=True):
        if row["low"] is not None:
            axes.plot([at, at], [row["low"], row["high"]], color=look.colour, linewidth=2, solid_capstyle="round")


def _said(tau: int, row: Row) -> str:
    limits = "" if row["low"] is None else f" ({between(row['low'], row['high'])})"
    return f"{number(row['mean'])} %{limits} at τ = {tau:,}"
