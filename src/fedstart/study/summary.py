"""What a study writes about itself: partitions.json, summary.json and timing.json."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fedstart import scores
from fedstart.data.federation import Federation
from fedstart.data.partitions import heterogeneity
from fedstart.files import read_json
from fedstart.runs import RunDirectory, total_cost
from fedstart.study import claims, published
from fedstart.study.break_even import break_even
from fedstart.study.cells import Cell, Material
from fedstart.study.scored import evaluated
from fedstart.study.targets import targets
from fedstart.study.watching import watched
from fedstart.types import Cost

FORMAT = 1
SHOWN_TASKS = 3


def summary(
    material: Material,
    cells: Sequence[Cell],
    folder: Path,
    failures: Mapping[str, str],
    selection: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of summary.json: it depends on the finished cells alone, not on when or how they were run.

    `selection` says what was chosen, as `choosing.record`; empty where nothing was to choose.
    """
    study = material.study
    done = [cell for cell in cells if RunDirectory(folder / cell.key).status == "done"]
    downstream = [cell for cell in done if cell.kind == "downstream"]
    found = [_scored(cell, folder) for cell in downstream]
    rows, contrasts = scores.summarise(found)
    paper = published.find(study.published, [(row["start"], row["algorithm"], row["partition"]) for row in rows])
    random = next((entry.name for entry in study.starts if entry.method == "random"), None)
    return {
        "format": FORMAT,
        "study": study.name,
        "scale": study.scale,
        "rows": rows,
        "contrasts": contrasts,
        "cost": {start: _costs(start, done, folder) for start in material.parts.starts},
        "break_even": break_even(done, folder, random),
        "selection": dict(selection),
        "published": paper,
        "watched": watched(downstream, folder),
        "targets": targets(downstream, folder),
        "claims": claims.verdicts(study.claims, found, paper),
        "cells": len(done),
        "failures": [{"cell": key, "error": error} for key, error in failures.items()],
        "fingerprints": _fingerprints(material),
    }


def partitions(material: Material) -> dict[str, Any]:
    """The content of partitions.json: who holds what, for the first seed and the first tasks of each partition."""
    seed = material.study.seeds[0]
    pretraining = [
        _holding(material.pretraining(seed, shared.case, shared.start), shared.label, seed)
        for shared in material.federations.shared()
    ]
    downstream = [
        {**_holding(federation, label, seed), "task": task}
        for label in material.federations.settings
        for task, federation in enumerate(material.tasks(label, seed)[:SHOWN_TASKS])
    ]
    return {"format": FORMAT, "pretraining": pretraining, "downstream": downstream}


def timing(cells: Sequence[Cell], folder: Path, jobs: int, elapsed: float) -> dict[str, Any]:
    """The content of timing.json: seconds of every cell's rounds, of all together, and of the last call."""
    seconds = {cell.key: sum(read_json(file)["seconds"]) for cell in cells if (file := _timing(cell, folder)).exists()}
    return {
        "cells": {key: round(value, 3) for key, value in seconds.items()},
        "total": round(sum(seconds.values()), 3),
        "last_call": {"seconds": round(elapsed, 3), "jobs": jobs},
        "machine": {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }


def _scored(cell: Cell, folder: Path) -> scores.Cell:
    found = evaluated(folder / cell.key)
    return scores.Cell(cell.start, cell.algorithm, cell.partition, cell.task, cell.seed, *found)


def _costs(start: str, done: Iterable[Cell], folder: Path) -> dict[str, dict[str, int]]:
    """Mean cost of making the start (over seeds) and of a downstream run from it (over all of them)."""
    kinds: dict[str, list[Cost]] = {"pretrain": [], "downstream": []}
    for cell in done:
        if cell.start == start:
            kinds[cell.kind].append(total_cost(RunDirectory(folder / cell.key)))
    names = {"pretrain": "pretraining", "downstream": "downstream"}
    return {names[kind]: _mean(costs) for kind, costs in kinds.items()}


def _mean(costs: Sequence[Cost]) -> dict[str, int]:
    total = asdict(sum(costs, Cost()))
    return {name: round(value / max(len(costs), 1)) for name, value in total.items()}


def _holding(federation: Federation, partition: str, seed: int) -> dict[str, Any]:
    return {
        "name": f"{federation.name}, {partition}",
        "partition": partition,
        "seed": seed,
        "clients": federation.clients,
        "class_names": [federation.examples.class_names[label] for label in federation.classes],
        "sizes": {part: positions.sizes.tolist() for part, positions in federation.parts.items()},
        "label_counts": federation.label_counts().tolist(),
        "heterogeneity": scores.significant(heterogeneity(federation)),
        "fingerprint": federation.fingerprint,
    }


def _fingerprints(material: Material) -> dict[str, Any]:
    seeds = material.study.seeds
    return {
        "examples": material.examples.fingerprint,
        "pretraining": {
            shared.key(seed): material.pretraining(seed, shared.case, shared.start).fingerprint
            for seed in seeds
            for shared in material.federations.shared()
        },
        "downstream": {
            label: {str(seed): [task.fingerprint for task in material.tasks(label, seed)] for seed in seeds}
            for label in material.federations.settings
        },
    }


def _timing(cell: Cell, folder: Path) -> Path:
    return folder / cell.key / "timing.json"
