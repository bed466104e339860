"""Reading a study: a preset or a TOML file, with its scale and the overrides of the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from fedstart import names
from fedstart.study import claims, published, selection
from fedstart.study.schema import Data, Downstream, Entry, ModelTable, Pretraining, Study, table
from fedstart.study.sharing import LeftOut
from fedstart.study.tables import Claim, Published, Selection, Watch

_TABLES = {
    "data": Data,
    "model": ModelTable,
    "pretraining": Pretraining,
    "downstream": Downstream,
    "selection": Selection,
    "published": Published,
}
_LISTS = ("starts", "algorithms")


def presets() -> dict[str, str]:
    """The studies that come with fedstart: name and description."""
    return {name: tomllib.loads(file.read_text("utf-8"))["description"] for name, file in _files().items()}


def load(name_or_path: str | Path, scale: str | None = None, overrides: Sequence[str] = ()) -> Study:
    """The study of a preset's name or a TOML file, checked as far as that needs no data.

    A file that `extends` another (a preset's name or a path) says what differs from it, scales included; a list takes
    the place of the other's, and what the other's scales say of its entries then goes too. "none" takes a setting out.
    `scale` chooses one of the file's `[scales.NAME]` tables, by default the one that its key `scale` names.
    `overrides` are `path.to.key=value` with values as TOML writes them (what is no TOML value is a string;
    `none` takes a setting out); entries of `[[starts]]` and `[[algorithms]]` go by their names, as in
    `starts.coprefl.settings.balance=0.25`.

    Raises ValueError in one line that names file, table and key, and the nearest name for an unknown one.
    """
    raw, where = _extended(*_read(name_or_path))
    scales = raw.pop("scales", {})
    if not isinstance(scales, Mapping) or not all(isinstance(changes, Mapping) for changes in scales.values()):
        raise ValueError(f"{where} [scales]: these must be tables")
    chosen = raw.get("scale", "") if scale is None else scale
    if chosen not in scales and (scale is not None or (chosen and scales)):
        raise ValueError(f"{where}: {names.unknown('scale', chosen, scales)}")
    raw = _merge(raw, scales.get(chosen, {}), f"{where} [scales.{chosen}]") | ({"scale": chosen} if chosen else {})
    given: dict[str, Any] = {}
    for override in overrides:
        _put(given, override)
    return _study(_merge(raw, given, "settings"), where)


def _files() -> dict[str, Traversable]:
    folder = resources.files("fedstart.study") / "presets"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {file.name.removesuffix(".toml"): file for file in files}


def _read(name_or_path: str | Path) -> tuple[dict[str, Any], str]:
    path = Path(name_or_path).expanduser()
    known = _files()
    if str(name_or_path) in known:
        text, where = known[str(name_or_path)].read_text("utf-8"), f"{name_or_path}.toml"
    elif path.suffix == ".toml" or path.is_file():
        where = str(name_or_path)
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
            raise ValueError(f"{where}: cannot be read: {reason}") from None
    else:
        raise ValueError(f"{names.unknown('study', str(name_or_path), known)}, or the path of a TOML file")
    try:
        return tomllib.loads(text), where
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where}: not valid TOML: {error}") from None


def _extended(raw: dict[str, Any], where: str, before: tuple[str, ...] = ()) -> tuple[dict[str, Any], str]:
    """The tables of a file with those that it `extends` below them."""
    base = raw.pop("extends", None)
    if base is None:
        return raw, where
    if not isinstance(base, str) or base in before:
        raise ValueError(f"{where} extends: the name or path of another study is needed (given: {base!r})")
    try:
        place = Path(where).parent / base if base.endswith(".toml") else base
        below, _ = _extended(*_read(place), (*before, base))
    except ValueError as error:
        raise ValueError(f"{where} extends: {error}") from None
    for changes in below.get("scales", {}).values():
        for name in _LISTS:
            if name in raw:
                changes.pop(name, None)
    return _merge(below, _with_nothing(raw), where), where


def _with_nothing(value: Any) -> Any:
    """The tables with None for what says "none": TOML has no word for it."""
    if isinstance(value, Mapping):
        return {key: _with_nothing(held) for key, held in value.items()}
    return None if value == "none" else value


def _put(given: dict[str, Any], override: str) -> None:
    """Puts `a.b=3` into nested tables: `{"a": {"b": 3}}`."""
    path, equals, text = override.partition("=")
    *outer, last = [step.strip() for step in path.split(".")]
    if not equals or not all([*outer, last]):
        raise ValueError(f"setting {override!r}: write path.to.key=value, for instance downstream.plan.rounds=3")
    for step in outer:
        given = given.setdefault(step, {})
        if not isinstance(given, dict):
            raise ValueError(f"setting {override!r}: {step!r} is already set to {given!r}")
    given[last] = _value(text.strip(), override)


def _value(text: str, override: str) -> Any:
    if text.lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        if not text or text[0] in "\"'[{":
            raise ValueError(f"setting {override!r}: not a TOML value: {error}") from None
        return text


def _merge(base: Any, changes: Any, where: str) -> Any:
    """`base` with `changes`, deep. A table of changes to a list goes by the entries' names; None takes a key out."""
    if isinstance(base, list) and isinstance(changes, Mapping) and all(isinstance(entry, Mapping) for entry in base):
        known = [str(entry.get("name", entry.get("method"))) for entry in base]
        for name in changes:
            if name not in known:
                raise ValueError(f"{where}: {names.unknown('entry', name, known)}")
        return [_merge(entry, changes.get(name, {}), where) for name, entry in zip(known, base, strict=True)]
    if not isinstance(changes, Mapping):
        return changes
    kept = _without_orphans(base, changes) if isinstance(base, Mapping) else {}
    merged = {**kept, **{key: _merge(kept.get(key), value, where) for key, value in changes.items()}}
    return {key: value for key, value in merged.items() if value is not None}


def _without_orphans(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` without the settings that belong to a model, partition or method which the changes replace."""
    dropped: set[str] = set()
    if changes.keys() & {"local_steps", "local_epochs"}:
        dropped = {"local_steps", "local_epochs"}
    elif changes.get("method", base.get("method")) != base.get("method"):
        dropped = {"settings", "choose"}
    elif not base.keys() & {"seeds", "method"} and changes.get("name", base.get("name")) != base.get("name"):
        dropped = set(base)
    kept = {key: value for key, value in base.items() if key not in dropped}
    if isinstance(kept.get("choose"), Mapping) and "method" in base:
        left = {path: values for path, values in kept["choose"].items() if not _sets(changes, path)}
        kept = {**kept, "choose": left or None}
    return kept


def _sets(changes: Mapping[str, Any], path: str) -> bool:
    """Whether changes to an entry say what is at a path."""
    value: Any = changes
    for step in path.split("."):
        if not isinstance(value, Mapping) or step not in value:
            return False
        value = value[step]
    return True


def _study(raw: Mapping[str, Any], where: str) -> Study:
    built: dict[str, Any] = dict(raw)
    if isinstance(raw.get("selection"), str):
        raw = {**raw, "selection": {"rule": raw["selection"]}}
    for name, cls in _TABLES.items():
        if name in raw:
            built[name] = table(cls, _nested(name, raw[name], where), f"{where} [{name}]")
    for name in _LISTS:
        if isinstance(raw.get(name), list):
            built[name] = [_entry(entry, f"{where} [[{name}]]", number) for number, entry in enumerate(raw[name], 1)]
    if isinstance(raw.get("claims"), list):
        built["claims"] = [
            table(Claim, claim, f"{where} [[claims]] number {n}") for n, claim in enumerate(raw["claims"], 1)
        ]
    study = table(Study, built, where)
    selection.check(study, where)
    published.check(study, where)
    claims.check(study, where)
    return study


def _nested(name: str, values: Any, where: str) -> Any:
    """A table with the one inside it built before, so that an error names its keys."""
    key, cls = {"pretraining": ("left_out", LeftOut), "downstream": ("watch", Watch)}.get(name, ("", None))
    if cls is None or not isinstance(values, Mapping) or key not in values:
        return values
    return {**values, key: table(cls, values[key], f"{where} [{name}.{key}]")}


def _entry(entry: Any, where: str, number: int) -> Entry:
    named = {"name": entry["method"], **entry} if isinstance(entry, Mapping) and "method" in entry else entry
    return table(Entry, named, f"{where} number {number}")
