"""Our numbers beside the published ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fedstart.report.page import Block, Section
from fedstart.report.record import Record
from fedstart.report.tables import Column, Table, only, table
from fedstart.report.words import count, setting_name, two

PAPER = "arXiv:2402.02225v4"
_LOWEST = {"worst10": "low10", "worst20": "low20", "worst30": "low30"}


def section(record: Record) -> Section | None:
    """The section of the page; None for a study that names no published rows."""
    whole = beside(record)
    blocks: list[Block] = []
    for setting in record.pairings:
        part = only(whole, algorithm=setting[0], partition=setting[1])
        if part.rows:
            names = [row["table"] for row in record.published if (row["algorithm"], row["partition"]) == setting]
            if len(set(names)) == 1:
                part = only(part, table=names[0])
            part = replace(part, caption=f"{caption(record, names)} {part.note}".rstrip())
            blocks.append(Block(setting_name(setting), (), (part,)))
    return Section("paper", "Beside the paper", (digits(record),), tuple(blocks)) if blocks else None


def beside(record: Record) -> Table:
    """Every published row beside our result from the start that stands for it."""
    columns = [
        Column("start", "start"),
        Column("algorithm", "algorithm"),
        Column("partition", "partition"),
        Column("n", "n", count),
        Column("mean", "accuracy", two),
        Column("low", "95 % from", two),
        Column("high", "to", two),
        Column("published_accuracy", "published accuracy", two),
        Column("variance_squared_mean_deviation", "(mean std)²", two),
        Column("published_variance", "published variance", two),
        Column("variance", "mean of variances", two),
    ]
    for ours, theirs in _LOWEST.items():
        columns += [Column(ours, f"worst {ours[-2:]} %", two)]
        columns += [Column(f"published_{theirs}", f"published Low{theirs[-2:]}", two)]
    columns += [Column("method", "published as"), Column("gamma", "γ there"), Column("table", "table")]
    ours = {(row["start"], row["algorithm"], row["partition"]): row for row in record.rows}
    rows: list[dict[str, Any]] = []
    for found in record.published:
        place = {key: found[key] for key in ("start", "algorithm", "partition")}
        names = {key: found.get(key) for key in ("table", "method", "gamma")}
        printed = {f"published_{key}": found.get(key) for key in ("accuracy", "variance", *_LOWEST.values())}
        rows.append({**ours.get(tuple(place.values()), {}), **place, **names, **printed})
    text = caption(record, [row["table"] for row in record.published])
    return table(record, "paper", text, columns, rows, ("gamma",))


def caption(record: Record, names: Sequence[object]) -> str:
    """What stands beside what, for rows of the paper's tables of those names."""
    different = list(dict.fromkeys(map(str, names)))
    source = f"Table{'' if len(different) == 1 else 's'} {', '.join(different)} of {PAPER}"
    return (
        f"Published: {source}, as printed, means only; all else: this study. Accuracy in percent with the 95 % "
        "t-interval over our n runs. The published variance stands beside (mean std)², the squared mean standard "
        "deviation of the client accuracies, as that is what the paper's tables most likely hold [inferred: nearly all "
        "of its variances are squares of numbers with two decimals]; the mean of our variances is shown too (%²). "
        "Worst k % = our mean over the ceil(k n / 100) worst clients, beside the paper's Lowest k %. "
        f"{digits(record)}"
    )


def digits(record: Record) -> str:
    """At what scale we ran, and what agreement can be expected."""
    scale = record.summary.get("scale")
    said = f"Scale of our run: {scale}." if scale else "The scale of our run is not recorded."
    return f'{said} Our numbers at a scale other than "paper" are not expected to agree in digits.'
