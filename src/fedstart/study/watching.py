"""Probes of a task's weights on the way: after which rounds, against the weights of the last, and what they gave."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fedstart import checkpoints, scores
from fedstart.engines.local import LocalEngine
from fedstart.files import read_json, write_json
from fedstart.probes import Subject
from fedstart.runs import RunDirectory
from fedstart.study.cells import Cell, Run
from fedstart.types import Weights

PROBES = "probes.json"


def rounds(run: Run) -> tuple[int, ...]:
    """The rounds after which a run's weights are looked at, ascending; 0 is before the first."""
    return tuple(sorted({round(share * run.plan.rounds) for share in run.watched_at} - {run.plan.rounds}))


def look(directory: RunDirectory, run: Run, begin: Weights, end: Weights, engine: LocalEngine) -> None:
    """Writes probes.json of a finished run: each probe of the weights after each of `rounds`, on its federation.

    Probes find the weights of the last round as `end` and those before the first as `start`. Kept weights are removed.
    """
    if not (directory.path / PROBES).exists():
        found: list[dict[str, Any]] = []
        for number in rounds(run):
            weights = checkpoints.read(directory.kept(number)).state.weights if number else begin
            subject = Subject(run.model, run.federation, weights, run.plan, engine, {"start": begin, "end": end})
            for name, probe in run.probes.items():
                measured = probe.measure(subject)
                about = {"round": number, "probe": name}
                found.append({**about, "values": dict(measured.values), "rows": list(measured.rows)})
        write_json(directory.path / PROBES, {"format": 1, "rounds": run.plan.rounds, "found": found})
    for number in rounds(run):
        directory.kept(number).unlink(missing_ok=True)


def watched(cells: Iterable[Cell], folder: Path) -> list[dict[str, Any]]:
    """Every number that the probes of finished cells gave, with its mean and 95 % t-interval over (task, seed).

    One row for each start, algorithm, partition, share of the rounds, probe, value and layer ("" for the network);
    empty where the study watches nothing.
    """
    grouped: dict[tuple[Any, ...], list[float]] = {}
    for cell in cells:
        file = folder / cell.key / PROBES
        for look in read_json(file)["found"] if file.exists() else ():
            place = (cell.start, cell.algorithm, cell.partition, look["round"], cell.rounds, look["probe"])
            for layer, name, value in _numbers(look):
                grouped.setdefault((*place, name, layer), []).append(value)
    columns = ("start", "algorithm", "partition", "round", "rounds", "probe", "value", "layer")
    return [dict(zip(columns, place, strict=True)) | _interval(values) for place, values in grouped.items()]


def _numbers(look: dict[str, Any]) -> Iterable[tuple[str, str, float]]:
    yield from (("", name, value) for name, value in look["values"].items() if value is not None)
    for row in look["rows"]:
        if "layer" in row:
            numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
            yield from ((row["layer"], name, float(value)) for name, value in numbers.items())


def _interval(values: Sequence[float]) -> dict[str, Any]:
    mean, low, high = scores.interval(values)
    return {
        "n": len(values),
        "mean": scores.significant(mean),
        "low": scores.significant(low),
        "high": scores.significant(high),
    }
