"""What every algorithm takes to reach one accuracy from the same start: rounds, bytes and local examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from fedstart.report.costs import megabytes, three_digits
from fedstart.report.page import Block, Section
from fedstart.report.record import Record
from fedstart.report.tables import Column, Table, table
from fedstart.report.words import count, number

KINDS = ("rounds", "bytes", "examples")
DEFINITION = (
    "The target of a start, partition, task and seed is the highest accuracy that every algorithm reaches after some "
    "round: the lowest of the algorithms' best."
)


def section(record: Record) -> Section | None:
    """The section of the page, a table for each partition; None for a study without targets."""
    whole = targets(record)
    if not whole.rows:
        return None
    partitions = list(dict.fromkeys(row["partition"] for row in record.summary["targets"]))
    blocks: list[Block] = []
    for partition in partitions:
        part = _shown(record, partition)
        caption = whole.caption if partition == partitions[-1] else ""
        blocks.append(Block(partition if len(partitions) > 1 else "", (), (replace(part, caption=caption),)))
    return Section("targets", "What equal accuracy takes", (DEFINITION,), tuple(blocks))


def targets(record: Record) -> Table:
    """One row for each start, partition and algorithm, with every ratio and its interval; empty without targets."""
    columns = [
        Column("start", "start"),
        Column("algorithm", "algorithm"),
        Column("partition", "partition"),
        Column("n", "n", count),
        Column("target", "target (%)", number),
        *_spent(),
        Column("reference", "ratios to"),
    ]
    for kind, title in zip(KINDS, ("rounds", "bytes", "examples"), strict=True):
        columns += [
            Column(f"{kind}_ratio", f"ratio of {title}", three_digits),
            Column(f"{kind}_ratio_low", "95 % from", three_digits),
            Column(f"{kind}_ratio_high", "to", three_digits),
        ]
    rows: list[dict[str, Any]] = []
    for row in record.summary.get("targets") or ():
        ratios: dict[str, Any] = {}
        for kind in KINDS:
            found = row[f"{kind}_ratio"]
            ends = {f"{kind}_ratio_{end}": found[end] for end in ("low", "high")}
            ratios |= {f"{kind}_ratio": found["ratio"], **ends}
        rows.append({**row, **ratios, "reference": _reference(record, row)})
    return table(record, "targets", _caption(rows), columns, rows)


def _shown(record: Record, partition: str) -> Table:
    """The table of a partition as the page has it: a ratio and its interval in one field."""
    columns = (
        Column("start", "start"),
        Column("algorithm", "algorithm"),
        Column("n", "n", count),
        Column("target", "target (%)", number),
        *_spent(),
        Column("rounds_ratio", "ratio of rounds (95\u00a0%)", _ratio),
        Column("bytes_ratio", "ratio of bytes (95\u00a0%)", _ratio),
    )
    rows: list[dict[str, Any]] = []
    for row in record.summary["targets"]:
        if row["partition"] == partition:
            ratios = {key: tuple(row[key][end] for end in ("ratio", "low", "high")) for key in _RATIOS}
            rows.append({**row, **ratios})
    return table(record, "targets", "", columns, rows)


_RATIOS = ("rounds_ratio", "bytes_ratio")


def _spent() -> tuple[Column, ...]:
    return (
        Column("rounds", "rounds", three_digits),
        Column("bytes", "MB up and down", megabytes),
        Column("examples", "local examples", count),
    )


def _caption(rows: Iterable[Mapping[str, Any]]) -> str:
    against = list(dict.fromkeys(str(row["reference"]) for row in rows))
    first = against[0] if len(against) == 1 else "the first algorithm of the start and partition"
    return (
        "Target = its mean over the n (task, seed) pairs. Rounds, MB (million bytes of tensors on the wire, up and "
        "down) and local examples (passed backward) until an algorithm first has the target: geometric means over "
        f"the pairs. Ratios are to {first}, paired, with the 95 % t-interval of their logarithms."
    )


def _reference(record: Record, row: Mapping[str, Any]) -> str:
    place = row["start"], row["partition"]
    return next(
        str(other["algorithm"]) for other in record.summary["targets"] if (other["start"], other["partition"]) == place
    )


def _ratio(values: tuple[float | None, float | None, float | None]) -> str:
    ratio, low, high = values
    if ratio is None:
        return "–"
    if low is None or high is None or low == high:
        return three_digits(ratio)
    return f"{three_digits(ratio)} ({three_digits(low)} to {three_digits(high)})"
