"""What algorithms take to reach one accuracy from the same start: rounds, local steps and bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedstart import scores
from fedstart.runs import RunDirectory
from fedstart.study.cells import Cell

COSTS = {"rounds": (), "bytes": ("bytes_up", "bytes_down"), "examples": ("backward",)}
"""What is counted until the target is reached: sums of these columns of a round's cost; of none, rounds."""


def targets(cells: Sequence[Cell], folder: Path) -> list[dict[str, Any]]:
    """The `targets` of summary.json: one row for each start, partition and algorithm, where there are several.

    The target of a start, partition, task and seed is the highest accuracy that every algorithm reaches after some
    round: the lowest of their best. Each has `target` (its mean), and for rounds, bytes (up and down) and backward
    examples until then the geometric mean over (task, seed); `ratio` divides it by that of the first algorithm, with
    its 95 % t-interval of the logarithms.
    """
    grouped: dict[tuple[str, str], dict[str, dict[tuple[int, int], list[dict[str, Any]]]]] = {}
    for cell in cells:
        if cell.rounds:
            by_algorithm = grouped.setdefault((cell.start, cell.partition), {})
            lines = RunDirectory(folder / cell.key).rounds()
            by_algorithm.setdefault(cell.algorithm, {})[cell.task, cell.seed] = lines
    rows: list[dict[str, Any]] = []
    for (start, partition), by_algorithm in grouped.items():
        shared = sorted(set.intersection(*(set(runs) for runs in by_algorithm.values())))
        if len(by_algorithm) < 2 or not shared:
            continue
        about = {"start": start, "partition": partition, "n": len(shared)}
        rows += [about | row for row in _rows({name: [runs[p] for p in shared] for name, runs in by_algorithm.items()})]
    return rows


def _rows(runs: Mapping[str, Sequence[list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    best = [[max(line["accuracy"] for line in lines) for lines in algorithm] for algorithm in runs.values()]
    target = np.min(best, axis=0)
    spent = {
        name: {kind: [_until(lines, goal, kind) for lines, goal in zip(group, target, strict=True)] for kind in COSTS}
        for name, group in runs.items()
    }
    first = next(iter(spent.values()))
    return [
        {"algorithm": name, "target": scores.significant(float(target.mean()))}
        | {kind: scores.significant(_geometric(values)) for kind, values in costs.items()}
        | {f"{kind}_ratio": _ratio(values, first[kind]) for kind, values in costs.items()}
        for name, costs in spent.items()
    ]


def _until(lines: Sequence[Mapping[str, Any]], goal: float, kind: str) -> float:
    """What the rounds up to the first with this accuracy cost."""
    total = 0.0
    for line in lines:
        total += sum(line["cost"][name] for name in COSTS[kind]) if COSTS[kind] else 1
        if line["accuracy"] >= goal:
            break
    return total


def _geometric(values: Sequence[float]) -> float:
    return float(np.exp(np.log(values).mean()))


def _ratio(values: Sequence[float], first: Sequence[float]) -> dict[str, float | None]:
    contrast = scores.paired(np.log(values), np.log(first))
    found = {"ratio": contrast.difference, "low": contrast.low, "high": contrast.high}
    return {name: None if value is None else scores.significant(math.exp(value)) for name, value in found.items()}
