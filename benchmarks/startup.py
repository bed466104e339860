"""How long fedstart's commands and imports take to start, beside an empty Python and `import torch`.

    python benchmarks/startup.py [--repeats 11]

Prints a Markdown table: median, fastest and slowest wall seconds of a new process, from start to end, and the median
of its processor seconds. Every repeat runs all of them once, in turn, so a busy machine hits all alike. The first
turn is not counted: it reads the files from disk and writes the `.pyc` files.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"
API = "from fedstart import FedAvg, Federation, LocalEngine, Model, Plan, train"
CASES: dict[str, tuple[str, ...]] = {
    "python -c pass": ("-c", "pass"),
    "import torch": ("-c", "import torch"),
    "import fedstart": ("-c", "import fedstart"),
    "import fedstart.training": ("-c", "import fedstart.training"),
    API: ("-c", API),
    "fedstart --help": ("-m", "fedstart", "--help"),
    "fedstart list": ("-m", "fedstart", "list"),
    "fedstart list methods": ("-m", "fedstart", "list", "methods"),
    "fedstart run digitz (no such study)": ("-m", "fedstart", "run", "digitz"),
    "fedstart run digits downstream.plan.ronds=3 (no such setting)": (
        *("-m", "fedstart", "run", "digits"),
        "downstream.plan.ronds=3",
    ),
}


def measure(words: tuple[str, ...], environment: dict[str, str]) -> tuple[float, float]:
    """Wall and processor seconds of one process."""
    used, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=11)
    repeats = parser.parse_args().repeats
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for turn in range(repeats + 1):
        for name, words in CASES.items():
            seconds = measure(words, environment)
            if turn:
                found[name].append(seconds)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "typer", "pydantic", "numpy"))
    print(f"Python {platform.python_version()}, {versions}; {os.cpu_count()} cores; {repeats} repeats\n")
    print("| process | wall s, median | fastest | slowest | processor s, median |\n|---|---:|---:|---:|---:|")
    for name, seconds in found.items():
        walls, processor = zip(*seconds, strict=True)
        median = statistics.median(walls)
        print(f"| `{name}` | {median:.3f} | {min(walls):.3f} | {max(walls):.3f} | {statistics.median(processor):.3f} |")


if __name__ == "__main__":
    main()
