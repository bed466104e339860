"""`fedstart list`: everything that has a name, with what it is and its settings."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.text import Text

from fedstart import names
from fedstart.cli._output import Screen

KINDS = ("methods", "starts", "models", "data", "partitions", "studies", "experiments", "probes")
PACKAGES = {
    "methods": "fedstart.algorithms",
    "starts": "fedstart.starts",
    "models": "fedstart.models",
    "experiments": "fedstart.lab.experiments",
    "probes": "fedstart.probes",
}


def entries(kind: str) -> list[dict[str, Any]]:
    """The entries of one kind: `{"name", "about", "settings": [{"name", "type", "default", "description"}]}`.

    Methods also have `leaves`, what leaves a client in each exchange: `[{"name", "returns", "about"}]`.
    Raises ValueError for a kind that is not there.
    """
    if kind not in KINDS:
        raise names.unknown("kind", kind, KINDS)
    if kind == "data":
        from fedstart.data import kinds

        settings = {"synthetic": _settings(kinds.Synthetic)}
        return [_entry(name, about, settings.get(name)) for name, about in kinds.KINDS.items()]
    if kind == "studies":
        from fedstart import study

        return [_entry(name, about) for name, about in study.presets().items()]
    if kind == "experiments":
        from fedstart.cli import _lab

        found = _table(kind)
        return [_entry(name, _about(cls), [s._asdict() for s in _lab.settings(cls)]) for name, cls in found.items()]
    if kind == "methods":
        from fedstart.engines.exchanges import leaving

        return [
            {**_described(name, cls), "leaves": [exchange._asdict() for exchange in leaving(cls)]}
            for name, cls in _table(kind).items()
        ]
    return [_described(name, cls) for name, cls in _table(kind).items()]


def _table(kind: str) -> Mapping[str, type]:
    if kind == "partitions":
        from fedstart.data import partitions

        return partitions.TABLE
    return names.discover(PACKAGES[kind])


def _described(name: str, cls: type) -> dict[str, Any]:
    return _entry(name, _about(cls), _settings(cls))


def _about(cls: type) -> str:
    return " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())


def _settings(cls: type) -> list[dict[str, Any]]:
    return [setting._asdict() for setting in names.describe(cls)]


def _entry(name: str, about: str, settings: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"name": name, "about": about, "settings": settings or []}


def show(kind: str | None, screen: Screen) -> None:
    """Prints one kind with its settings, or the names of every kind."""
    if kind is not None:
        listed = entries(kind)
        screen.answer(listed)
        screen.show(_details(kind, listed))
    elif screen.json:
        screen.answer({name: entries(name) for name in KINDS})
    else:
        screen.show(*(Text.assemble((f"{name:<12}", "bold"), ", ".join(_names(name))) for name in KINDS))


def _names(kind: str) -> Sequence[str]:
    """Names alone: experiments and probes need torch, which takes more than a second to import."""
    if kind in ("experiments", "probes"):
        return names.listed(PACKAGES[kind])
    return [entry["name"] for entry in entries(kind)]


def _details(kind: str, items: list[dict[str, Any]]) -> Group:
    lines: list[Text] = [Text(kind, style="bold")]
    for item in items:
        lines.append(Text.assemble("\n", (item["name"], "bold cyan"), "  ", item["about"]))
        for setting in item["settings"]:
            default = f" = {_written(setting['default'])}" if setting["default"] != "(required)" else " (required)"
            lines.append(Text(f"    {setting['name']}: {setting['type']}{default}   {setting['description']}"))
        for place, exchange in enumerate(item.get("leaves", ()), 1):
            lines.append(Text(f"    exchange {place}: {exchange['returns']} leave each client ({exchange['name']})"))
    return Group(*lines)


def _written(value: Any) -> str:
    return "none" if value is None else json.dumps(value)
