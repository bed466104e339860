"""`fedstart run`, `fedstart demo` and `fedstart report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from fedstart import study as studies
from fedstart.cli._output import Screen, table
from fedstart.files import read_json

if TYPE_CHECKING:
    from fedstart.report.reading import Record


@dataclass(frozen=True)
class Request:
    """A study as the command line asks for it; by default in `runs/STUDY-SCALE`, with one job per core."""

    study: str
    overrides: tuple[str, ...]
    out: Path | None
    scale: str | None
    jobs: int | None
    threads: int | None


def run(request: Request, screen: Screen) -> None:
    """Runs the study to its end, or takes it up, builds its report and says what came out.

    Raises ValueError, after all that, if a run of the study diverged.
    """
    study = studies.load(request.study, request.scale, request.overrides)

    # These import torch and matplotlib, which takes more than a second: what is wrong in the study was told before.
    import joblib

    from fedstart.report import build
    from fedstart.report.reading import read

    out = request.out or Path("runs") / "-".join(filter(None, (study.name, study.scale)))
    with screen.progress() as progress:
        studies.run(study, out, jobs=request.jobs or joblib.cpu_count(), threads=request.threads, progress=progress)
    page = build(out)
    record = read(out)
    failed = studies.failures(out)
    screen.answer(_result(record, page, failed))
    screen.show(*_tables(record), "", _sentence(record), f"Report: {page}")
    if failed:
        cells = record.summary["cells"] + len(failed)
        raise ValueError(f"{len(failed)} of {cells} runs diverged, the others are in {page}; first: {failed[0]}")


def estimate(request: Request, screen: Screen) -> None:
    """Says how long the whole study would take on this machine, by kinds of cells; leaves no directory."""
    study = studies.load(request.study, request.scale, request.overrides)

    # Imports torch, as in `run`.
    import joblib

    from fedstart.report.words import duration, plural
    from fedstart.study.estimating import estimate as estimated

    jobs = request.jobs or joblib.cpu_count()
    with screen.progress() as progress:
        found = estimated(study, jobs=jobs, threads=request.threads, progress=progress)
    heads = ("cells", "number", "rounds\neach", "local steps\na round", "seconds\na round", "in all")
    rows = [
        (row.cells, row.number, row.rounds, _short(row.local_steps), _short(row.round_seconds), duration(row.seconds))
        for row in found.rows
    ]
    machine = f"{plural(found.jobs, 'job')} on this machine ({plural(found.cores, 'core')})"
    screen.answer(asdict(found))
    name = f"{study.name}, scale {study.scale}" if study.scale else study.name
    screen.show(table(f"{name}: time it would take", heads, rows, numbers=5), "", *found.notes)
    screen.show(f"In all: {duration(found.seconds)} with {machine}")


def report(directories: Sequence[Path], screen: Screen) -> None:
    """Rebuilds the report of each directory of a study or a run."""
    from fedstart.report import build

    pages = []
    for directory in directories:
        pages.append(build(directory))
        screen.show(f"Report: {pages[-1]}")
    screen.answer({"reports": pages})


def _short(value: float) -> str:
    """A number with three significant digits, or all of its whole part."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _result(record: Record, page: Path, failed: list[str]) -> dict[str, Any]:
    return {
        "directory": record.directory,
        "report": page,
        "answer": _sentence(record),
        "failures": failed,
        "summary": read_json(record.directory / "summary.json"),
    }


def _sentence(record: Record) -> str:
    from fedstart.report.words import answer

    return answer(record, next(iter(record.pairings), ("", "")))


def _tables(record: Record) -> list[RenderableType]:
    heads = ("start", "mean\n%", "95 %\ninterval", "variance\n%²", "worst\n10 %", "worst\n20 %", "worst\n30 %", "runs")
    shown: list[RenderableType] = []
    for setting in record.pairings:
        rows = [
            (
                row["start"],
                row["mean"],
                "-" if row["low"] is None else f"{row['low']:.2f} to {row['high']:.2f}",
                row["variance"],
                *(row[f"worst{percent}"] for percent in (10, 20, 30)),
                row["n"],
            )
            for row in record.of(setting)
        ]
        shown.append(table(f"Accuracy of the clients, {setting[0]} on {setting[1]}", heads, rows, numbers=7))
    return shown
