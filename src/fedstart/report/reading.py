"""Reads a study or run directory into one record. Nothing else of fedstart is asked, so old results stay readable."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from fedstart.files import read_json
from fedstart.report.record import Holding, Record, Run
from fedstart.scores import Cell, Scores, summarise
from fedstart.types import Counts

_SETTING = ("algorithm", "partition", "n")
_ROW = ("start", *_SETTING, "mean", "low", "high", "variance", "worst10", "worst20", "worst30", "seeds", "tasks")
_SPENT = ("rounds", "bytes", "examples")
_CONTRAST = ("first", "second", *_SETTING, "difference", "low", "high", "p", "p_holm")

_ROWS = {
    "rows": _ROW,
    "contrasts": _CONTRAST,
    "published": ("start", "algorithm", "partition", "method", "table", "accuracy", "variance"),
    "claims": ("text", "source", "score", *_CONTRAST[:8], "published", "by_seed", "verdict"),
    "targets": ("start", *_SETTING, "target", *_SPENT, *(f"{kind}_ratio" for kind in _SPENT)),
    "watched": ("start", *_SETTING, "round", "rounds", "probe", "value", "layer", "mean", "low", "high"),
}
_BY_START = {
    "selection": ("rule", "chosen", "candidates"),
    "break_even": ("algorithm", "partition", "target", "rounds", "saved_rounds", "tasks_bytes", "tasks_examples"),
}


def read(directory: Path) -> Record:
    """Reads a study directory (`study.toml` or `summary.json`) or a single run directory (`run.json`).

    Runs that failed or cannot be read become `problems`; the summary is computed from the runs if it is missing.
    Raises ValueError when the directory is neither, or its summary cannot be read.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such directory (a report needs a study or run directory)")
    if (directory / "summary.json").exists() or (directory / "study.toml").exists():
        return _study(directory)
    if (directory / "run.json").exists():
        return _single(directory)
    raise ValueError(
        f"{directory}: neither a study nor a run directory (a study has study.toml or summary.json, a run has run.json)"
    )


def _study(directory: Path) -> Record:
    problems: list[str] = []
    runs: list[Run] = []
    for cell in sorted((directory / "cells").glob("*/cell.json")):
        try:
            runs.append(_run(cell.parent, _json(cell)))
        except ValueError as error:
            problems.append(f"{cell.parent.name} cannot be read and is left out: {error}.")
    problems.extend(_unfinished(runs))
    if (directory / "summary.json").exists():
        summary = _checked(directory / "summary.json")
    else:
        summary = _summary(runs)
        problems.append("There is no summary.json: the numbers here were computed from the cells that have finished.")
    if not runs:
        problems.append("There are no cells, so only the summary is shown.")
    holdings: tuple[Holding, ...] = ()
    if (directory / "partitions.json").exists():
        holdings = _holdings(directory / "partitions.json")
    else:
        problems.append("There is no partitions.json, so the partitions are not shown.")
    settings = directory / "study.toml"
    record = Record(
        directory=directory,
        kind="study",
        name=str(summary.get("study") or directory.resolve().name),
        settings=settings.read_text(encoding="utf-8") if settings.exists() else "",
        summary=summary,
        timing=_json(directory / "timing.json") if (directory / "timing.json").exists() else {},
        holdings=holdings,
        runs=tuple(runs),
    )
    absent = [str(entry.get("name")) for entry in record.entries if entry.get("name") not in record.starts]
    problems.extend(f"No downstream run from {start} has finished." for start in absent)
    return replace(record, problems=tuple(problems))


def _single(directory: Path) -> Record:
    run = _run(directory, {"kind": "run"})
    problems = _unfinished([run])
    if run.scores is None:
        problems.append("There is no clients.parquet, so the clients are not shown.")
    return Record(
        directory=directory,
        kind="run",
        name=directory.resolve().name,
        settings=json.dumps(run.about, indent=2, sort_keys=True, ensure_ascii=False),
        summary={},
        timing=_json(directory / "timing.json") if (directory / "timing.json").exists() else {},
        holdings=(),
        runs=(run,),
        problems=tuple(problems),
    )


def _run(directory: Path, place: Mapping[str, Any]) -> Run:
    about = _json(directory / "run.json") if (directory / "run.json").exists() else {}
    clients = directory / "clients.parquet"
    return Run(
        key=directory.name,
        place=place,
        status=str(about.get("status", "not started")),
        error=str(about.get("error") or ""),
        rounds=_rounds(directory / "rounds.jsonl"),
        scores=_scores(clients) if clients.exists() else None,
        about=about,
    )


def _unfinished(runs: Sequence[Run]) -> list[str]:
    failed = [run for run in runs if run.status == "failed"]
    waiting = [run for run in runs if run.status not in ("failed", "done")]
    problems = [f"{run.title} failed and is left out: {run.error or 'no reason was recorded'}." for run in failed]
    if waiting:
        problems.append(f"{len(waiting)} of {len(runs)} runs have not finished.")
    return problems


def _rounds(path: Path) -> tuple[Mapping[str, Any], ...]:
    if not path.exists():
        return ()
    found: list[Mapping[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break  # A run that was killed may have left half a line; what stands before it is whole.
    return tuple(found)


def _scores(path: Path) -> Scores | None:
    try:
        table = pyarrow.parquet.read_table(path, columns=["part", "client", "correct", "total", "loss"])
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"{path}: not a table of clients ({str(error).splitlines()[0]})") from None
    chosen = np.array(table["part"].to_pylist()) == "test"
    if not chosen.any():
        return None
    order = np.argsort(table["client"].to_numpy()[chosen], kind="stable")
    correct, total, loss = (table[name].to_numpy()[chosen][order] for name in ("correct", "total", "loss"))
    return Scores(Counts(correct, total, loss)) if (total > 0).any() else None


def _summary(runs: Sequence[Run]) -> dict[str, Any]:
    finished = [run for run in runs if run.finished]
    cells = [Cell(run.start, *run.setting, *run.pair, run.scores) for run in finished if run.scores is not None]
    rows, contrasts = summarise(cells)
    return {"rows": rows, "contrasts": contrasts, "cells": len(cells)}


def _checked(path: Path) -> dict[str, Any]:
    summary = _json(path)
    entries = [(f"{name} entry {place}", row) for name in _ROWS for place, row in enumerate(summary.get(name) or ())]
    entries += [(f"{name} of {start}", row) for name in _BY_START for start, row in (summary.get(name) or {}).items()]
    for title, row in entries:
        needed = {**_ROWS, **_BY_START}[title.split()[0]]
        missing = [key for key in needed if key not in row]
        if missing:
            raise ValueError(f"{path}: {title} lacks {missing[0]!r}")
    return summary


def _holdings(path: Path) -> tuple[Holding, ...]:
    tree = _json(path)
    found: list[Holding] = []
    for stage in ("pretraining", "downstream"):
        for entry in tree.get(stage, ()):
            counts = np.asarray(entry.get("label_counts", ()), dtype=np.int64)
            if counts.ndim != 2 or counts.sum() == 0:
                raise ValueError(f"{path}: label_counts of {entry.get('name')!r} must be a table, clients by classes")
            classes = tuple(str(label) for label in entry.get("class_names", ()))
            kind = (stage, str(entry.get("partition", "")))
            found.append(Holding(str(entry.get("name", stage)), kind, counts, classes))
    return tuple(found)


def _json(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: a JSON object is needed, got {type(found).__name__}")
    return found
