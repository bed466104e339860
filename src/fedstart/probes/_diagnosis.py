"""Every chosen probe of every start, as plain data: `diagnosis.json`, which grows measurement by measurement."""

from __future__ import annotations

import inspect
import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from fedstart import __version__, tree
from fedstart.data.federation import Federation
from fedstart.engines.local import LocalEngine
from fedstart.files import claimed, first_difference, read_json, remove_temporary_files, write_json
from fedstart.models import Model
from fedstart.probes._subject import Probe, Subject
from fedstart.types import Plan, Weights

FILE, CLOCK = "diagnosis.json", "timing.json"
FORMAT = 1


class Progress(Protocol):
    """A bar that counts measurements."""

    def total(self, n: int) -> None: ...

    def advance(self, text: str) -> None: ...


@dataclass(frozen=True, eq=False)
class Patient:
    """A start to be looked at: a name among the others, where it comes from in a few words, and its weights."""

    name: str
    origin: str
    model: Model
    weights: Weights
    others: Mapping[str, Weights] = field(default_factory=dict)

    def describe(self, seed: int) -> dict[str, Any]:
        """Plain values. `fresh_head`: the head is the one that `seed` draws; `layers`: shape of what is trained."""
        fresh = self.model.fresh_head(seed)
        return {
            "name": self.name,
            "origin": self.origin,
            "model": self.model.describe(),
            "weights_sha256": tree.fingerprint(self.weights),
            "others_sha256": {name: tree.fingerprint(weights) for name, weights in self.others.items()},
            "fresh_head": all(torch.equal(self.weights[name], tensor) for name, tensor in fresh.items()),
            "layers": {name: list(self.model.shapes[name]) for name in self.model.parameters},
        }


@dataclass(frozen=True, eq=False)
class Ward:
    """What all starts meet: the federation, clients' local work, and the settings that name them, as plain values."""

    federation: Federation
    plan: Plan
    settings: Mapping[str, Any]


def run(
    patients: Sequence[Patient],
    ward: Ward,
    probes: Mapping[str, Probe],
    engine: LocalEngine,
    out: Path,
    progress: Progress,
) -> None:
    """Measures every probe on every start; writes `diagnosis.json` and `timing.json` (seconds by probe and start).

    What the directory holds of the same starts, settings and versions is not measured again; other probes that it
    holds stay. A probe that cannot be measured leaves its reason, in one line, in place of numbers.

    Raises ValueError where the directory holds another diagnosis or another process works in it, OSError where a file
    cannot be written.
    """
    with claimed(out, "at work"):
        remove_temporary_files(out)
        about = _about(patients, ward)
        book = _Book(out, about, _held(out / FILE, about), _seconds(out / CLOCK))
        progress.total(len(patients) * len(probes))
        for patient in patients:
            # Each subject keeps the updates of all clients, so it is let go before the next is made.
            subject = Subject(patient.model, ward.federation, patient.weights, ward.plan, engine, patient.others)
            for name, probe in probes.items():
                book.enter(name, probe, patient.name, subject)
                progress.advance(f"{patient.name}: {name}")


def measure(probe: Probe, subject: Subject) -> dict[str, Any]:
    """`values`, `rows` and `reason`: None where it was measured, else why not, in one line.

    A number that is NaN or infinite becomes None.
    """
    try:
        found = probe.measure(subject)
    # torch has RuntimeError for much that is no fault of ours: no memory, no second derivative of an operation.
    except (ValueError, RuntimeError, MemoryError) as error:
        lines = str(error).strip().splitlines()
        return {"values": {}, "rows": [], "reason": " ".join(lines[0].split()) if lines else type(error).__name__}
    rows = [{key: _plain(value) for key, value in row.items()} for row in found.rows]
    return {"values": {key: _plain(float(value)) for key, value in found.values.items()}, "rows": rows, "reason": None}


@dataclass
class _Book:
    """The two files of a directory as they grow."""

    out: Path
    about: Mapping[str, Any]
    entries: dict[str, dict[str, Any]]
    seconds: dict[str, dict[str, float]]

    def enter(self, name: str, probe: Probe, start: str, subject: Subject) -> None:
        """Measures and writes; nothing where this was measured with the same settings before."""
        entry = _entry(name, probe)
        held = self.entries.get(name, {"results": []})
        if {key: held.get(key) for key in entry} != entry:
            held = {**entry, "results": []}
        if any(result["start"] == start and result["reason"] is None for result in held["results"]):
            return
        begun = time.perf_counter()
        result = {"start": start, **measure(probe, subject)}
        kept = [other for other in held["results"] if other["start"] != start]
        order = [patient["name"] for patient in self.about["starts"]]
        results = sorted([*kept, result], key=lambda one: order.index(one["start"]))
        self.entries[name] = {**held, "results": results}
        self.seconds.setdefault(name, {})[start] = round(time.perf_counter() - begun, 3)
        write_json(self.out / FILE, {**self.about, "probes": [self.entries[key] for key in sorted(self.entries)]})
        write_json(self.out / CLOCK, {"seconds": {key: self.seconds[key] for key in sorted(self.seconds)}})


def _entry(name: str, probe: Probe) -> dict[str, Any]:
    about = inspect.getdoc(probe) or ""
    settings = asdict(probe)  # pyright: ignore[reportArgumentType]
    return _json({"name": name, "about": about, "cost": probe.cost, "settings": settings})


def _about(patients: Sequence[Patient], ward: Ward) -> dict[str, Any]:
    versions = {"fedstart": __version__, "torch": str(torch.__version__), "python": platform.python_version()}
    return _json(
        {
            "format": FORMAT,
            "starts": [patient.describe(ward.plan.seed) for patient in patients],
            "settings": ward.settings,
            "fingerprints": {"federation": ward.federation.fingerprint},
            "versions": versions,
        }
    )


def _held(path: Path, about: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The probes that a file of the same diagnosis holds, by name."""
    if not path.is_file():
        return {}
    held = read_json(path)
    if not isinstance(held, dict) or not isinstance(held.get("probes"), list):
        raise ValueError(f"{path}: not a diagnosis; choose another directory")
    if [one.get("name") for one in held.get("starts", [])] != [one["name"] for one in about["starts"]]:
        there = ", ".join(str(one.get("name")) for one in held.get("starts", []))
        raise ValueError(f"{path.parent} holds a diagnosis of other starts ({there}); choose another directory")
    # Lists have no inner difference to name, so starts are told apart by their names.
    sides = [{**one, "starts": {start["name"]: start for start in one["starts"]}} for one in (held, about)]
    if difference := first_difference({key: sides[0].get(key) for key in about}, sides[1]):
        raise ValueError(f"{path.parent} holds another diagnosis: {difference}; choose another directory")
    return {entry["name"]: entry for entry in held["probes"]}


def _seconds(path: Path) -> dict[str, dict[str, float]]:
    return dict(read_json(path).get("seconds", {})) if path.is_file() else {}


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json(value: Any) -> Any:
    """As JSON gives it back: tuples as lists."""
    return json.loads(json.dumps(value, allow_nan=False))
