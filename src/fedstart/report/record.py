"""A study or run as the report sees it: its runs, its federations, and the numbers of its summary."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedstart.scores import Scores

DAGGER = "†"
OPTIMISTIC = f"{DAGGER} chosen on the test tasks themselves, as in the paper; optimistic."
"""The note on every start whose settings were chosen on the tasks that it is scored on."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run directory: what it was, how it went, and its clients at the end (None if there are none)."""

    key: str
    place: Mapping[str, Any]
    status: str
    error: str
    rounds: tuple[Mapping[str, Any], ...]
    scores: Scores | None
    about: Mapping[str, Any]

    @property
    def start(self) -> str:
        """Name of the start, or the empty string for a run outside a study."""
        return str(self.place.get("start", ""))

    @property
    def setting(self) -> tuple[str, str]:
        """Downstream algorithm and partition."""
        return str(self.place.get("algorithm", "")), str(self.place.get("partition", ""))

    @property
    def title(self) -> str:
        """The run in a few words."""
        order = ("kind", "start", "algorithm", "partition", "task", "seed")
        known = [f"{key} {self.place[key]}" for key in order if key in self.place]
        return f"{self.key} ({', '.join(known)})" if len(known) > 1 else self.key

    @property
    def finished(self) -> bool:
        """True for a downstream run that is done and has client scores."""
        return self.place.get("kind") == "downstream" and self.status == "done" and self.scores is not None

    @property
    def pair(self) -> tuple[int, int]:
        """Task and seed: what comparisons are paired over."""
        return int(self.place.get("task", 0)), int(self.place.get("seed", 0))


@dataclass(frozen=True, eq=False)
class Holding:
    """Who holds what in one federation: `kind` is its stage and partition, `counts` has shape (clients, classes)."""

    name: str
    kind: tuple[str, str]
    counts: np.ndarray
    classes: tuple[str, ...] = ()

    @functools.cached_property
    def heterogeneity(self) -> float:
        """Total variation distance between a client's label distribution and the pooled one, in [0, 1].

        The mean over clients is weighted by their examples.
        """
        pooled = self.counts.sum(axis=0) / self.counts.sum()
        sizes = self.counts.sum(axis=1, keepdims=True)
        distances = 0.5 * np.abs(self.counts / np.maximum(sizes, 1) - pooled).sum(axis=1)
        return float((distances * sizes[:, 0]).sum() / sizes.sum())


@dataclass(frozen=True, eq=False)
class Record:
    """A directory as read: `kind` is "study" or "run"; `problems` are sentences for the reader."""

    directory: Path
    kind: str
    name: str
    settings: str
    summary: Mapping[str, Any]
    timing: Mapping[str, Any]
    holdings: tuple[Holding, ...]
    runs: tuple[Run, ...]
    problems: tuple[str, ...] = field(default=())

    @functools.cached_property
    def downstream(self) -> tuple[Run, ...]:
        """The finished downstream runs."""
        return tuple(run for run in self.runs if run.finished)

    @functools.cached_property
    def rows(self) -> tuple[Mapping[str, Any], ...]:
        """The rows of the summary."""
        return tuple(self.summary.get("rows", ()))

    @functools.cached_property
    def starts(self) -> tuple[str, ...]:
        """Names of the starts, in the order of the summary."""
        return tuple(dict.fromkeys(row["start"] for row in self.rows))

    @functools.cached_property
    def pairings(self) -> tuple[tuple[str, str], ...]:
        """Every (downstream algorithm, partition), in the order of the summary."""
        return tuple(dict.fromkeys((row["algorithm"], row["partition"]) for row in self.rows))

    @functools.cached_property
    def tables(self) -> Mapping[str, Any]:
        """The study's settings as tables; empty for a run, and where they cannot be read."""
        try:
            return tomllib.loads(self.settings) if self.kind == "study" else {}
        except tomllib.TOMLDecodeError:
            return {}

    @functools.cached_property
    def entries(self) -> tuple[Mapping[str, Any], ...]:
        """The starts as the study's settings list them: tables with at least a name and a method."""
        return tuple(entry for entry in self.tables.get("starts", ()) if isinstance(entry, dict))

    @functools.cached_property
    def scratch(self) -> str | None:
        """Name of the start without pre-training, if the study has one."""
        named = ["random", *(entry.get("name") for entry in self.entries if entry.get("method") == "random")]
        return next((start for start in self.starts if start in named), None)

    @functools.cached_property
    def claims(self) -> tuple[Mapping[str, Any], ...]:
        """The claims of the summary with their verdicts; empty in a study without claims."""
        return tuple(self.summary.get("claims") or ())

    @functools.cached_property
    def published(self) -> tuple[Mapping[str, Any], ...]:
        """The published rows of the summary; empty in a study that names none."""
        return tuple(self.summary.get("published") or ())

    @functools.cached_property
    def selection(self) -> Mapping[str, Mapping[str, Any]]:
        """How the settings of a start were chosen, by start; empty where nothing was chosen."""
        return dict(self.summary.get("selection") or {})

    @functools.cached_property
    def optimistic(self) -> frozenset[str]:
        """The starts whose settings were chosen on the test tasks themselves."""
        return frozenset(start for start, how in self.selection.items() if how["rule"] == "paper")

    def called(self, start: str) -> str:
        """The name of a start for a reader: with a dagger where its settings were chosen on the test tasks."""
        return f"{start}{DAGGER}" if start in self.optimistic else start

    @property
    def reference(self) -> str:
        """The start that the others are compared with in figures: the one without pre-training, else the first."""
        return self.scratch or next(iter(self.starts), "")

    def of(self, setting: tuple[str, str]) -> list[Mapping[str, Any]]:
        """The rows of one algorithm and partition."""
        return [row for row in self.rows if (row["algorithm"], row["partition"]) == setting]

    def contrast(self, setting: tuple[str, str], first: str, second: str) -> dict[str, Any] | None:
        """`first - second` in one setting, whichever way round the summary holds it."""
        for found in self.summary.get("contrasts", ()):
            if (found["algorithm"], found["partition"]) == setting:
                if (found["first"], found["second"]) == (first, second):
                    return dict(found)
                if (found["first"], found["second"]) == (second, first):
                    turned = {key: None if found[key] is None else -found[key] for key in ("difference", "low", "high")}
                    limits = {"low": turned["high"], "high": turned["low"], "difference": turned["difference"]}
                    return {**found, **limits, "first": first, "second": second}
        return None
