"""A study from its first cell to its summary."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w

from fedstart import names
from fedstart.data import subsets, tasks
from fedstart.engines.execution import Execution
from fedstart.files import cannot, claimed, read_json, remove_temporary_files, write_atomically, write_json
from fedstart.study import choosing, published, selection, summary
from fedstart.study.cells import Cell, Material, plan_cells
from fedstart.study.schema import Study
from fedstart.study.work import Part, Progress
from fedstart.study.workers import run_cells

SELECTION = "selection.json"
"""What was chosen for the starts whose entries have `choose`, and how the candidates did."""
EXECUTION = "execution.json"
"""What was chosen when the study began; it goes on with the same, on whatever machine."""


def run(
    study: Study, out: Path | str, *, jobs: int = 1, threads: int | None = None, progress: Progress | None = None
) -> Path:
    """Runs a study in the directory `out`, or goes on with it there, and returns that directory.

    Cells that are done are kept, cells whose settings changed are run anew (what is no longer part of the study
    moves to `unused/`). At most `jobs` cells run at a time, each on `threads` threads; none = the cores are shared
    out among the cells that run, one thread per core in all (and no more jobs than cores). The result has the same
    bytes whatever both are, and however often the study was interrupted. A run that diverges does not end the study;
    `failures(out)` lists those. Where a start has settings to choose, the study of the candidates runs first, in the
    subdirectory `selection/`; it is a study like any other.

    Raises ValueError before any work starts when the data do not fit the study, when `out` holds another study or
    other files, and when another process works in it; later when no candidate of a start finished its runs. Raises
    OSError when it cannot be written.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    began, out = time.monotonic(), Path(out)
    material = Material(selection.first(study), executions(out))
    candidates = candidates_of(study, material) if selection.wanted(study) else None
    cells = plan_cells(material)
    published.find(study.published, _settings(cells))
    before = 0 if candidates is None else _planned(candidates, material, out)
    with _claimed(out, study):
        write_atomically(out / "study.toml", tomli_w.dumps(study.tables()))
        progress = progress or _Silent()
        later = sum(cell.rounds for cell in cells)
        found: dict[str, Any] = {}
        if candidates is None:
            (out / SELECTION).unlink(missing_ok=True)
        else:
            run(candidates, out / selection.FOLDER, jobs=jobs, threads=threads, progress=Part(progress, later))
            found = choosing.record(study, out / selection.FOLDER)
            write_json(out / SELECTION, found)
            material = Material(selection.settled(study, choosing.chosen(found)), material.executions)
            cells = plan_cells(material)
        _run(material, cells, out, found, jobs=jobs, threads=threads, progress=Part(progress, before))
        write_json(out / "timing.json", summary.timing(cells, out / "cells", jobs, time.monotonic() - began))
    return out


def _run(
    material: Material,
    cells: Sequence[Cell],
    out: Path,
    found: Mapping[str, Any],
    *,
    jobs: int,
    threads: int | None,
    progress: Progress,
) -> None:
    """Runs a study whose settings are all chosen, in a directory that is claimed; `found` says what was chosen."""
    folder = out / "cells"
    write_json(out / EXECUTION, {kind: asdict(chosen) for kind, chosen in material.executions.items()})
    write_json(out / "partitions.json", summary.partitions(material))
    _save_partitions(material, out / "partitions")
    _tidy(out, cells)
    progress.total(sum(cell.rounds for cell in cells))
    failed: dict[str, str] = {}
    for result in run_cells(material, cells, folder, jobs=jobs, threads=threads, progress=progress):
        if result.error is not None:
            failed[result.cell.key] = result.error
    ordered = {cell.key: failed[cell.key] for cell in cells if cell.key in failed}
    write_json(out / "summary.json", summary.summary(material, cells, folder, ordered, found))


def candidates_of(study: Study, material: Material) -> Study:
    """The study that settles `study`, whose own material is given."""
    tested = {label for seed in study.seeds for label in material.federations.pool(seed)}
    left_out = study.pretraining.left_out
    values = subsets.values_of(material.examples, left_out.column) if left_out else ()
    return selection.selecting(study, material.classes, tested, values)


def _planned(candidates: Study, material: Material, out: Path) -> int:
    """The number of rounds of the study of candidates. Raises ValueError if it could not run."""
    try:
        cells = plan_cells(Material(candidates, {**material.executions, **executions(out / selection.FOLDER)}))
    except ValueError as error:
        raise ValueError(f"[selection]: {error}") from None
    return sum(cell.rounds for cell in cells)


def _settings(cells: Sequence[Cell]) -> list[tuple[str, str, str]]:
    """Start, algorithm and partition of every downstream cell, each once, in order."""
    downstream = [cell for cell in cells if cell.kind == "downstream"]
    return list(dict.fromkeys((cell.start, cell.algorithm, cell.partition) for cell in downstream))


def executions(out: Path) -> dict[str, Execution]:
    """How the engine computes in the study in `out`, by kind of cell; empty before it has begun."""
    file = out / EXECUTION
    held = read_json(file) if file.is_file() else {}
    return {kind: names.build(Execution, values, str(file)) for kind, values in held.items()}


def failures(out: Path | str) -> list[str]:
    """One line for each cell of a finished study that diverged: its key and why. Empty if all went well."""
    return [f"{failure['cell']}: {failure['error']}" for failure in read_json(Path(out) / "summary.json")["failures"]]


def _save_partitions(material: Material, folder: Path) -> None:
    """Who holds what, row by row: a seed would not bring it back under another version of numpy."""
    folder.mkdir(exist_ok=True)
    remove_temporary_files(folder)
    for seed in material.study.seeds:
        for place, shared in enumerate(material.federations.shared()):
            file = f"pretraining-f{place}-s{seed}.parquet" if place else f"pretraining-s{seed}.parquet"
            tasks.save_partition(material.pretraining(seed, shared.case, shared.start), folder / file)
        for place, label in enumerate(material.federations.settings):
            for task, federation in enumerate(material.tasks(label, seed)):
                tasks.save_partition(federation, folder / f"downstream-p{place}-t{task}-s{seed}.parquet")


class _Silent:
    def total(self, n: int) -> None:
        pass

    def advance(self, text: str) -> None:
        pass


def _claimed(out: Path, study: Study) -> AbstractContextManager[object]:
    """Makes the directory, checks that it may hold this study, and locks it against other processes."""
    try:
        if out.is_dir():
            _check(out, study)
        (out / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot("make", out, error) from None
    held = claimed(out, "running a study")
    remove_temporary_files(out)
    return held


def _check(out: Path, study: Study) -> None:
    file = out / "study.toml"
    if not file.exists():
        strange = sorted(entry.name for entry in out.iterdir() if entry.name != ".lock" and entry.suffix != ".tmp")
        if strange and strange != ["cells"]:
            raise ValueError(f"{out} holds no study, but {strange[0]!r}; choose another directory")
        return
    try:
        held = tomllib.loads(file.read_text("utf-8")).get("name")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid TOML: {error}") from None
    if held != study.name:
        raise ValueError(f"{out} holds the study {held!r}, not {study.name!r}; choose another directory")


def _tidy(out: Path, cells: Sequence[Cell]) -> None:
    """Moves runs that are no cells of the study (any more) to `unused/`, and takes back those that are again."""
    wanted = {cell.key for cell in cells}
    for source, target in (("cells", "unused"), ("unused", "cells")):
        for directory in sorted((out / source).glob("*/")):
            if (directory.name in wanted) == (target == "cells") and not (out / target / directory.name).exists():
                (out / target).mkdir(exist_ok=True)
                directory.rename(out / target / directory.name)
