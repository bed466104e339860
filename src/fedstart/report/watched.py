"""What the probes of a study gave on the way to the last round: over the rounds, and layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from fedstart.report.lab_panes import brief, heading, keyed, rungs, ticks
from fedstart.report.page import Block, Detail, Section
from fedstart.report.record import Record
from fedstart.report.style import Drawing, Look, grid, grouped, plain, shortened
from fedstart.report.tables import Column, Table, only, table
from fedstart.report.words import count, plural

Row = Mapping[str, Any]
LAYERS = 40
"""At most this many layers are drawn; the table has all."""
COLUMNS = 3


class Subject(NamedTuple):
    """One number of a probe, and how it is drawn: `label` of its axis, `scale` of its values, `note` of its caption."""

    probe: str
    value: str
    title: str
    label: str
    scale: float = 1.0
    unit: str = ""
    note: str = ""


def section(record: Record, looks: Mapping[str, Look]) -> Section | None:
    """The section of the page, a block for each number of a probe; None for a study that watched nothing."""
    rows = _rows(record)
    if not rows:
        return None
    numbers = dict.fromkeys((row["probe"], row["value"]) for row in rows)
    blocks: list[Block] = []
    for place, (probe, value) in enumerate(numbers, 1):
        held = [row for row in rows if (row["probe"], row["value"]) == (probe, value) and row["mean"] is not None]
        subject = _subject(record, probe, value)
        drawings = [*over_rounds(held, looks, subject, f"way-{place}"), *_layers(held, looks, subject, place)]
        if drawings:
            blocks.append(Block(subject.title, tuple(drawings)))
    whole = watched(record)
    network = only(whole, layer="")
    if network.rows:
        detail = Detail(f"{plural(len(network.rows), 'number')} of whole networks", "", network)
        blocks.append(Block("", (), (), details=(detail,)))
    text = (
        "Probes of the global model's weights before the first round and after some of the others. "
        f"All {plural(len(whole.rows), 'number')}, by layer too, are in tables/watched.csv."
    )
    return Section("way", "On the way", (text,), tuple(blocks))


def watched(record: Record) -> Table:
    """Every number that the probes gave, as in the summary; empty for a study that watched nothing."""
    columns = (
        Column("start", "start"),
        Column("algorithm", "algorithm"),
        Column("partition", "partition"),
        Column("probe", "probe"),
        Column("value", "value"),
        Column("layer", "layer"),
        Column("round", "after round", count),
        Column("rounds", "of", count),
        Column("n", "n", count),
        Column("mean", "mean", brief),
        Column("low", "95 % from", brief),
        Column("high", "to", brief),
    )
    caption = (
        "What probes gave after some rounds: mean over the n (task, seed) pairs and its 95 % t-interval; "
        "round 0 = before the first; shares are parts of 1; no layer = the whole network."
    )
    return table(record, "watched", caption, columns, _rows(record))


def over_rounds(rows: Sequence[Row], looks: Mapping[str, Look], subject: Subject, name: str) -> list[Drawing]:
    """The number of the whole network over the share of the rounds: a figure per partition, a panel per algorithm.

    All figures have the same limits. Empty where the number is of layers alone. Many starts give several figures.
    """
    rows = [row for row in rows if row["layer"] == ""]
    starts = [start for start in looks if any(row["start"] == start for row in rows)]
    found: list[Drawing] = []
    every: list[Axes] = []
    for partition in dict.fromkeys(row["partition"] for row in rows):
        for names in grouped(starts, looks):
            held = [row for row in rows if row["partition"] == partition and row["start"] in names]
            if held:
                shown = {start: looks[start] for start in names}
                drawing, panes = _multiples(held, shown, subject, f"{name}-{len(found) + 1}", partition)
                found.append(drawing)
                every += panes
    low, high = _limits([axes.get_ylim() for axes in every], subject) if every else (0.0, 1.0)
    for axes in every:
        axes.set_ylim(low, high)
    return found


def _multiples(
    rows: Sequence[Row], looks: Mapping[str, Look], subject: Subject, name: str, partition: str
) -> tuple[Drawing, list[Axes]]:
    algorithms = list(dict.fromkeys(row["algorithm"] for row in rows))
    columns = COLUMNS if len(algorithms) != 4 else 2
    figure, panes = grid(2.3, len(algorithms), columns, list(looks))
    words: list[str] = []
    room = {1: 44, 2: 20}.get(min(columns, len(algorithms)), 13)
    for algorithm, axes in zip(algorithms, panes, strict=True):
        for start, look in looks.items():
            own = [row for row in rows if (row["start"], row["algorithm"]) == (start, algorithm)]
            if not own:
                continue
            own.sort(key=lambda row: row["round"])
            _line(axes, [100 * row["round"] / row["rounds"] for row in own], own, subject, look)
            values = [f"{_value(row, subject)} at {100 * row['round'] / row['rounds']:.0f} %" for row in own]
            words.append(f"{algorithm} from {start}: {', '.join(values)}")
        axes.set_title(shortened(algorithm, room))
        axes.set_xlim(-4, 104)
        axes.xaxis.set_major_locator(FixedLocator([0, 50, 100]))
        ticks(axes, "y", 5)
    keyed(panes[0], looks)
    heading(figure, panes[0], partition)
    figure.supxlabel("share of the rounds done (%)", fontsize=11)
    figure.supylabel(subject.label, fontsize=11)
    band = "; line = mean, band = 95 % t-interval" if any(row["low"] is not None for row in rows) else ""
    caption = (
        f"{subject.title}: {plain(partition)}, over the share of the rounds that are done{band}; "
        f"{_sample(rows)}. {subject.note}"
    ).rstrip()
    return Drawing(name, figure, caption, f"{subject.title}, {plain(partition)}. {'; '.join(words)}."), panes


def _layers(rows: Sequence[Row], looks: Mapping[str, Look], subject: Subject, place: int) -> list[Drawing]:
    """The figures of a number by layer: the first algorithm of the last partition."""
    layered = [row for row in rows if row["layer"] != ""]
    if not layered or not (len(layered) < len(rows) or _moves(layered)):
        return []
    partition = layered[-1]["partition"]
    algorithm = next(row["algorithm"] for row in layered if row["partition"] == partition)
    held = [row for row in layered if (row["algorithm"], row["partition"]) == (algorithm, partition)]
    starts = [start for start in looks if any(row["start"] == start for row in held)]
    found: list[Drawing] = []
    for names in grouped(starts, looks):
        own = [row for row in held if row["start"] in names]
        shown = {start: looks[start] for start in names}
        title = f"{algorithm} on {partition}"
        if own:
            found.append(by_layer(own, shown, subject, f"way-{place}-layers-{len(found) + 1}", title))
    return found


def by_layer(rows: Sequence[Row], looks: Mapping[str, Look], subject: Subject, name: str, title: str) -> Drawing:
    """The number of every layer at the first two looks, a line per start.

    `rows` are of one algorithm and partition.
    """
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    shown = layers[:LAYERS]
    shares = sorted({row["round"] / row["rounds"] for row in rows})
    chosen = shares[:2]
    figure, panes = grid(1.1 + 0.24 * len(shown), len(chosen), 2, list(looks))
    ending = _ending(shown)
    words: list[str] = []
    for share, axes in zip(chosen, panes, strict=True):
        rungs(axes, [shortened(layer.removesuffix(ending), 20) for layer in shown])
        for start, look in looks.items():
            own = {r["layer"]: r for r in rows if r["start"] == start and r["round"] / r["rounds"] == share}
            places = [place for place, layer in enumerate(shown) if layer in own]
            if places:
                _line(axes, places, [own[shown[place]] for place in places], subject, look, across=True)
                values = [f"{shown[place]} {_value(own[shown[place]], subject)}" for place in places]
                words.append(f"at {100 * share:.0f} % of the rounds from {start}: {', '.join(values)}")
        axes.set_title("before round 1" if share == 0 else f"at {100 * share:.0f} %")
        ticks(axes, "x", 3)
    low, high = _limits([axes.get_xlim() for axes in panes], subject)
    panes[0].set_xlim(low, high)
    keyed(panes[0], looks)
    heading(figure, panes[0], title)
    figure.supxlabel(subject.label, fontsize=11)
    band = "; line = mean, band = 95 % t-interval" if any(row["low"] is not None for row in rows) else ""
    cut = f" The first {LAYERS} of {len(layers)} layers." if len(layers) > LAYERS else ""
    caption = (
        f"{subject.title}, layer by layer: {plain(title)}, at the first looks (share of the rounds done above each), "
        f"layers in the order of the network{band}; {_sample(rows)}.{cut} {subject.note}"
    ).rstrip()
    return Drawing(name, figure, caption, f"{subject.title}, {plain(title)}. {'; '.join(words)}.")


def _subject(record: Record, probe: str, value: str) -> Subject:
    if (probe, value) != ("misalignment", "share"):
        spaced = f"{plain(probe)}: {plain(value)}".replace("_", " ")
        return Subject(probe, value, spaced[0].upper() + spaced[1:], shortened(spaced, 36))
    kinds = {kind for run in record.downstream if (kind := _kind(run.about)) is not None}
    measure = f'by the measure "{plain(kinds.pop())}", ' if len(kinds) == 1 else ""
    note = (
        f"Misaligned {measure}against the weights of the last round: a reconstruction of Equation 8 of "
        "arXiv:2502.08024, ours, as its formula is not known to us."
    )
    title = "Share of misaligned filters, against the last round"
    return Subject(probe, value, title, "misaligned filters (%)", 100.0, " %", note)


def _kind(about: Mapping[str, Any]) -> str | None:
    found: Any = about
    for key in ("settings", "watch", "probes", "misalignment", "kind"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


def _line(
    axes: Axes, places: Sequence[float], rows: Sequence[Row], subject: Subject, look: Look, across: bool = False
) -> None:
    """Means with their intervals as a band; `across` lays the values along the x axis."""
    # None becomes NaN: a place without an interval has no band.
    middle, low, high = (
        np.array([row[key] for row in rows], dtype=float) * subject.scale for key in ("mean", "low", "high")
    )
    pattern = {"linestyle": look.line, "linewidth": 1.8, "marker": look.marker, "markersize": 5.0}
    axes.plot(*((middle, places) if across else (places, middle)), color=look.colour, **pattern)
    fill = axes.fill_betweenx if across else axes.fill_between
    fill(places, low, high, color=look.colour, alpha=0.18, linewidth=0)


def _limits(found: Sequence[tuple[float, float]], subject: Subject) -> tuple[float, float]:
    """Limits that hold all of these; shares lie between 0 and 100 %, and an interval may not. Marks at 0 are whole."""
    low, high = min(one[0] for one in found), max(one[1] for one in found)
    return (-0.04 * min(high, 100.0), min(high, 103.0)) if subject.unit else (low, high)


def _moves(rows: Sequence[Row]) -> bool:
    """True where a layer's number is not the same at every look: a count of filters is no news."""
    values: dict[tuple[Any, ...], set[float]] = {}
    for row in rows:
        place = tuple(row[key] for key in ("start", "algorithm", "partition", "layer"))
        values.setdefault(place, set()).add(row["mean"])
    return any(len(own) > 1 for own in values.values())


def _ending(layers: Sequence[str]) -> str:
    return ".weight" if all(layer.endswith(".weight") for layer in layers) else ""


def _value(row: Row, subject: Subject) -> str:
    return f"{brief(row['mean'] * subject.scale)}{subject.unit}"


def _sample(rows: Sequence[Row]) -> str:
    counts = sorted({row["n"] for row in rows})
    pairs = plural(counts[0], "pair") if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,} pairs"
    return f"n = {pairs} of (task, seed)"


def _rows(record: Record) -> list[Row]:
    return list(record.summary.get("watched") or ())
