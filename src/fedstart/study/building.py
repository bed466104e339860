"""Parts of a study, built from the plain settings of its tables; every error opens with the place of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedstart import names
from fedstart.data import partitions
from fedstart.study.tables import Settings
from fedstart.types import Plan


def table(cls: type[Any], values: Any, where: str) -> Any:
    """`cls` (a settings dataclass or model) from a table; `where` says which: `study.toml [pretraining.plan]`.

    Raises ValueError in one line: `study.toml [pretraining.plan] lr: what is allowed (given: ...)`.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: this must be a table, got {values!r}")
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        problem = names.first_problem(error, cls)
        separator = ": " if problem.startswith("unknown ") or not error.errors()[0]["loc"] else " "
        raise ValueError(f"{where}{separator}{problem}") from None


def partition_label(values: Settings) -> str:
    """What results call a partition: `iid`, `dirichlet(0.5)`, `dirichlet(0.5, minimum=5)`."""
    given = {key: value for key, value in values.items() if key != "name"}
    known = values.get("name") in partitions.TABLE
    first = next(iter(names.describe(partitions.TABLE[values["name"]])), None) if known else None
    shown = [f"{value}" if first and key == first.name else f"{key}={value}" for key, value in given.items()]
    return f"{values.get('name')}({', '.join(shown)})" if shown else str(values.get("name"))


def partition(values: Settings, where: str) -> Any:
    """The partition that a table names. Raises ValueError for a name or setting that is not there."""
    if "name" not in values:
        raise ValueError(f"{where} name: Field required (allowed: {', '.join(sorted(partitions.TABLE))})")
    cls = find("partition", values["name"], partitions.TABLE, f"{where} name")
    return table(cls, {key: value for key, value in values.items() if key != "name"}, where)


def plan(base: Settings, changes: Settings, where: str) -> Plan:
    """The plan of `base` with changes; a change to one kind of local work takes the place of the other kind."""
    if "seed" in changes:
        raise ValueError(f"{where} seed: not allowed here; the seeds of a study are its `seeds`")
    return table(Plan, changed(base, changes), where)


def changed(base: Settings, changes: Settings) -> Settings:
    """The settings of a plan with changes, not yet checked; one kind of local work takes the place of the other."""
    work = {"local_steps", "local_epochs"}
    dropped = work if work & changes.keys() else set()
    return {**{key: value for key, value in base.items() if key not in dropped}, **changes}


def find(kind: str, name: str, choices: Mapping[str, type], where: str) -> type:
    """The class called `name`. Raises ValueError with the nearest name."""
    try:
        return names.find(kind, name, choices)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def distinct(given: Sequence[str], where: str) -> None:
    """Raises ValueError for a name that is there twice."""
    twice = [name for place, name in enumerate(given) if name in given[:place]]
    if twice:
        raise ValueError(f"{where}: {twice[0]!r} is there twice; give each its own name")
