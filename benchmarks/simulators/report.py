"""The results as Markdown."""

from __future__ import annotations

import datetime
import os
import platform
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil
from catalogue import NOT_RUN, SIMULATORS
from measure import Measurement
from workloads import WORKLOADS

Results = Mapping[tuple[str, str], Sequence[Measurement]]
"""The repeats of each (workload, simulator)."""


def processor() -> str:
    """The processor's name."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def default_file(folder: Path) -> Path:
    """A file named by date, cores and processor that is not there yet; not by the host's name."""
    name = re.sub(r"[^a-z0-9]+", "-", processor().lower()).strip("-")
    stem, number = f"{datetime.date.today()}-{os.cpu_count()}-core-{name}", 1
    while (folder / f"{stem}{f'-{number}' if number > 1 else ''}.md").exists():
        number += 1
    return folder / f"{stem}{f'-{number}' if number > 1 else ''}.md"


def write(results: Results, not_run: Mapping[str, str], command: str, evaluate: bool, real: bool) -> str:
    """The whole page."""
    memory = psutil.virtual_memory().total / 2**30
    load = os.getloadavg()[0]
    lines = [
        f"# Simulators side by side, {datetime.date.today()}",
        "",
        f"`{command}`",
        "",
        f"{processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}; "
        f"load when this was written {load:.1f}. "
        f"{'With' if evaluate else 'Without'} a central evaluation of 1,000 examples in each round.",
        "",
        "Each run is a process of its own; repeats go round-robin over the simulators. One run gives the median of its",
        "rounds, the first of which is not counted; the tables give the median of the runs, and from the fastest run",
        "to the slowest in brackets. Ratios are of SGD steps per second. Start: from starting the process to the end",
        "of its first round. Memory: largest resident memory of the process tree; pages that processes share count for",
        "each of them. Weights moved: the norm of the change over all rounds, relative to the initial weights.",
    ]
    for name in dict.fromkeys(workload for workload, _ in results):
        content = " (real images and writers)" if real and name == "b" else " (synthetic content)"
        lines += ["", f"## ({name}) {WORKLOADS[name].title}{content}", "", *_speeds(name, results)]
    lines += ["", "## What was run", "", *_checks(results)]
    lines += ["", "## Not run", "", "| simulator | reason |", "|---|---|"]
    lines += [f"| {title} | {reason} |" for title, reason in {**NOT_RUN, **not_run}.items()]
    return "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _speeds(name: str, results: Results) -> list[str]:
    rows = {key: runs for (workload, key), runs in results.items() if workload == name}
    rates = {key: [_rate(run.steps, run) for run in runs if not run.error] for key, runs in rows.items()}
    heads = [
        "simulator",
        "s per round",
        "clients/s",
        "SGD steps/s",
        "bare = 1",
        "fedstart = 1",
        "memory, MiB",
        "start, s",
    ]
    lines = [_row(heads), f"|---|{'---:|' * (len(heads) - 1)}"]
    for key, runs in rows.items():
        done = [run for run in runs if not run.error]
        title = SIMULATORS[key].title
        if not done:
            lines.append(_row([title, f"failed: {runs[-1].error}", *[""] * (len(heads) - 2)]))
            continue
        lines.append(
            _row(
                [
                    title,
                    _spread([statistics.median(run.seconds) for run in done]),
                    _spread([_rate(run.clients, run) for run in done]),
                    _spread(rates[key]),
                    _ratio(rates, key, "bare"),
                    _ratio(rates, key, "fedstart"),
                    _spread([run.memory / 2**20 for run in done]),
                    _spread([run.start for run in done]),
                ]
            )
        )
    return lines


def _rate(amounts: Sequence[int], run: Measurement) -> float:
    """Median over the rounds of the amount per second."""
    return statistics.median(amount / second for amount, second in zip(amounts, run.seconds, strict=True))


def _spread(values: Sequence[float]) -> str:
    middle = _number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({_number(min(values))}–{_number(max(values))})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(rates: Mapping[str, Sequence[float]], key: str, base: str) -> str:
    """Of the medians; in brackets from the smallest to the largest ratio of two runs of the same repeat."""
    if not rates.get(base):
        return ""
    middle = statistics.median(rates[key]) / statistics.median(rates[base])
    pairs = [own / other for own, other in zip(rates[key], rates[base], strict=False)]
    if len(pairs) == 1:
        return _number(middle)
    return f"{_number(middle)} ({_number(min(pairs))}–{_number(max(pairs))})"


def _checks(results: Results) -> list[str]:
    """Versions, settings, and whether the work was the same."""
    heads = [
        "workload",
        "simulator",
        "versions",
        "settings",
        "runs x rounds",
        "steps in the first round",
        "weights moved",
    ]
    lines = [_row(heads), "|---|---|---|---|---:|---:|---:|"]
    for (name, key), runs in results.items():
        done = [run for run in runs if not run.error]
        if done:
            versions = ", ".join(f"{package} {version}" for package, version in (done[0].versions or {}).items())
            notes = " / ".join(dict.fromkeys(run.note for run in done))
            amounts = [f"{len(done)} x {len(done[0].seconds)}", f"{done[0].counted:,}"]
            moved = statistics.median(run.moved for run in done)
            lines.append(_row([name, SIMULATORS[key].title, versions, notes, *amounts, f"{moved:.4f}"]))
    return lines
