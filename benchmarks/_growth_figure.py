"""The figure of `growth.py`: six small panels, in the colours and type of the reports."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from _growth_point import MEGA, Series
from fedstart.report import style

RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
REFERENCE: dict[str, Any] = {"color": style.MUTED, "linewidth": 0.8, "linestyle": "--"}


def drawn(
    clients: Sequence[Series], cohort: Sequence[Series], models: dict[str, Series], methods: dict[str, Series]
) -> bytes:
    """The figure as SVG; the same bytes for the same numbers.

    `clients` is the line of clients trained singly and that of stacked ones; `cohort` these two, and the line of
    more examples each.
    """
    with style.applied(), matplotlib.rc_context({"svg.hashsalt": "growth"}):
        figure = Figure(figsize=(2 * style.WIDTH, 2.3 * style.WIDTH), layout="constrained")
        panels = figure.subplots(3, 2).flat
        time_over_clients(next(panels), clients)
        memory_over_clients(next(panels), clients)
        time_over_examples(next(panels), cohort)
        memory_over_cohort(next(panels), cohort[:-1])
        memory_over_models(next(panels), models)
        memory_over_clients_seen(next(panels), methods)
        for axes in figure.axes:
            label_powers(axes)
        target = io.BytesIO()
        metadata = {"Date": None, "Creator": None}
        figure.savefig(target, format="svg", metadata=metadata, facecolor=style.PAGE, transparent=False)
    return target.getvalue()


def time_over_clients(axes: Axes, lines: Sequence[Series]) -> None:
    """Seconds of a round of 100 clients; flat when the other clients cost nothing."""
    for place, series in enumerate(lines):
        axes.loglog([point.clients for point in series.points], series.seconds(), label=mode(series), **look(place))
    axes.set_ylim(min(series.seconds().min() for series in lines) / 5, lines[0].seconds().max() * 10)
    axes.set(title="Time: cohort of 100", xlabel="clients in the federation", ylabel="seconds a round")
    axes.legend(loc="upper left")


def memory_over_clients(axes: Axes, lines: Sequence[Series]) -> None:
    """The examples, the positions, and what the rounds add."""
    series = lines[0]
    clients = [point.clients for point in series.points]
    parts = {"examples": [f.data for f in series.measured], "positions": [f.index for f in series.measured]}
    parts |= {f"rounds, {mode(line)}": [found.rounds for found in line.measured] for line in lines}
    for place, (name, sizes) in enumerate(parts.items()):
        axes.loglog(clients, np.array(sizes) / MEGA, label=name, **look(place))
    axes.set_ylim(top=1e5)
    axes.set(title="Memory: cohort of 100", xlabel="clients in the federation", ylabel="MB")
    axes.legend(loc="upper left")


def time_over_examples(axes: Axes, lines: Sequence[Series]) -> None:
    """Seconds against the examples of the cohort: more clients, or more for each."""
    for place, series in enumerate(lines):
        grows = "more each" if series is lines[-1] else "more clients"
        axes.loglog(series.examples(), series.seconds(), label=f"{grows}, {mode(series)}", **look(place))
    ends = lines[0].examples()[[0, -1]]
    reference = ends / ends[1] * lines[0].seconds()[-1]
    axes.loglog(ends, reference, label="proportional", **REFERENCE)
    axes.set_ylim(top=axes.get_ylim()[1] * 100)
    axes.set(title="Time: cohort", xlabel="examples of the cohort", ylabel="seconds a round")
    axes.legend(loc="upper left")


def memory_over_cohort(axes: Axes, lines: Sequence[Series]) -> None:
    """What the rounds add, against the clients of a cohort."""
    for place, series in enumerate(lines):
        cohort = [point.cohort for point in series.points]
        axes.loglog(cohort, series.memory() / MEGA, label=mode(series), **look(place))
    axes.set_ylim(top=axes.get_ylim()[1] * 10)
    axes.set(title="Memory: cohort of 100,000 clients", xlabel="clients in the cohort", ylabel="MB that rounds add")
    axes.legend(loc="upper left")


def memory_over_models(axes: Axes, models: dict[str, Series]) -> None:
    """What the rounds add, against the size of the model."""
    for place, (name, series) in enumerate(models.items()):
        sizes = [found.model / MEGA for found in series.measured]
        axes.loglog(sizes, series.memory() / MEGA, label=name, **look(place))
    sizes = np.array([found.model / MEGA for series in models.values() for found in series.measured])
    ends = np.array([sizes.min(), sizes.max()])
    axes.loglog(ends, ends, label="one model", **REFERENCE)
    axes.set_ylim(top=axes.get_ylim()[1] * 100)
    axes.set(title="Memory: model", xlabel="MB of the model", ylabel="MB that rounds add")
    axes.legend(loc="upper left")


def memory_over_clients_seen(axes: Axes, methods: dict[str, Series]) -> None:
    """What remains behind each round, against the clients that have taken part so far."""
    for place, (name, series) in enumerate(methods.items()):
        (found,) = series.measured
        axes.plot(found.seen, np.array(found.resident) / MEGA, label=name, **look(place, marker=False))
    (found,) = methods["scaffold"].measured
    seen = np.array(found.seen)
    axes.plot(seen, seen * found.model / MEGA, label="a model a client", **REFERENCE)
    axes.set(title="Memory: what clients remember", xlabel="clients seen so far", ylabel="MB that rounds add")
    axes.legend(loc="upper left")


def mode(series: Series) -> str:
    """How a line's clients were trained."""
    together = series.points[0].together
    return "singly" if together == 1 else f"{together} stacked"


def label_powers(axes: Axes) -> None:
    """Writes ticks of logarithmic axes as powers of ten in plain text: the reports' settings parse no mathematics."""
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_formatter(FuncFormatter(power))
            axis.set_minor_formatter(NullFormatter())


def power(value: float, _: int | None) -> str:
    """A power of ten, with raised digits."""
    return "10" + str(round(np.log10(value))).translate(RAISED)


def look(place: int, marker: bool = True) -> dict[str, Any]:
    """Colour, marker and dashes of the lines of a panel, one after the other."""
    names = [str(number) for number in range(place + 1)]
    colour, shape, line = style.looks(names, None)[names[place]]
    return {"color": colour, "linestyle": line, "marker": shape if marker else None, "markersize": 4.0}
