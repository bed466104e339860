"""What starts cost: traffic, passes and seconds before and after, and when pre-training has paid for itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedstart.report.page import Block, Section
from fedstart.report.record import Record, Run
from fedstart.report.tables import Column, Gap, Table, only, table
from fedstart.report.words import count, number, setting_name, size

_STAGES = {"pretraining": ("pre-training", "pretrain"), "downstream": ("downstream run", "downstream")}
_COUNTS = ("examples", "backward", "exchanges", "bytes_down", "bytes_up")


def section(record: Record) -> Section | None:
    """The section of the page; None where nothing was counted."""
    work, paid = costs(record), break_even(record)
    blocks = [Block("", (), (work,))] if work.rows else []
    if paid.rows:
        settings = {row[1:4] for row in paid.rows}  # against, algorithm, partition
        text = ""
        if len(settings) == 1:
            against, algorithm, partition = settings.pop()
            text = f"Against {record.called(against)}, {setting_name((algorithm, partition))}."
            paid = only(paid, against=against, algorithm=algorithm, partition=partition)
        blocks.append(Block("When pre-training has paid for itself", (), (paid,), text))
    return Section("costs", "Costs", (), tuple(blocks)) if blocks else None


def costs(record: Record) -> Table:
    """What every start took: one row for its pre-training, one for a downstream run from it."""
    columns = (
        Column("start", "start"),
        Column("stage", "stage"),
        Column("exchanges", "exchanges", count),
        Column("bytes_down", "MB to clients", megabytes),
        Column("bytes_up", "MB to server", megabytes),
        Column("examples", "forward passes", count),
        Column("backward", "backward passes", count),
        Column("seconds", "seconds", number),
    )
    rows = [
        {"start": start, "stage": _STAGES[stage][0], **cost, "seconds": _seconds(record, start, stage)}
        for start, stages in record.summary.get("cost", {}).items()
        for stage, cost in stages.items()
        if isinstance(cost, Mapping) and stage in _STAGES
    ]
    caption = (
        "Work and traffic: mean of a pre-training run over the seeds, and of a downstream run over all of them. "
        "An exchange = once out to the cohort and back; MB = million bytes of tensors on the wire; "
        "passes = examples that went through a model, forward and backward, clients and server together."
    )
    if any(row["seconds"] is not None for row in rows):
        caption += (
            " Seconds = measured for the rounds of the run, on the machine and beside the other runs of timing.json."
        )
    return table(record, "costs", caption, columns, rows, ("backward", "seconds"))


def break_even(record: Record) -> Table:
    """After how many downstream federations the pre-training of a start has saved as much as it took."""
    columns = (
        Column("start", "start"),
        Column("against", "against"),
        Column("algorithm", "algorithm"),
        Column("partition", "partition"),
        Column("target", "accuracy to reach", number),
        Column("rounds", "reached in round", count),
        Column("saved_rounds", "rounds saved", count),
        Column("pretraining_rounds_bytes", "cost in rounds, by bytes", three_digits),
        Column("pretraining_rounds_examples", "cost in rounds, by passes", three_digits),
        Column("tasks_bytes", "paid after, by bytes", count),
        Column("tasks_examples", "paid after, by passes", count),
    )
    rows: list[dict[str, Any]] = []
    for start, found in (record.summary.get("break_even") or {}).items():
        row = {"against": record.reference, **found, "start": start}
        never = Gap(f"never within {_rounds(record, found)}")
        if row["rounds"] is None:
            row["rounds"] = never
        if not row["saved_rounds"]:
            row |= {"tasks_bytes": never, "tasks_examples": never}
        rows.append(row)
    caption = (
        "Accuracy to reach = the final mean accuracy of the start without pre-training; reached in = the first round "
        "at which the mean accuracy over the runs of this start is as high; saved = the rounds of a downstream run "
        "minus that. Cost in rounds = pre-training in units of one downstream round, by bytes on the wire and by "
        "examples passed backward. Paid after = the number of downstream federations whose saved rounds together "
        "cost what pre-training did; never, where no round is saved."
    )
    return table(record, "break_even", caption, columns, rows)


def run_cost(record: Record, run: Run) -> Table:
    """What one run took."""
    columns = (
        Column("rounds", "rounds", count),
        Column("examples", "forward passes", count),
        Column("backward", "backward passes", count),
        Column("exchanges", "exchanges", count),
        Column("bytes_down", "sent to clients", size),
        Column("bytes_up", "sent to server", size),
    )
    known = {key for line in run.rounds for key in line.get("cost", {})}
    total = {key: sum(line.get("cost", {}).get(key, 0) for line in run.rounds) for key in _COUNTS}
    if "backward" not in known:
        total.pop("backward")
    caption = "Work and traffic of all rounds together."
    rows = [{"rounds": len(run.rounds), **total}] if run.rounds else []
    return table(record, "costs", caption, columns, rows, ("backward",))


def megabytes(value: float) -> str:
    """Bytes in millions: `6,400`, `3.2`, `0.041`."""
    return three_digits(value / 1e6)


def three_digits(value: float) -> str:
    """Three significant digits, or all digits before the point: `6,412`, `12.5`, `0.041`."""
    return count(value) if abs(value) >= 100 or value == 0 else f"{value:.3g}"


def _seconds(record: Record, start: str, stage: str) -> float | None:
    """Mean measured seconds of the runs of a stage; None where none was measured."""
    measured = record.timing.get("cells", {})
    kind = _STAGES[stage][1]
    found = [
        measured[run.key]
        for run in record.runs
        if run.start == start and run.place.get("kind") == kind and run.key in measured
    ]
    return float(f"{np.mean(found):.10g}") if found else None


def _rounds(record: Record, found: Mapping[str, Any]) -> str:
    setting = found["algorithm"], found["partition"]
    known = [int(run.rounds[-1]["round"]) for run in record.downstream if run.setting == setting and run.rounds]
    known += [
        other["rounds"] + other["saved_rounds"]
        for other in record.summary["break_even"].values()
        if (other["algorithm"], other["partition"]) == setting and other["rounds"] is not None
    ]
    return f"{max(known):,} rounds" if known else "the rounds that were run"
