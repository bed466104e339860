"""How settings were chosen: the rule, the candidates with their scores, and what was taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.ticker import MaxNLocator

from fedstart.report.page import Block, Section
from fedstart.report.record import OPTIMISTIC, Record
from fedstart.report.style import PAGE, Drawing, Look, plain, plot, shortened
from fedstart.report.tables import Column, Table, only, table
from fedstart.report.words import count, number, plural, two

VALIDATION = "chosen on tasks of pre-training classes"
SCORE = "Mean accuracy over clients in percent: mean of the n runs and its 95 % t-interval."
_LOGARITHMIC = 50
"""Settings above 0 whose largest is at least this many times the smallest are drawn on a logarithmic axis."""


def section(record: Record, looks: Mapping[str, Look]) -> Section | None:
    """The section of the page; None where no setting was chosen."""
    whole = candidates(record)
    blocks: list[Block] = []
    for place, (start, how) in enumerate(record.selection.items()):
        drawing = curve(record, start, looks, f"choice-{place + 1}")
        chosen = settings(how["chosen"])
        honest = f"C{validation(record).removeprefix('c')}."
        rule = {"paper": OPTIMISTIC, "validation": honest}.get(how["rule"], "")
        part = only(whole, f"{SCORE} {rule}".rstrip(), start=start, rule=how["rule"], score=how.get("score", "mean"))
        text = f'Rule "{plain(how["rule"])}". Chosen: {chosen}. {rule}'.rstrip()
        blocks.append(Block(record.called(start), (drawing,) if drawing else (), (part,), text))
    return Section("choosing", "How settings were chosen", (), tuple(blocks)) if blocks else None


def candidates(record: Record) -> Table:
    """Every candidate of every start whose settings were chosen."""
    columns = (
        Column("start", "start"),
        Column("settings", "settings"),
        Column("chosen", "chosen"),
        Column("rule", "rule"),
        Column("score", "score"),
        Column("mean", "mean", two),
        Column("low", "95 % from", two),
        Column("high", "to", two),
        Column("n", "n", count),
    )
    rows: list[dict[str, Any]] = []
    for start, how in record.selection.items():
        for found in how["candidates"]:
            chosen = "chosen" if found["changes"] == how["chosen"] else ""
            about = {"start": start, "rule": how["rule"], "score": how.get("score", "mean"), "chosen": chosen}
            rows.append({**found, **about, "settings": settings(found["changes"])})
    caption = f'{SCORE} Rule "validation": {validation(record)}. Rule "paper": chosen on the test tasks themselves.'
    return table(record, "choices", caption, columns, rows)


def curve(record: Record, start: str, looks: Mapping[str, Look], name: str) -> Drawing | None:
    """The score over the setting, if there was one to choose and it had several values; otherwise None."""
    how = record.selection[start]
    found = [one for one in how["candidates"] if one["mean"] is not None]
    paths = {path for one in found for path in one["changes"]}
    if len(paths) != 1 or len(found) < 2:
        return None
    path = paths.pop()
    values = [one["changes"].get(path) for one in found]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if numeric:
        found = sorted(found, key=lambda one: one["changes"][path])
        values = [one["changes"][path] for one in found]
    places = values if numeric else list(range(len(values)))
    colour, marker, _ = looks.get(start) or Look("#0072b2", "o", (0, ()))
    figure, axes = plot(2.5)
    if numeric:
        axes.plot(places, [one["mean"] for one in found], color=colour, linewidth=1, alpha=0.6)
    for at, one in zip(places, found, strict=True):
        if one["low"] is not None:
            axes.plot([at, at], [one["low"], one["high"]], color=colour, linewidth=2.5, solid_capstyle="round")
        inside = colour if one["changes"] == how["chosen"] else PAGE
        axes.plot([at], [one["mean"]], marker, color=colour, markerfacecolor=inside, markersize=9, markeredgewidth=1.6)
    if not numeric:
        axes.set_xticks(places, [shortened(str(value), 12) for value in values])
    elif min(values) > 0 and max(values) >= _LOGARITHMIC * min(values):
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(shortened(path, 44))
    axes.set_ylabel("mean accuracy (%)")
    axes.margins(x=0.08, y=0.12)
    tasks = "the test tasks themselves" if how["rule"] == "paper" else validation(record).removeprefix("chosen on ")
    counts = sorted({one["n"] for one in found})
    runs = plural(counts[0], "run") if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,} runs"
    caption = (
        f"{record.called(start)}: mean accuracy on {tasks} over {plain(path)}, with the 95 % t-interval over the runs, "
        f"n = {runs} per candidate; the filled mark was chosen."
    )
    said = ", ".join(f"{value} {number(one['mean'])} %" for value, one in zip(values, found, strict=True))
    return Drawing(name, figure, caption, f"Mean accuracy of {start} by {plain(path)}: {said}.")


def validation(record: Record) -> str:
    """What the rule "validation" chooses on: in a study that leaves out rows by a column, no class is kept apart."""
    column = (record.tables.get("pretraining") or {}).get("left_out", {}).get("column")
    return VALIDATION if column is None else f"chosen on tasks of pre-training rows, of another {plain(column)}"


def settings(changes: Mapping[str, Any]) -> str:
    """`settings.balance = 0.5, plan.lr = 0.01`."""
    return ", ".join(f"{plain(path)} = {plain(value)}" for path, value in changes.items())
