"""What the study of the candidates says: which of them each start takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedstart.scores import interval, significant
from fedstart.study.schema import Entry, Study
from fedstart.study.scored import read
from fedstart.study.selection import candidates
from fedstart.study.tables import Selection, Settings

Means = Mapping[tuple[int, int, str, str], float]
"""Mean accuracy of a candidate's runs in %, by (task, seed, algorithm, partition)."""


def record(study: Study, folder: Path) -> dict[str, Any]:
    """What was chosen for each start, as summary.json has it, from the finished study of the candidates in `folder`.

    A candidate's score is the mean accuracy over clients in %, averaged over all algorithms and partitions, and then
    over the (task, seed) pairs; the highest is chosen, of equal ones the first. One that lacks a run, because it
    diverged, cannot be. Raises ValueError when a start has no candidate with all its runs.
    """
    means: dict[str, dict[tuple[int, int, str, str], float]] = {}
    for cell in read(folder / "cells"):
        place = (cell.task, cell.seed, cell.algorithm, cell.partition)
        means.setdefault(cell.start, {})[place] = cell.scores.mean
    needed = {place for places in means.values() for place in places}
    rule = (study.selection or Selection()).rule
    found: dict[str, Any] = {}
    for entry in study.starts:
        if entry.choose:
            rows, whole = _judged(entry, means, needed)
            if not whole:
                raise ValueError(f"[[starts]] {entry.name} choose: no candidate finished all its runs; see {folder}")
            best = max(whole, key=lambda row: row["mean"])
            found[entry.name] = {"rule": rule, "score": "mean", "chosen": best["changes"], "candidates": rows}
    return found


def chosen(found: Mapping[str, Any]) -> dict[str, Settings]:
    """What each start takes (path = value), from `record`."""
    return {start: choice["chosen"] for start, choice in found.items()}


def _judged(
    entry: Entry, means: Mapping[str, Means], needed: set[tuple[int, int, str, str]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row for each candidate, and those of them that have all runs."""
    rows: list[dict[str, Any]] = []
    whole: list[dict[str, Any]] = []
    for candidate in candidates(entry):
        own = means.get(candidate.entry.name, {})
        values = _by_pair(own)
        mean, low, high = interval(values) if values else (None, None, None)
        numbers = {"mean": significant(mean), "low": significant(low), "high": significant(high)}
        rows.append({"changes": candidate.changes, **numbers, "n": len(values)})
        if values and own.keys() == needed:
            whole.append(rows[-1])
    return rows, whole


def _by_pair(means: Means) -> list[float]:
    """The mean over algorithms and partitions of each (task, seed), in order."""
    pairs: dict[tuple[int, int], list[float]] = {}
    for place in sorted(means):
        pairs.setdefault(place[:2], []).append(means[place])
    return [sum(values) / len(values) for values in pairs.values()]
