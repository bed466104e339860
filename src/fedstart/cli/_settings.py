"""Settings on the command line: trailing `TABLE.KEY=VALUE` words, and numbers of classes."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedstart import names
from fedstart.data import partitions
from fedstart.engines.execution import Execution
from fedstart.types import Plan

COMMON = ("plan", "method", "model", "partition")
LOCAL = (*COMMON, "execution")
FLOWER = (*COMMON, "patience")


@dataclass(frozen=True)
class Source:
    """Examples and how they are shared out, as the command line names them."""

    data: str
    input: str | None
    label: str | None
    classes: str | None
    partition: str
    clients: int | None
    test_fraction: float = 0.0


@dataclass(frozen=True)
class Chosen:
    """The settings of one run, checked: method, plan and partition are built, `tables` holds what was given."""

    method: Any
    plan: Plan
    partition: Any
    tables: Mapping[str, Mapping[str, Any]]


def choose(
    words: Sequence[str], method: str, methods: Sequence[str], partition: str, allowed: Sequence[str] = LOCAL
) -> Chosen:
    """What `TABLE.KEY=VALUE` words say about a method of the packages `methods`, a plan and a partition.

    The plan has one local epoch where no local work is given. Raises ValueError for unknown names and wrong settings.
    """
    given = tables(words, allowed)
    classes = {name: cls for package in methods for name, cls in names.discover(package).items()}
    build("execution", Execution, given.get("execution", {}))
    work = {} if given["plan"].keys() & {"local_steps", "local_epochs"} else {"local_epochs": 1}
    return Chosen(
        build("method", names.find("method", method, classes), given["method"]),
        build("plan", Plan, {**work, **given["plan"]}),
        build("partition", names.find("partition", partition, partitions.TABLE), given["partition"]),
        given,
    )


def tables(words: Sequence[str], allowed: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`["plan.lr=0.1", "method.balance=1"]` as `{"plan": {"lr": 0.1}, "method": {"balance": 1}, ...}`.

    Every allowed table is there, if only empty. Raises ValueError for a word that is not TABLE.KEY=VALUE, for a
    table that is not allowed and for a setting given twice.
    """
    result: dict[str, dict[str, Any]] = {table: {} for table in allowed}
    for word in words:
        path, equals, text = word.partition("=")
        table, dot, key = path.partition(".")
        if not (equals and dot and key):
            raise ValueError(f"{word!r} is no setting: write TABLE.KEY=VALUE, for instance plan.lr=0.1")
        if table not in result:
            raise names.unknown("table of settings", table, allowed)
        if key in result[table]:
            raise ValueError(f"setting {path!r} is given twice")
        result[table][key] = value(text)
    return result


def value(text: str) -> Any:
    """A value as TOML reads it (`0.1`, `true`, `[64, 32]`, `"quoted"`); `none` is None, all else a bare string."""
    if text.lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def build(table: str, cls: type, settings: Mapping[str, Any]) -> Any:
    """An instance of `cls` from one table of settings; errors name the table."""
    return names.build(cls, settings, f"[{table}]")


def classes(text: str | None, available: int) -> tuple[int, ...]:
    """`"0-4,7"` as `(0, 1, 2, 3, 4, 7)`; all classes for None.

    Raises ValueError for text of another form, a class that does not exist, and fewer than two classes.
    """
    if text is None:
        return tuple(range(available))
    chosen: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"--classes {text!r}: write numbers and ranges, for instance 0-4,7")
        end = int(last if dash else first)
        if end >= available:
            raise ValueError(f"--classes {text!r}: class {end} does not exist (allowed: 0 to {available - 1})")
        chosen.extend(range(int(first), end + 1))
    if len(set(chosen)) < 2:
        raise ValueError(f"--classes {text!r}: at least two different classes are needed")
    return tuple(sorted(set(chosen)))
