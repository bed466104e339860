"""From chosen experiments to files: one JSON for each, written whole, and none twice."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from fedstart import __version__
from fedstart.engines.allocation import one_torch_thread
from fedstart.files import cannot, claimed, read_json, remove_temporary_files, write_json
from fedstart.lab.findings import Findings


class Progress(Protocol):
    """A bar that counts pieces of work."""

    def total(self, n: int) -> None: ...

    def advance(self, text: str) -> None: ...


class Experiment(Protocol):
    """A frozen dataclass of settings, one file of `fedstart.lab.experiments` each."""

    def run(self, progress: Progress) -> Findings: ...


def run(chosen: Mapping[str, Experiment], out: Path, progress: Progress) -> None:
    """Runs experiments by name and writes `out/lab/NAME.json` and `out/timing.json` (seconds, by name).

    One whose file holds the same settings and versions is not run again. Raises OSError where a file cannot be written,
    ValueError where another process works in the directory.
    """
    with claimed(out, "running the lab"):
        try:
            (out / "lab").mkdir(exist_ok=True)
        except OSError as error:
            raise cannot("make", out, error) from None
        _run(chosen, out / "lab", out / "timing.json", progress)


def _run(chosen: Mapping[str, Experiment], place: Path, clock: Path, progress: Progress) -> None:
    remove_temporary_files(place)
    seconds = read_json(clock) if clock.is_file() else {}
    for name, experiment in chosen.items():
        about = _about(name, experiment)
        if _done(place / f"{name}.json", about):
            continue
        begun = time.perf_counter()
        with one_torch_thread():
            findings = experiment.run(progress)
        write_json(place / f"{name}.json", about | _plain(findings, about["settings"].get("seeds", 1)))
        write_json(clock, seconds := {**seconds, name: round(time.perf_counter() - begun, 2)})


def settings_of(experiment: Any) -> dict[str, Any]:
    """The settings as JSON holds them."""
    return _listed(asdict(experiment))


def _about(name: str, experiment: Experiment) -> dict[str, Any]:
    versions = {"fedstart": __version__, "torch": str(torch.__version__)}
    return {"format": 1, "name": name, "settings": settings_of(experiment), "versions": versions}


def _done(path: Path, about: Mapping[str, Any]) -> bool:
    if not path.is_file():
        return False
    held = read_json(path)
    return isinstance(held, dict) and all(held.get(key) == value for key, value in about.items())


def _plain(findings: Findings, seeds: int) -> dict[str, Any]:
    """As JSON holds them; one seed has no interval, and so no verdict on any claim."""
    tested = [claim for claim in findings.claims if claim.verdict != "not tested" and seeds > 1]
    return _listed(asdict(replace(findings, claims=tested)))


def _listed(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, Mapping):
        return {str(key): _listed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_listed(item) for item in value]
    return value
