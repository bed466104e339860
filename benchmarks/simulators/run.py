"""The same federated work in fedstart, in other simulators, and in a bare PyTorch loop: one command, one table.

    python benchmarks/simulators/run.py [--workloads a b c d] [--simulators bare fedstart flower ...] [--repeats 5]

Every simulator runs in a process of its own, one after the other, and repeats go round-robin; the first round of a
process is not counted. README.md beside this file says what to install. `--evaluate` adds a central evaluation of
1,000 examples to every round; without it nothing but training and averaging is timed. The result is also written as
Markdown to benchmarks/results/, or to `--out`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import tempfile
import time
from pathlib import Path

import catalogue
import report
from catalogue import SIMULATORS, Simulator
from child import Job
from measure import Measurement, run
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from workloads import WORKLOADS, prepare

RESULTS = catalogue.HERE.parent / "results"
GUESS = {"a": 25.0, "b": 45.0, "c": 20.0, "d": 200.0}
"""Seconds that a run is taken to last until one has been seen."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--simulators", nargs="+", choices=SIMULATORS, default=list(SIMULATORS))
    parser.add_argument("--repeats", type=int, default=5, help="processes per workload and simulator")
    parser.add_argument("--rounds", type=int, help="measured rounds in each process (default: by workload)")
    parser.add_argument("--evaluate", action="store_true", help="a central evaluation of 1,000 examples per round")
    parser.add_argument("--limit", type=float, default=1800, help="seconds after which a process is ended")
    parser.add_argument(
        "--python", action="append", default=[], metavar="NAME=PATH", help="interpreter of an environment"
    )
    parser.add_argument("--out", type=Path, help="Markdown file (default: benchmarks/results/DATE-MACHINE.md)")
    given = parser.parse_args()
    if given.repeats < 1 or (given.rounds is not None and given.rounds < 1):
        parser.error("--repeats and --rounds must be at least 1")
    if any("=" not in pair for pair in given.python):
        parser.error("--python takes NAME=PATH, for instance torchvision=/venvs/other/bin/python")
    return given


def plan(given: argparse.Namespace) -> tuple[list[tuple[str, Simulator, Path]], dict[str, str]]:
    """What is run, in order, with which interpreter; and what is not, with the reason."""
    interpreters = {name: Path(path) for name, _, path in (pair.partition("=") for pair in given.python)}
    chosen, not_run = [], {}
    for name in given.workloads:
        for key in given.simulators:
            simulator = SIMULATORS[key]
            if name not in simulator.workloads:
                not_run[f"{simulator.title}, ({name})"] = "left out: minutes per round"
                continue
            try:
                chosen.append((name, simulator, catalogue.environment(simulator.environment, interpreters)))
            except FileNotFoundError as error:
                not_run[simulator.title] = str(error)
    return chosen, not_run


def left(chosen: list[tuple[str, Simulator, Path]], done: int, total: int, seen: dict[tuple[str, str], float]) -> str:
    """The time that the remaining runs will take, by how long their like took."""
    remaining = (chosen[number % len(chosen)] for number in range(done, total))
    seconds = sum(seen.get((name, simulator.key), GUESS[name]) for name, simulator, _ in remaining)
    return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"


def main() -> None:
    given = arguments()
    # So that a `timeout` around it also ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    chosen, not_run = plan(given)
    if not chosen:
        sys.exit(f"nothing to run: {'; '.join(not_run.values())}")
    results: dict[tuple[str, str], list[Measurement]] = {(name, sim.key): [] for name, sim, _ in chosen}
    seen: dict[tuple[str, str], float] = {}
    console, real = Console(), False
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="fedstart-simulators-") as folder,
        Progress(*columns, TextColumn("{task.fields[left]}"), console=console) as progress,
    ):
        total = given.repeats * len(chosen)
        task = progress.add_task("making the data", total=total, left="")
        rounds = {name: 1 + (given.rounds or WORKLOADS[name].rounds) for name in given.workloads}
        for name in given.workloads:
            data = prepare(WORKLOADS[name], Path(folder), rounds[name])
            real = real or json.loads((data.folder / "workload.json").read_text())["real"]
        for number in range(total):
            name, simulator, python = chosen[number % len(chosen)]
            progress.update(
                task,
                description=f"({name}) {simulator.title}",
                left=left(chosen, number, total, seen),
                completed=number,
            )
            out = f"{folder}/result.json"
            job = Job(folder, name, rounds[name], given.evaluate, simulator.variant, simulator.packages, 0.0, out)
            began = time.monotonic()
            measured = run(simulator, python, job, given.limit)
            seen[name, simulator.key] = time.monotonic() - began
            results[name, simulator.key].append(measured)
            seconds = " ".join(f"{second:.3g}" for second in measured.seconds)
            progress.console.print(f"({name}) {simulator.title}: {measured.error or f'{seconds} s per round'}")
        progress.update(task, completed=total, left="")
    command = shlex.join(["python", "benchmarks/simulators/run.py", *sys.argv[1:]])
    page = report.write(results, not_run, command, given.evaluate, real)
    file = given.out or report.default_file(RESULTS)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page)
    if console.is_terminal:
        console.print(Markdown(page))
    else:
        print(page)
    console.print(f"written to {file}")


if __name__ == "__main__":
    main()
