"""The report of a diagnosis: `diagnosis.json` of a directory, checked, as sections of the page and tables beside it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedstart.files import read_json
from fedstart.report.page import Block, Detail, Report, Section
from fedstart.report.record import Record
from fedstart.report.style import Drawing, legend, looks, plot, shortened
from fedstart.report.tables import Column, Table, table
from fedstart.report.words import duration, plural

Diagnosis = Mapping[str, Any]

FILE = "diagnosis.json"
LANES = 40
"""At most this many layers are drawn; the table has all."""
_FIGURES = (
    ("misalignment", "share", "misaligned share of filters"),
    ("drift", "distance_to_weights", "client drift / length of the weights"),
    ("movement", "to_end_relative", "distance to the end / length of the end"),
)
_FIRST = (
    ("heads", "class_means_accuracy", "features: accuracy of class means, %", "higher"),
    ("agreement", "mean", "cosine of two clients' updates", "higher"),
    ("diversity", "diversity", "gradient diversity", "lower"),
    ("misalignment", "share", "misaligned share of filters", "lower"),
    ("label_skew", "lost", "accuracy that label skew costs in a round, points", "not known"),
    ("drift", "distance_to_weights", "client drift / length of the weights", "not known"),
    ("hessian", "top_eigenvalue", "largest eigenvalue of the Hessian", "not known"),
    ("dead_filters", "dead", "dead share of filters", "not known"),
)
"""What to look at first: probe, quantity, in words, and what goes with higher accuracy after training."""
_NEEDED = {"starts": list, "settings": dict, "fingerprints": dict, "versions": dict, "probes": list}
_START = {"name": str, "origin": str, "weights_sha256": str, "model": dict, "layers": dict, "fresh_head": bool}
_PROBE = {"name": str, "about": str, "cost": str, "settings": dict, "results": list}
_RESULT = {"start": str, "values": dict, "rows": list}
_PLAIN = re.compile(r"[a-z][a-z0-9_]*")


def held(directory: Path) -> bool:
    """True for a directory with a diagnosis."""
    return (directory / FILE).is_file()


def report(directory: Path) -> Report:
    """The whole report of a diagnosis; draws, so it is called within `style.applied`.

    Raises ValueError, naming file and key, for a file that is not what `fedstart diagnose` writes.
    """
    found = _checked(directory / FILE)
    timing = directory / "timing.json"
    clock = read_json(timing) if timing.exists() else {}
    record = Record(directory, "diagnosis", directory.resolve().name, "", {}, clock, (), ())
    values, first = _values(record, found), _first(record, found)
    layers = {probe["name"]: rows for probe in found["probes"] if (rows := _rows(record, found, probe)) is not None}
    tables = [*(made for made in (first, values) if made.rows), *layers.values()]
    files = {f"tables/{name}": data for made in tables for name, data in made.files().items()}
    sections = [Section("answer", "", _lead(found), (Block("", (), (first,) if first.rows else ()),))]
    if missing := tuple(_missing(found)):
        sections.append(Section("missing", "Not measured", missing, ()))
    drawings = tuple(drawing for what in _FIGURES if (drawing := _lanes(found, *what)) is not None)
    if drawings:
        text = "Convolutions and linear layers in the order of the network; the tables below have every tensor."
        sections.append(Section("layers", "Layer by layer", (text,), (Block("", drawings),)))
    blocks = tuple(_block(probe, layers.get(probe["name"]), _seconds(clock, probe)) for probe in found["probes"])
    whole = (Detail(f"All {plural(len(values.rows), 'number')}", "", values),) if values.rows else ()
    sections.append(Section("probes", "Probes and what they cost", (), (Block("", details=whole), *blocks)))
    return Report(record, [*sections, _details(found, clock)], files)


def _lead(found: Diagnosis) -> tuple[str, ...]:
    names = [start["name"] for start in found["starts"]]
    whole = [probe for probe in found["probes"] if len(_measured(probe)) == len(names)]
    count = f"{len(whole)} of {plural(len(found['probes']), 'probe')}"
    who = f"{names[0]} and {names[1]}, side by side" if len(names) == 2 else names[0]
    settings = found["settings"]
    shared = settings.get("partition", {}).get("name", "")
    where = f"On {settings.get('data', '')}, {settings.get('clients', '')} clients ({shared})"
    kinds = ", ".join(
        f"{start['name']} is {start['origin']} ({start['model'].get('name')})" for start in found["starts"]
    )
    lead = [f"{who}: {count} measured.", f"{where}: {kinds}."]
    fresh = [start["name"] for start in found["starts"] if start["fresh_head"]]
    if fresh:
        lead.append(f"The head of {' and of '.join(fresh)} is fresh, drawn by the seed: the start has none that fits.")
    return tuple(lead)


def _first(record: Record, found: Diagnosis) -> Table:
    """The few numbers to look at first, a column for each start; those that were not measured are left out."""
    names = [start["name"] for start in found["starts"]]
    measured = {probe["name"]: _measured(probe) for probe in found["probes"]}
    rows: list[dict[str, Any]] = []
    for probe, key, words, better in _FIRST:
        own = {f"start {name}": result["values"].get(key) for name, result in measured.get(probe, {}).items()}
        if any(number is not None for number in own.values()):
            rows.append({"what": words, **own, "better": better, "probe": probe})
    columns = [Column("what", "what", words=True), *(Column(f"start {name}", name, _number) for name in names)]
    columns += [Column("better", "better", words=True), Column("probe", "probe")]
    caption = (
        "What to look at first. Better goes with higher accuracy after training: measured on six starts of CIFAR-10 "
        "(docs/results/initialization-matters.md), for misalignment by the theory of arXiv:2502.08024. Single "
        "measurements, without intervals."
    )
    return table(record, "first", caption, columns, rows)


def _values(record: Record, found: Diagnosis) -> Table:
    """A row for each number of each probe, a column for each start."""
    names = [start["name"] for start in found["starts"]]
    rows: list[dict[str, Any]] = []
    for probe in found["probes"]:
        results = _measured(probe)
        for key in dict.fromkeys(key for result in results.values() for key in result["values"]):
            numbers = {f"start {name}": results[name]["values"].get(key) for name in names if name in results}
            rows.append({"probe": probe["name"], "quantity": key, **numbers})
    columns = [Column("probe", "probe"), Column("quantity", "quantity", _spaced, words=True)]
    columns += [Column(f"start {name}", name, _number) for name in names]
    caption = "What the probes measured; below, each probe says what its quantities are."
    return table(record, "diagnosis", caption, columns, rows)


def _rows(record: Record, found: Diagnosis, probe: Mapping[str, Any]) -> Table | None:
    """The rows of a probe; those of one layer stand together, start below start. None without rows."""
    results = _measured(probe)
    rows = [{**row, "start": name} for name, result in results.items() for row in result["rows"]]
    if not rows:
        return None
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ("start", "layer")]
    layered = all("layer" in row for row in rows)
    if layered:
        place = {layer: number for number, layer in enumerate(dict.fromkeys(row["layer"] for row in rows))}
        rows.sort(key=lambda row: place[row["layer"]])
    wordy = {key for key in keys if any(isinstance(row.get(key), str) for row in rows)}
    columns = [Column("layer", "layer")] if layered else []
    columns.append(Column("start", "start"))
    for key in keys:
        title = _spaced(key)
        columns.append(Column(key, title) if key in wordy else Column(key, title, _number))
    return table(record, f"probe-{probe['name']}", f"Rows of {probe['name']}.", columns, rows)


def _lanes(found: Diagnosis, name: str, key: str, title: str) -> Drawing | None:
    """Horizontal bars, a group for each layer and a bar for each start; None where nothing was measured."""
    results = next((_measured(probe) for probe in found["probes"] if probe["name"] == name), {})
    kept = {
        start: {row["layer"]: row[key] for row in result["rows"] if _is_drawn(found, row, key)}
        for start, result in results.items()
    }
    layers = list(dict.fromkeys(layer for own in kept.values() for layer in own))
    if not layers:
        return None
    shown = layers[:LANES]
    starts = [start["name"] for start in found["starts"] if start["name"] in kept]
    figure, axes = plot(0.7 + 0.3 * len(shown), starts)
    height = 0.8 / len(starts)
    for number, (start, look) in enumerate(looks(starts, "random").items()):
        places = [place for place, layer in enumerate(shown) if layer in kept[start]]
        middles = [place - 0.4 + (number + 0.5) * height for place in places]
        values = [kept[start][shown[place]] for place in places]
        axes.barh(middles, values, height=height, color=look.colour, label=start)
    axes.set_yticks(range(len(shown)), [shortened(layer, 22) for layer in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel(title)
    legend(figure, axes)
    cut = f" The first {LANES} of {len(layers)} layers." if len(layers) > LANES else ""
    words = [
        f"{layer}: " + ", ".join(f"{start} {_number(kept[start].get(layer))}" for start in starts) for layer in shown
    ]
    caption = f"{title[0].upper()}{title[1:]}, by layer (probe {name}, {key})."
    return Drawing(f"layers-{name}", figure, f"{caption}{cut}", f"{caption} {'; '.join(words)}.")


def _is_drawn(found: Diagnosis, row: Mapping[str, Any], key: str) -> bool:
    """True for a number of a tensor that has filters; norms and biases are in the table alone."""
    if "layer" not in row or row.get(key) is None:
        return False
    shapes = [start["layers"][row["layer"]] for start in found["starts"] if row["layer"] in start["layers"]]
    return not shapes or len(shapes[0]) > 1


def _block(probe: Mapping[str, Any], rows: Table | None, seconds: str) -> Block:
    first, _, more = probe["about"].partition("\n\n")
    about = " ".join(first.split())
    details = [Detail("What it measures, in full", probe["about"])] if more else []
    if rows is not None:
        details.append(Detail(f"{plural(len(rows.rows), 'row')}", "", rows))
    if probe["settings"]:
        details.append(Detail("Settings", _pretty(probe["settings"])))
    return Block(probe["name"], (), (), f"{about} Cost: {probe['cost']}.{seconds}", tuple(details))


def _seconds(clock: Mapping[str, Any], probe: Mapping[str, Any]) -> str:
    taken = clock.get("seconds", {}).get(probe["name"], {})
    measured = _measured(probe)
    words = ", ".join(f"{start} {duration(value)}" for start, value in taken.items() if start in measured)
    return f" Measured time: {words}." if words else ""


def _details(found: Diagnosis, clock: Mapping[str, Any]) -> Section:
    starts = [{key: value for key, value in start.items() if key != "layers"} for start in found["starts"]]
    details = [
        Detail("Starts", _pretty(starts)),
        Detail("Settings", _pretty(found["settings"])),
        Detail("Versions and data fingerprints", _pretty({key: found[key] for key in ("versions", "fingerprints")})),
    ]
    if clock:
        details.append(Detail("Time, in seconds", _pretty(clock.get("seconds", {}))))
    text = (
        "The first of the probes that need clients' updates trains the clients; the others of that start share its "
        "work, and so take less time than they say."
    )
    return Section("details", "Settings and versions", (text,), (Block("", (), (), details=tuple(details)),))


def _missing(found: Diagnosis) -> Iterator[str]:
    for probe in found["probes"]:
        results = {result["start"]: result for result in probe["results"]}
        reasons: dict[str, list[str]] = {}
        for start in found["starts"]:
            name = start["name"]
            if name not in results:
                reasons.setdefault("stopped before it was measured", []).append(name)
            elif results[name]["reason"] is not None:
                reasons.setdefault(results[name]["reason"], []).append(name)
        yield from (f"{probe['name']} ({', '.join(names)}): {reason}" for reason, names in reasons.items())


def _measured(probe: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The results with numbers, by start."""
    return {result["start"]: result for result in probe["results"] if result["reason"] is None}


def _spaced(key: str) -> str:
    return key.replace("_", " ")


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e9):
        return f"{int(value):,}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def _checked(path: Path) -> Diagnosis:
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: a JSON object is needed, got {type(found).__name__}")
    if found.get("format") != 1:
        raise ValueError(f"{path}: format {found.get('format')!r} is not known (allowed: 1)")
    _check(path, "the file", [found], _NEEDED)
    _check(path, "starts", found["starts"], _START)
    _check(path, "probes", found["probes"], _PROBE)
    if not found["starts"]:
        raise ValueError(f"{path}: there is no start in it")
    names = [start["name"] for start in found["starts"]]
    for probe in found["probes"]:
        if not _PLAIN.fullmatch(probe["name"]):
            raise ValueError(f"{path}: the name {probe['name']!r} of a probe must be in small letters")
        _check(path, f"results of {probe['name']}", probe["results"], _RESULT)
        for result in probe["results"]:
            if result["start"] not in names or not isinstance(result.get("reason"), str | None):
                raise ValueError(f"{path}: a result of {probe['name']} has no start of this file, or no reason")
            _check(path, f"rows of {probe['name']}", result["rows"], {})
            for row in (result["values"], *result["rows"]):
                _check_flat(path, probe["name"], row, words=row is not result["values"])
    return found


def _check(path: Path, where: str, entries: Sequence[Any], needed: Mapping[str, type]) -> None:
    for entry in entries:
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: {where} must be tables, got {type(entry).__name__}")
        for key, kind in needed.items():
            if not isinstance(entry.get(key), kind):
                raise ValueError(f"{path}: {where}: {key!r} must be a {kind.__name__}")


def _check_flat(path: Path, probe: str, row: Mapping[str, Any], words: bool) -> None:
    for key, value in row.items():
        number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
        if not (value is None or number or (words and isinstance(value, str))):
            raise ValueError(f"{path}: {key!r} of {probe} is no finite number{' and no text' if words else ''}")


def _pretty(value: object) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
