"""Federations: which client holds which labels, and how many examples, as figures and as a table."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator

from fedstart.report.record import Holding, Record
from fedstart.report.style import Drawing, plain, plot
from fedstart.report.tables import Column, Table
from fedstart.report.words import count, number, plural, three

SHOWN = 100
"""A picture of labels shows at most this many clients."""
_INK = LinearSegmentedColormap.from_list("ink", [(0.0, 0.447, 0.698, 0.0), (0.0, 0.447, 0.698, 1.0)])


def labels(holding: Holding, name: str) -> Drawing:
    """Share of each label in every client's examples: one column per client, one row per class."""
    counts = holding.counts
    clients, classes = counts.shape
    shown = counts if clients <= SHOWN else counts[np.linspace(0, clients - 1, SHOWN).round().astype(int)]
    shares = 100 * shown / np.maximum(shown.sum(axis=1, keepdims=True), 1)
    figure, axes = plot(min(4.2, 2.1 + 0.12 * classes))
    largest = float(shares.max())
    image = axes.imshow(shares.T, cmap=_INK, vmin=0, vmax=largest, aspect="auto", interpolation="none")
    axes.grid(visible=False)
    axes.set_xlabel("client")
    if classes <= 10 and len(holding.classes) == classes:
        axes.set_yticks(range(classes), [plain(label)[:12] for label in holding.classes])
    else:
        axes.set_ylabel("class")
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    bar = figure.colorbar(image, ax=axes, shrink=0.9, aspect=14, pad=0.02)
    bar.set_label("share (%)")
    bar.outline.set_linewidth(0)  # pyright: ignore[reportCallIssue]
    part = f"{SHOWN} evenly spaced of {clients:,} clients" if clients > SHOWN else plural(clients, "client")
    caption = (
        f"{holding.name}: share of each class in every client's training examples ({part}, "
        f"n = {plural(int(counts.sum()), 'example')}). Heterogeneity {number(holding.heterogeneity, 2)} "
        "(total variation distance to the pooled labels; 0 = all alike, towards 1 = no overlap)."
    )
    return Drawing(name, figure, caption, f"Labels by client in {holding.name}.")


def sizes(holding: Holding, name: str) -> Drawing:
    """Examples per client, largest client first."""
    ordered = np.sort(holding.counts.sum(axis=1))[::-1]
    clients = len(ordered)
    shown = ordered if clients <= 200 else np.quantile(ordered, np.linspace(1, 0, 200))
    figure, axes = plot(2.7)
    axes.stairs(shown, np.linspace(0, clients, len(shown) + 1), fill=True, color="#0072b2", alpha=0.75)
    axes.set_xlim(0, clients)
    axes.set_ylim(0, None)
    axes.set_xlabel("clients, largest first")
    axes.set_ylabel("examples")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    caption = (
        f"{holding.name}: training examples per client (n = {plural(clients, 'client')}): smallest {ordered[-1]:,}, "
        f"median {np.median(ordered):,.0f}, largest {ordered[0]:,}."
    )
    return Drawing(name, figure, caption, f"Sizes of the clients of {holding.name}.")


def sizes_table(record: Record) -> Table:
    """Sizes and heterogeneity of every federation."""
    columns = (
        Column("federation", "federation"),
        Column("clients", "clients", count),
        Column("classes", "classes", count),
        Column("examples", "examples", count),
        Column("smallest", "smallest client", count),
        Column("median", "median", count),
        Column("largest", "largest", count),
        Column("heterogeneity", "heterogeneity", three),
    )
    caption = (
        "Training examples. Heterogeneity = total variation distance between a client's labels and the pooled labels, "
        "mean over clients weighted by their examples: 0 = all alike, towards 1 = no overlap."
    )
    rows = []
    for holding in record.holdings:
        held = holding.counts.sum(axis=1)
        row = (holding.name, *holding.counts.shape, held.sum(), held.min(), np.median(held), held.max())
        rows.append((row[0], *(int(value) for value in row[1:]), float(f"{holding.heterogeneity:.10g}")))
    return Table("partitions", caption, columns, tuple(rows))
