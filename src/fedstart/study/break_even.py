"""When pre-training has paid: rounds that a start saves downstream, against what making it took."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedstart.runs import RunDirectory, total_cost
from fedstart.scores import significant
from fedstart.study.cells import Cell
from fedstart.types import Cost

Runs = Mapping[tuple[int, int], Cell]
"""Downstream cells of one start in one setting, by (task, seed)."""


def break_even(cells: Sequence[Cell], folder: Path, against: str | None) -> dict[str, Any]:
    """The `break_even` of summary.json, by start, from the finished cells of a study; `against` is the random start.

    Each start is compared in the first setting (algorithm, partition) in which it shares (task, seed) pairs with
    `against`. The target is the mean accuracy of `against` after its last round, the mean running over these pairs.
    Pre-training is a mean over seeds; all is counted in downstream rounds of the same start and setting, in bytes (up
    and down) and in backward examples. Without `against`, or rounds, there is nothing to compare.
    """
    if against is None:
        return {}
    grouped: dict[str, dict[tuple[str, str], dict[tuple[int, int], Cell]]] = {}
    pretraining: dict[str, list[Cost]] = {}
    for cell in cells:
        if cell.kind == "pretrain":
            pretraining.setdefault(cell.start, []).append(total_cost(RunDirectory(folder / cell.key)))
        elif cell.rounds:
            setting = grouped.setdefault(cell.start, {}).setdefault((cell.algorithm, cell.partition), {})
            setting[cell.task, cell.seed] = cell
    found: dict[str, Any] = {}
    for start in pretraining if against in grouped else ():
        for setting, theirs in grouped[against].items():
            ours = grouped.get(start, {}).get(setting, {})
            if start != against and ours.keys() & theirs.keys():
                place = {"against": against, "algorithm": setting[0], "partition": setting[1]}
                found[start] = {**place, **_compared(ours, theirs, pretraining[start], folder)}
                break
    return found


def _compared(ours: Runs, theirs: Runs, pretraining: Sequence[Cost], folder: Path) -> dict[str, Any]:
    pairs = sorted(ours.keys() & theirs.keys())
    curve, other = (_curve([runs[pair] for pair in pairs], folder) for runs in (ours, theirs))
    target = float(other[-1])
    reached = np.flatnonzero(curve >= target)
    rounds = int(reached[0]) + 1 if len(reached) else None
    saved = len(other) - rounds if rounds is not None else None
    spent = [total_cost(RunDirectory(folder / ours[pair].key)) for pair in pairs]
    in_bytes, in_examples = (
        _in_rounds(pretraining, spent, len(curve), names) for names in (("bytes_up", "bytes_down"), ("backward",))
    )
    return {
        "target": significant(target),
        "rounds": rounds,
        "saved_rounds": saved,
        "pretraining_rounds_bytes": significant(in_bytes),
        "pretraining_rounds_examples": significant(in_examples),
        "tasks_bytes": _tasks(in_bytes, saved),
        "tasks_examples": _tasks(in_examples, saved),
    }


def _curve(cells: Iterable[Cell], folder: Path) -> np.ndarray:
    """Mean accuracy of the runs after each round in %, shape (rounds,)."""
    lines = [[line["accuracy"] for line in RunDirectory(folder / cell.key).rounds()] for cell in cells]
    return np.array(lines, dtype=np.float64).mean(axis=0)


def _in_rounds(
    pretraining: Sequence[Cost], downstream: Sequence[Cost], rounds: int, names: Sequence[str]
) -> float | None:
    """The mean cost of pre-training over the mean cost of one downstream round; None if that costs nothing."""
    before, after = (
        sum(getattr(cost, name) for cost in costs for name in names) / len(costs) for costs in (pretraining, downstream)
    )
    return before * rounds / after if after else None


def _tasks(pretraining_rounds: float | None, saved: int | None) -> int | None:
    # Rounding first keeps an exact quotient from being lifted by its last bit.
    return math.ceil(round(pretraining_rounds / saved, 9)) if pretraining_rounds is not None and saved else None
