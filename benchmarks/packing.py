"""How well the cells of a study are packed onto cores: one uneven study on built-in data, run in several ways.

    python benchmarks/packing.py [--jobs 2] [--repeats 3] [KEY=VALUE ...]

The study is the preset `digits` with one long start. Prints for each way the wall time (median), its spread, and two
shares of `jobs x wall`: the seconds that cells spent in their rounds (what is missing was idle or spent between
cells), and the wall time of one job on one thread (what is missing is that, and what cells cost each other). Ways:
one job on one thread; with a barrier, where all pre-training cells end before the first downstream cell begins and
every cell has one thread; and as `study.run` does it. Repeats take turns, so a busy machine hits all of them. The
workers are started beforehand. Every way must leave the same bytes in summary.json, which is checked.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import joblib

from fedstart import study
from fedstart.study import Study
from fedstart.study.cells import Material, plan_cells
from fedstart.study.workers import run_cells

UNEVEN = ("seeds=[0]", "downstream.tasks=5", "starts.coprefl.plan.rounds=90", "starts.centralized.plan.rounds=10")


class Silent:
    """A progress that shows nothing."""

    def total(self, n: int) -> None:
        pass

    def advance(self, text: str) -> None:
        pass


def with_a_barrier(loaded: Study, out: Path, jobs: int) -> None:
    """The cells of each kind side by side, one kind after the other; then the study finds them all done."""
    material = Material(loaded)
    (out / "cells").mkdir(parents=True)
    cells = plan_cells(material)
    for kind in ("pretrain", "downstream"):
        some = [cell for cell in cells if cell.kind == kind]
        list(run_cells(material, some, out / "cells", jobs=jobs, threads=1, progress=Silent()))
    study.run(loaded, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("settings", nargs="*", default=[])
    arguments = parser.parse_args()
    jobs, loaded = arguments.jobs, study.load("digits", None, [*UNEVEN, *arguments.settings])
    ways: dict[str, tuple[int, Callable[[Path], object]]] = {
        "one job, one thread": (1, lambda out: study.run(loaded, out, threads=1)),
        f"{jobs} jobs, barrier": (jobs, lambda out: with_a_barrier(loaded, out, jobs)),
        f"{jobs} jobs": (jobs, lambda out: study.run(loaded, out, jobs=jobs)),
    }
    walls: dict[str, list[float]] = {way: [] for way in ways}
    busy: dict[str, list[float]] = {way: [] for way in ways}
    summaries: set[bytes] = set()
    with tempfile.TemporaryDirectory() as scratch:
        tiny = study.load(
            "digits", None, ["seeds=[0]", "pretraining.plan.rounds=1", "starts.centralized.plan.rounds=1"]
        )
        study.run(tiny, Path(scratch) / "warm", jobs=jobs)
        for repeat in range(arguments.repeats):
            for number, (way, (_, run)) in enumerate(ways.items()):
                out, began = Path(scratch) / f"{number}-{repeat}", time.perf_counter()
                run(out)
                walls[way].append(time.perf_counter() - began)
                busy[way].append(json.loads((out / "timing.json").read_bytes())["total"])
                summaries.add((out / "summary.json").read_bytes())
    assert len(summaries) == 1, "the ways do not agree"
    alone = statistics.median(walls["one job, one thread"])
    print(f"{len(plan_cells(Material(loaded)))} cells, {joblib.cpu_count()} cores, {arguments.repeats} repeats")
    for way, (count, _) in ways.items():
        wall, cells = statistics.median(walls[way]), statistics.median(busy[way])
        print(
            f"{way:20} {wall:6.2f} s ({min(walls[way]):.2f} to {max(walls[way]):.2f})  "
            f"in cells {cells / (count * wall):4.0%}  of one job {alone / (count * wall):4.0%}"
        )


if __name__ == "__main__":
    main()
