"""A study directory made of keyed random numbers, in the format of `fedstart run`, and a reader of pages."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from fedstart import keys
from fedstart.report import build
from fedstart.scores import Cell, Scores, summarise
from fedstart.types import Counts

STARTS = {"random": 62.0, "fedavg": 71.0, "centralized": 73.0, "coprefl (balance 0.5)": 76.5}
PARTITIONS = ("dirichlet(0.5)", "iid")
CLIENTS, ROUNDS, TESTED = 10, 20, 60


def place(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1))


def write_run(path: Path, counts: Counts, curve: np.ndarray) -> None:
    """The four files of a finished run directory."""
    versions = {"fedstart": "0.1.0", "torch": "2.13.0"}
    place(path / "run.json", {"status": "done", "error": None, "settings": {"lr": 0.05}, "versions": versions})
    cost = {"examples": 4000, "exchanges": 1, "bytes_down": 10**6, "bytes_up": 10**6}
    rest = {"clients": [0, 1], "info": {}, "cost": cost, "test_loss": 1.0}
    lines = [{"round": 1 + r, "loss": 2 / (1 + r), "accuracy": a, **rest} for r, a in enumerate(curve)]
    (path / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = {"part": ["test"] * len(counts.total), "client": list(range(len(counts.total)))}
    columns |= {name: getattr(counts, name).tolist() for name in counts._fields}
    pyarrow.parquet.write_table(pyarrow.table(columns), path / "clients.parquet")


def make_counts(level: float, spread: float, *path: int) -> Counts:
    """Client counts around `level` percent; the part of the noise that starts share comes from task and seed."""
    partition, task, seed, start = path
    shared = keys.generator(0, "test-report-clients", partition, task, seed).normal(0, spread, CLIENTS)
    own = keys.generator(0, "test-report-cell", *path).normal(0, 2.5, CLIENTS)
    share = np.clip((level + shared * (1 - 0.12 * start) + own) / 100, 0.02, 0.99)
    correct = keys.generator(0, "test-report-counts", *path).binomial(TESTED, share)
    return Counts(correct, np.full(CLIENTS, TESTED), TESTED * (1.8 - share))


def fabricate(
    directory: Path,
    starts: dict[str, float] = STARTS,
    tasks: int = 3,
    seeds: int = 2,
    partitions: tuple[str, ...] = PARTITIONS,
    name: str = "fabricated",
) -> Path:
    """A plausible study directory in the format that `fedstart run` writes."""
    cells: list[Cell] = []
    for s, (start, level) in enumerate(starts.items()):
        for p, partition in enumerate(partitions):
            for task, seed in np.ndindex(tasks, seeds):
                counts = make_counts(level + 4 * p + 2 * task, 9.0 - 5 * p, p, task, seed, s)
                cells.append(Cell(start, "fedavg", partition, task, seed, Scores(counts)))
                final = cells[-1].scores.mean
                noise = keys.generator(0, "test-report-curve", p, task, seed, s).normal(0, 0.6, ROUNDS)
                curve = final - (final - 20) * np.exp(-np.arange(ROUNDS) / (2 + s % 5)) + noise
                cell = directory / "cells" / f"d-{s}-{p}-{task}-{seed}"
                where = {"algorithm": "fedavg", "partition": partition, "task": task, "seed": seed}
                place(cell / "cell.json", {"kind": "downstream", "start": start, **where})
                write_run(cell, counts, curve)
    rows, contrasts = summarise(cells)
    spent = {"examples": 4_800_000, "exchanges": 150, "bytes_up": 3_200_000_000, "bytes_down": 6_400_000_000}
    none = dict.fromkeys(spent, 0)
    costs = {start: {"pretraining": none if start == "random" else spent, "downstream": spent} for start in starts}
    summary = {"format": 1, "study": name, "scale": "smoke", "rows": rows, "contrasts": contrasts, "cost": costs}
    place(directory / "summary.json", {**summary, "cells": len(cells), "fingerprints": {"digits": "ab" * 32}})
    place(directory / "timing.json", {"cells": {"d-0": 1.5}, "total": 40.25, "last_call": {"seconds": 22.1, "jobs": 2}})
    place(directory / "partitions.json", make_partitions(partitions, tasks))
    entries = "".join(f"\n[[starts]]\nmethod = '{start.split()[0]}'\nname = '{start}'\n" for start in starts)
    (directory / "study.toml").write_text(f'name = "{name}"\nseeds = [0, 1]\n\n[data]\nsource = "digits"\n{entries}')
    return directory


def make_partitions(partitions: tuple[str, ...], tasks: int) -> dict[str, Any]:
    """Label counts of one pre-training federation and of the downstream tasks."""
    draw = keys.generator(0, "test-report-partition")

    def holding(partition: str, clients: int, classes: int, **rest: Any) -> dict[str, Any]:
        shares = draw.dirichlet(np.full(clients, 100.0 if partition == "iid" else 0.5), classes)
        counts = np.round(shares.T * 30 * clients).astype(int)
        name = ", ".join([*(f"{key} {value}" for key, value in rest.items()), partition])
        return {"name": name, "partition": partition, "seed": 0, "label_counts": counts.tolist(), **rest}

    downstream = [holding(partition, CLIENTS, 5, task=task) for partition in partitions for task in range(tasks)]
    return {"format": 1, "pretraining": [holding("dirichlet(0.5)", 40, 8)], "downstream": downstream}


class Page(HTMLParser):
    """The text, tags and ids of a page, and whatever it would load from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if (
                name in ("src", "href", "xlink:href", "action", "data")
                and value
                and not value.startswith(("#", "data:"))
            ):
                self.loaded.append(value)

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split()).replace("\N{NO-BREAK SPACE}", " ")


def read_page(directory: Path) -> Page:
    return Page(build(directory).read_text())


def small(directory: Path, **changes: Any) -> Path:
    """A study of two starts, one task, one seed and one partition, unless changed."""
    settings = {"starts": {"random": 60.0, "fedavg": 70.0}, "tasks": 1, "seeds": 1, "partitions": ("iid",), **changes}
    return fabricate(directory, **settings)


def files(directory: Path) -> dict[str, bytes]:
    found = [directory / "report.html", *directory.glob("figures/*"), *directory.glob("tables/*")]
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}
