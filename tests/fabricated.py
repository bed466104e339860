"""A study directory made of keyed random numbers, in the format of `fedstart run`, and a reader of pages."""

from __future__ import annotations

import csv
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
    algorithms: tuple[str, ...] = ("fedavg",),
) -> Path:
    """A plausible study directory in the format that `fedstart run` wrote before there were claims and selections."""
    cells: list[Cell] = []
    settings = [(algorithm, partition) for algorithm in algorithms for partition in partitions]
    for s, (start, level) in enumerate(starts.items()):
        for p, (algorithm, partition) in enumerate(settings):
            for task, seed in np.ndindex(tasks, seeds):
                even = p % len(partitions)
                counts = make_counts(level + 4 * even + 2 * task, 9.0 - 5 * even, p, task, seed, s)
                cells.append(Cell(start, algorithm, partition, task, seed, Scores(counts)))
                final = cells[-1].scores.mean
                noise = keys.generator(0, "test-report-curve", p, task, seed, s).normal(0, 0.6, ROUNDS)
                curve = final - (final - 20) * np.exp(-np.arange(ROUNDS) / (2 + s % 5)) + noise
                cell = directory / "cells" / f"d-{s}-{p}-{task}-{seed}"
                where = {"algorithm": algorithm, "partition": partition, "task": task, "seed": seed}
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


def with_paper(directory: Path, seeds: int = 2, rule: str = "paper") -> Path:
    """Adds to a study all that summary.json gained: claims, published rows, selections, personalised scores, costs.

    The last start is chosen by `rule`, the one before by validation. Numbers are keyed or derived from the rows.
    """
    summary = json.loads((directory / "summary.json").read_text())
    rows = summary["rows"]
    starts = list(dict.fromkeys(row["start"] for row in rows))
    draw = keys.generator(0, "test-report-paper")
    for row in rows:
        moved = {key: row[key] + 3.5 for key in ("mean", "low", "high", "worst10", "worst20", "worst30") if row[key]}
        rest = {key: row[key] * 0.8 for key in ("variance", "variance_squared_mean_deviation")}
        row |= {"jain": 0.9812, "entropy": 2.2951, "sample_mean": row["mean"] + 0.25}
        row["personal"] = {"low": None, "high": None, **moved, **rest}
    first, second = starts[-1], starts[1 if len(starts) > 2 else 0]
    settings = list(dict.fromkeys((row["algorithm"], row["partition"]) for row in rows))
    summary["claims"] = [claim for setting in settings for claim in make_claims(rows, setting, first, second, seeds)]
    summary["published"] = [
        {
            **{key: row[key] for key in ("start", "algorithm", "partition")},
            "method": row["start"].title(),
            "table": "1a",
            "gamma": 0.75 if row["start"] == first else None,
            "accuracy": round(row["mean"] + draw.normal(0, 3), 2),
            "variance": round(row["variance"] * 1.2, 2),
            "low10": round(row["worst10"] - 2, 2),
            "low20": round(row["worst20"] - 2, 2),
            "low30": None,
        }
        for row in rows
        if row["start"] != starts[0]
    ]
    summary["selection"] = {start: make_selection(chosen) for start, chosen in ((second, "validation"), (first, rule))}
    for start, stages in summary["cost"].items():
        for number, (stage, cost) in enumerate(stages.items()):
            cost["backward"] = cost["examples"] * 3 // 4
            if stage == "pretraining":
                cell = f"p-{starts.index(start)}"
                place(directory / "cells" / cell / "cell.json", {"kind": "pretrain", "start": start, "seed": number})
                place(directory / "cells" / cell / "run.json", {"status": "done"})
    target = {
        "against": starts[0],
        "algorithm": rows[0]["algorithm"],
        "partition": rows[0]["partition"],
        "target": 61.5,
    }
    ratios = {"pretraining_rounds_bytes": 45.5, "pretraining_rounds_examples": 31.25}
    paid = {"rounds": 6, "saved_rounds": 14, "tasks_bytes": 4, "tasks_examples": 3}
    never = {"rounds": None, "saved_rounds": None, "tasks_bytes": None, "tasks_examples": None}
    rest = {start: {**target, **ratios, **(never if start == second else paid)} for start in starts[1:]}
    place(directory / "summary.json", {**summary, "break_even": rest})
    seconds = {"d-0-0-0-0": 1.5, "d-0-0-0-1": 2.5, "p-1": 60.0}
    place(directory / "timing.json", {"cells": seconds, "total": 64.0, "last_call": {"seconds": 22.1, "jobs": 2}})
    return directory


def make_claims(
    rows: list[dict[str, Any]], setting: tuple[str, str], first: str, second: str, seeds: int
) -> list[dict[str, Any]]:
    """Three claims of a setting, one of each verdict."""
    held = {row["start"]: row for row in rows if (row["algorithm"], row["partition"]) == setting}
    texts = {
        "mean": ("CoPreFL is more accurate than FedAvg", "Table 1a", 4.33, "reproduced"),
        "variance": ("CoPreFL's clients vary less than FedAvg's", "Table 1a", -30.11, "undecided"),
        "worst10": (
            "CoPreFL serves the worst 10 % of the clients better than FedAvg does",
            "5.2",
            None,
            "not reproduced",
        ),
    }
    place = {"first": first, "second": second, "algorithm": setting[0], "partition": setting[1]}
    found: list[dict[str, Any]] = []
    for score, (text, source, published, verdict) in texts.items():
        difference = held[first][score] - held[second][score]
        half = {"reproduced": abs(difference) / 2, "undecided": abs(difference) * 2}.get(verdict, 1.25)
        difference = -2.5 if verdict == "not reproduced" else difference
        found.append(
            {
                "text": text,
                "source": source,
                "score": score,
                **place,
                "published": published,
                "difference": difference,
                "low": difference - half,
                "high": difference + half,
                "n": held[first]["n"],
                "by_seed": [difference + 0.5 * s for s in range(seeds)],
                "seeds": seeds,
                "verdict": verdict,
            }
        )
    return found


def make_selection(rule: str) -> dict[str, Any]:
    """A grid of one setting, of which the middle one is best."""
    means = {0.0: 70.5, 0.25: 72.25, 0.5: 74.75, 0.75: 73.5, 1.0: 71.0}
    candidates = [
        {"changes": {"settings.balance": value}, "mean": mean, "low": mean - 1.5, "high": mean + 1.5, "n": 5}
        for value, mean in means.items()
    ]
    return {"rule": rule, "score": "mean", "chosen": {"settings.balance": 0.5}, "candidates": candidates}


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


class Cells(HTMLParser):
    """Every table of a page: rows of texts, the class of each text, headers without a scope."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.styles: list[tuple[str, str]] = []
        self.bare = 0
        self.attributes: set[str] = set()
        self._inside, self._style = False, ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.update(name for name, _ in attrs)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.bare += tag == "th" and dict(attrs).get("scope") not in ("col", "row")
            self.tables[-1][-1].append("")
            self._inside, self._style = True, dict(attrs).get("class") or ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("th", "td"):
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.tables[-1][-1][-1] += data
            self.styles.append((data, self._style))

    def headed(self, *titles: str) -> list[list[list[str]]]:
        """The tables whose first columns have these titles."""
        return [table for table in self.tables if tuple(table[0][: len(titles)]) == titles]


def sheet(directory: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((directory / f"tables/{name}.csv").read_text().splitlines()))
