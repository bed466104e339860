"""How the time and the memory of a round grow: with clients (10^2 to 10^6), cohort, examples, model size and rounds.

    python benchmarks/growth.py [--quick] [--out docs/figures]

Each point is a process of its own (`_growth_point.py`), so that none inherits another's memory; its first round is
not counted. Prints the tables of docs/performance.md, with fits, and draws `growth.svg` into `--out`. Linux only:
memory is what /proc/self/status says. Takes some four minutes on two cores, `--quick` little more than one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from _growth_figure import drawn
from _growth_point import MEGA, Measured, Point, Series
from fedstart import __version__

TINY = {"hidden": [64]}
POOL = 1_000_000
STACKED = 50


def lines(quick: bool) -> dict[str, list[Point]]:
    """Every line of points by name; `quick` leaves out the ends that take long."""
    counts = [10**power for power in range(2, 6 if quick else 7)]
    cohorts = [10, 100, 1_000] if quick else [10, 100, 1_000, 10_000]
    each = [10, 30, 100] if quick else [10, 30, 100, 300, 1_000]
    long = 20 if quick else 50
    clients = [Point(clients=count, settings=TINY, rounds=30, pool=POOL) for count in counts]
    cohort = [
        Point(clients=100_000, cohort=count, settings=TINY, rounds=3 if count > 1_000 else 10, pool=POOL)
        for count in cohorts
    ]
    return {
        "clients": clients,
        "clients, stacked": [replace(point, together=STACKED) for point in clients],
        "cohort": cohort,
        "cohort, stacked": [replace(point, together=STACKED) for point in cohort],
        "examples": [Point(examples=count, settings=TINY, rounds=5) for count in each],
        **models(quick),
        "fedavg": [Point(settings=TINY, rounds=long)],
        "scaffold": [Point(settings=TINY, rounds=long, method="scaffold")],
    }


def models(quick: bool) -> dict[str, list[Point]]:
    """The lines over model size, on one and two threads; more clients where several are stacked."""
    powers = np.arange(4, 6.6 if quick else 7.6, 0.5).tolist()
    sizes = [(mlp(10**power), 2 if power > 6.9 else 6) for power in powers]
    wide = [Point(cohort=16, settings=settings, rounds=rounds) for settings, rounds in sizes]
    images = [Point(cohort=16, model="cnn", settings=cnn(10**power), rounds=3) for power in range(5, 7 + (not quick))]
    return {
        "mlp, 1 thread": [replace(point, threads=1) for point in wide],
        "mlp, 2 threads": [replace(point, threads=2) for point in wide],
        "mlp, 1 thread, 8 stacked": [replace(point, threads=1, together=8, cohort=64) for point in wide[:5:2]],
        "cnn, 1 thread": [replace(point, threads=1) for point in images],
        "cnn, 2 threads": [replace(point, threads=2) for point in images],
    }


def mlp(parameters: float) -> dict[str, object]:
    """Two hidden layers as wide as brings an MLP from 60 features to 10 classes near so many parameters."""
    return {"hidden": [round((-72 + (72**2 + 4 * parameters) ** 0.5) / 2)] * 2}


def cnn(parameters: float) -> dict[str, object]:
    """LEAF's network with as wide a hidden layer as brings it near so many parameters."""
    return {"hidden": round((parameters - 52_106) / 3_147)}


def run(point: Point) -> Measured:
    """Measures a point in a fresh process."""
    command = [sys.executable, str(Path(__file__).with_name("_growth_point.py")), json.dumps(asdict(point))]
    return Measured(**json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))


def measure(name: str, points: Sequence[Point], again: bool) -> Series:
    """Measures a line and says on standard error how long it took.

    `again` measures it once more from its end, so that a machine that warms up tilts no curve.
    """
    begin = time.perf_counter()
    measured = [run(point) for point in points]
    for place, point in reversed(list(enumerate(points)) if again else []):
        measured[place] = merged(measured[place], run(point))
    print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    return Series(list(points), measured)


def merged(first: Measured, second: Measured) -> Measured:
    """Two measurements of one point: all seconds, and the larger of the peaks."""
    larger = first if first.rounds >= second.rounds else second
    return Measured(**{**asdict(larger), "seconds": first.seconds + second.seconds})


def slope(x: np.ndarray | Sequence[float], y: np.ndarray | Sequence[float]) -> float:
    """The exponent of y ~ x^slope: a straight line through the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def rate(x: np.ndarray | Sequence[float], y: np.ndarray | Sequence[float]) -> float:
    """How much y grows with x: a straight line through the numbers themselves."""
    return float(np.polyfit(x, y, 1)[0])


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a Markdown table."""
    print("|", " | ".join(heads), "|")
    print("|" + "---|" * len(heads))
    for row in rows:
        print("|", " | ".join(row), "|")
    print()


def timed(found: Measured) -> str:
    """Median milliseconds of a round with the quartiles of its rounds."""
    low, _, high = (1e3 * value for value in statistics.quantiles(found.seconds, n=4))
    return f"{1e3 * statistics.median(found.seconds):.1f} ({low:.1f} to {high:.1f})"


def show_clients(lines: Sequence[Series]) -> None:
    """Prints the lines over the number of clients."""
    print("### Clients (cohort of 100, 10 examples each)\n")
    rows = [
        (
            f"{point.clients:,}",
            str(point.together),
            timed(found),
            f"{found.draw * MEGA:.0f}",
            *(f"{size / MEGA:.1f}" for size in (found.data, found.index, found.rounds)),
        )
        for series in lines
        for point, found in zip(series.points, series.measured, strict=True)
    ]
    heads = ("clients", "stacked", "ms a round (quartiles)", "draw µs", "examples MB", "positions MB", "rounds MB")
    table(heads, rows)
    for series in lines:
        clients = [point.clients for point in series.points]
        position = rate(clients, [found.index for found in series.measured])
        print(
            f"- {series.points[0].together} stacked: seconds ~ clients^{slope(clients, series.seconds()):.3f}; "
            f"positions take {position:.0f} bytes a client"
        )
    print()


def show_cohort(lines: Sequence[Series]) -> None:
    """Prints the lines over the cohort's size: two by more clients, the last by more examples for each."""
    print("### Cohort\n")
    rows = [
        (
            *(f"{number:,}" for number in (point.clients, point.cohort, point.examples, point.together)),
            timed(found),
            f"{statistics.median(found.seconds) / (point.cohort * point.examples) * MEGA:.1f}",
            f"{found.rounds / MEGA:.1f}",
        )
        for series in lines
        for point, found in zip(series.points, series.measured, strict=True)
    ]
    heads = ("clients", "cohort", "examples each", "stacked", "ms a round (quartiles)", "µs an example", "rounds MB")
    table(heads, rows)
    for series in lines[:-1]:
        exponent = slope(series.examples()[1:], series.seconds()[1:])
        print(f"- {series.points[0].together} stacked, 10 examples each: seconds ~ cohort^{exponent:.3f} from 100 on")
    further = rate(lines[-1].examples(), lines[-1].seconds()) * MEGA
    print(f"- cohort of 100: {further:.1f} µs for each further example\n")


def show_models(sized: dict[str, Series]) -> None:
    """Prints the lines over model size, and how many models' worth of memory each takes."""
    print("### Model size (cohort of 16, of 64 where stacked; one step of 10 examples each)\n")
    rows = [
        (
            name,
            f"{found.parameters:,}",
            f"{found.model / MEGA:.2f}",
            f"{1e3 * statistics.median(found.seconds):.1f}",
            f"{found.rounds / MEGA:.1f}",
            f"{found.rounds / found.model:.1f}",
        )
        for name, series in sized.items()
        for found in series.measured
    ]
    table(("model", "parameters", "MB", "ms a round", "rounds MB", "rounds / model"), rows)
    for name, series in sized.items():
        sizes = [found.model for found in series.measured]
        print(f"- {name}: memory grows by {rate(sizes, series.memory()):.1f} times the model; ", end="")
        print(f"seconds ~ parameters^{slope(sizes[-3:], series.seconds()[-3:]):.2f} over the largest three")
    print()


def show_methods(methods: dict[str, Series]) -> None:
    """Prints memory over rounds of a method without and of one with clients that remember."""
    print("### Methods (cohort of 100 of 10,000 clients)\n")
    rows = []
    for name, series in methods.items():
        (found,) = series.measured
        half = len(found.seen) // 2
        growth = rate(found.seen[half:], found.resident[half:])
        megabytes = [f"{size / MEGA:.2f}" for size in (found.model, found.resident[0], found.resident[-1])]
        rows.append((name, str(len(found.seen)), f"{found.seen[-1]:,}", *megabytes, f"{growth / found.model:.2f}"))
    heads = ("method", "rounds", "clients seen", "model MB", "MB after the first", "MB after the last")
    table((*heads, "models for each client seen"), rows)


def machine() -> str:
    """The machine, the versions and the day, in one line."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = names[0].partition(":")[2].strip() if names else platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB, load {os.getloadavg()[0]:.1f}; fedstart {__version__}, "
        f"torch {torch.__version__}, Python {platform.python_version()}; {datetime.date.today()}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave out the ends of the curves that take long")
    parser.add_argument("--out", type=Path, help="directory for growth.svg; none = draw nothing")
    asked = parser.parse_args()
    if not Path("/proc/self/clear_refs").exists():
        print("growth.py reads memory from /proc, which only Linux has", file=sys.stderr)
        return 2
    print(f"{machine()}\n", flush=True)
    found = {
        name: measure(name, points, again=name.startswith("clients") and not asked.quick)
        for name, points in lines(asked.quick).items()
    }
    process = max(point.process for series in found.values() for point in series.measured)
    print(f"Python, torch and fedstart themselves: {process / MEGA:.0f} MB.\n")
    sized = {name: series for name, series in found.items() if name.startswith(("mlp", "cnn"))}
    methods = {name: found[name] for name in ("fedavg", "scaffold")}
    clients = [found["clients"], found["clients, stacked"]]
    cohort = [found["cohort"], found["cohort, stacked"], found["examples"]]
    show_clients(clients)
    show_cohort(cohort)
    show_models(sized)
    show_methods(methods)
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / "growth.svg").write_bytes(drawn(clients, cohort, sized, methods))
    return 0


if __name__ == "__main__":
    sys.exit(main())
