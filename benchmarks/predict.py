"""Which quick look at a start tells how it will do? Probes of every start of a finished study against its outcomes.

    python benchmarks/predict.py STUDY_DIRECTORY [--algorithm NAME] [--out FILE]

For each seed the starts are ranked by a number of a probe, measured before any round on the federation of the first
task, and by the accuracy that they end with there (mean over clients, first partition). Printed: Spearman's rank
correlation of the two, for each seed and its mean. With six starts chance alone gives 0.83 or more in 3 of 100
seeds, so look at all of them. Probes have their default settings and the plan of the algorithm.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.progress import track
from scipy.stats import rankdata

import fedstart as fs
from fedstart import study as studies
from fedstart.files import write_json
from fedstart.probes import Subject
from fedstart.probes.agreement import Agreement
from fedstart.probes.dead_filters import DeadFilters
from fedstart.probes.diversity import Diversity
from fedstart.probes.drift import Drift
from fedstart.probes.heads import Heads
from fedstart.probes.hessian import Hessian
from fedstart.study.cells import Cell, Material, plan_cells
from fedstart.study.running import executions

LOOKS = (
    (Heads(), "ridge_accuracy"),
    (Heads(), "class_means_accuracy"),
    (Agreement(), "mean"),
    (Diversity(), "diversity"),
    (Drift(), "distance_to_weights"),
    (Hessian(), "top_eigenvalue"),
    (DeadFilters(), "dead"),
)


def outcome(folder: Path) -> float:
    """Mean accuracy of the clients of a finished cell, in per cent."""
    clients = pq.read_table(folder / "clients.parquet", columns=["correct", "total"])
    return float(100 * np.mean(clients["correct"].to_numpy() / clients["total"].to_numpy()))


def looked_at(material: Material, cell: Cell, folder: Path, engine: fs.LocalEngine) -> dict[str, float]:
    """Every number of the start of a cell, on the cell's federation."""
    run = material.downstream_run(cell.start, cell.algorithm, cell.partition, cell.task, cell.seed, cell.begin)
    start = fs.Start.load(folder / cell.origin / "start")
    weights = material.transfer(cell.start, start.weights, run.model.classes, cell.task, cell.seed)
    subject = Subject(run.model, run.federation, weights, run.plan, engine)
    measured = {probe: probe.measure(subject).values for probe in dict.fromkeys(probe for probe, _ in LOOKS)}
    return {name(probe, key): measured[probe][key] for probe, key in LOOKS}


def name(probe: object, key: str) -> str:
    """A number as `fedstart diagnose` names it."""
    return f"{type(probe).__name__}.{key}"


def agreement(rows: list[dict[str, Any]], key: str) -> float:
    """Spearman's rank correlation of a number and the outcome."""
    pairs = np.array([[row[key], row["accuracy"]] for row in rows])
    ranks = np.apply_along_axis(rankdata, 0, pairs)
    return float(np.corrcoef(ranks.T)[0, 1])


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path, help="of a finished study")
    parser.add_argument("--algorithm", help="one of the study's; by default the first")
    parser.add_argument("--out", type=Path, help="JSON file of all numbers")
    options = parser.parse_args()
    folder = options.directory / "cells"
    material = Material(studies.load(str(options.directory / "study.toml")), executions(options.directory))
    algorithm = options.algorithm or next(iter(material.parts.algorithms))
    place = (algorithm, next(iter(material.federations.settings)), 0)
    cells = [cell for cell in plan_cells(material) if (cell.algorithm, cell.partition, cell.task) == place]
    if not cells:
        raise SystemExit(
            f"{options.directory}: no algorithm {algorithm!r} (allowed: {', '.join(material.parts.algorithms)})"
        )
    rows = []
    with fs.LocalEngine(1) as engine:
        for cell in track(cells, "Looking"):
            numbers = looked_at(material, cell, folder, engine)
            rows.append({"start": cell.start, "seed": cell.seed, "accuracy": outcome(folder / cell.key), **numbers})
    if options.out:
        write_json(options.out, {"study": material.study.name, "algorithm": algorithm, "starts": rows})
    seeds = sorted({row["seed"] for row in rows})
    print(f"| number | {' | '.join(f'seed {seed}' for seed in seeds)} | mean |\n|---|{'---|' * (len(seeds) + 1)}")
    for probe, key in LOOKS:
        of = [[row for row in rows if row["seed"] == seed] for seed in seeds]
        found = [agreement(own, name(probe, key)) for own in of]
        print(f"| {name(probe, key)} | {' | '.join(f'{rho:+.2f}' for rho in found)} | {np.mean(found):+.2f} |")
    for start in dict.fromkeys(row["start"] for row in rows):
        own = [row for row in rows if row["start"] == start]
        means = {key: np.mean([row[key] for row in own]) for key in rows[0] if key not in ("start", "seed")}
        print(f"{start}: {', '.join(f'{key} {value:.4g}' for key, value in means.items())}")


if __name__ == "__main__":
    main()
