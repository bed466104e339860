"""The tables of a study file, as typed settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fedstart import names
from fedstart.data import partitions
from fedstart.engines.execution import Execution
from fedstart.types import Plan

if TYPE_CHECKING:
    from fedstart.models import Architecture

Settings = dict[str, Any]
Count = Annotated[int, Field(ge=1)]


class Table(BaseModel):
    """A table of a study file: unknown keys, NaN and infinity are refused, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class Data(Table):
    """`[data]`: where the examples come from (see `fedstart.data.sources.load`)."""

    source: Annotated[str, Field(min_length=1, description="digits, synthetic[:...], hf:NAME or path:PLACE")]
    input: Annotated[str | None, Field(description="column of the inputs; none = detected")] = None
    label: Annotated[str | None, Field(description="column of the labels; none = detected")] = None
    columns: Annotated[list[str], Field(description="further columns that partitions use")] = []
    merge: Annotated[bool, Field(description="pool the official train and test rows before splitting")] = True


class ModelTable(Table):
    """`[model]`: an architecture and its settings."""

    name: Annotated[str, Field(description="a file of fedstart.models")]
    settings: Annotated[Settings, Field(description="settings of the architecture")] = {}


class Pretraining(Table):
    """`[pretraining]`: the federation that starts are made on."""

    held_out: Annotated[
        Count | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)],
        Field(description="classes kept for the downstream tasks: the last n, or a list of labels"),
    ]
    classes: Annotated[
        list[int] | None, Field(description="classes to pre-train on; none = all that are not held out")
    ] = None
    clients: Annotated[Count | None, Field(description="clients; none where the partition fixes them")] = None
    partition: Annotated[Settings, Field(description="name and settings of the partition")]
    withheld: Annotated[float, Field(ge=0, lt=1, description="share of the examples kept from every client")] = 0.0
    plan: Annotated[Settings, Field(description="rounds, cohort, local work, lr, ...")]


class Downstream(Table):
    """`[downstream]`: the tasks that starts are judged by."""

    tasks: Annotated[int, Field(ge=1, description="tasks per seed, the same for every start")] = 10
    classes_per_task: Annotated[int, Field(ge=2, description="classes drawn for each task from the held-out ones")]
    clients: Annotated[Count | None, Field(description="clients per task; none where the partition fixes them")] = None
    test_fraction: Annotated[float, Field(gt=0, lt=1, description="share of each client's examples for its test")] = 0.2
    partitions: Annotated[list[Settings], Field(min_length=1, description="name and settings of each partition")]
    plan: Annotated[Settings, Field(description="rounds, cohort, local work, lr, ...")]


class Entry(Table):
    """One of `[[starts]]` or `[[algorithms]]`."""

    method: Annotated[str, Field(min_length=1, description="a file of fedstart.algorithms, or of fedstart.starts")]
    name: Annotated[str, Field(min_length=1, description="what the results are called; by default the method")]
    settings: Annotated[Settings, Field(description="settings of the method")] = {}
    plan: Annotated[Settings, Field(description="what differs from the table's plan")] = {}


class Study(Table):
    """A whole study file, its scale and overrides applied, checked as far as that needs no data."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$", description="letters, digits, '-', '_' and '.'")]
    description: str = ""
    scale: Annotated[str, Field(description="the scale that was applied; empty without one")] = ""
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=1)]
    data: Data
    model: ModelTable
    pretraining: Pretraining
    downstream: Downstream
    starts: Annotated[list[Entry], Field(min_length=1)]
    algorithms: Annotated[list[Entry], Field(min_length=1)]
    execution: Annotated[
        Settings, Field(description="how the engine computes; what is not given is measured on this machine and chosen")
    ] = {}

    def tables(self) -> dict[str, Any]:
        """Plain values, without what is not set: what the resolved study.toml holds."""
        return self.model_dump(exclude_none=True)


@dataclass(frozen=True)
class Method:
    """An entry with its method and plan built; `start` says that the method is one of fedstart.starts."""

    entry: Entry
    method: Any
    plan: Plan
    start: bool


@dataclass(frozen=True)
class Parts:
    """What a study's tables describe, built; partitions by their labels, methods by the names of their entries."""

    architecture: Architecture
    pretraining_partition: Any
    downstream_partitions: Mapping[str, Any]
    starts: Mapping[str, Method]
    algorithms: Mapping[str, Method]


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


def build(study: Study, where: str) -> Parts:
    """Everything that a study names, built from its settings; `where` is the file, which opens every error.

    Raises ValueError for unknown methods, models and partitions (with the nearest name), for settings that are
    unknown or out of range, and for names that appear twice.
    """
    down = f"{where} [[downstream.partitions]]"
    labels = [partition_label(values) for values in study.downstream.partitions]
    _distinct(labels, down)
    table(Execution, study.execution, f"{where} [execution]")
    architecture = _find("model", study.model.name, names.discover("fedstart.models"), f"{where} [model] name")
    return Parts(
        architecture=table(architecture, study.model.settings, f"{where} [model.settings]"),
        pretraining_partition=_partition(study.pretraining.partition, f"{where} [pretraining.partition]"),
        downstream_partitions={
            label: _partition(values, down) for label, values in zip(labels, study.downstream.partitions, strict=True)
        },
        starts=_methods(study.starts, study.pretraining.plan, f"{where} [pretraining.plan]", f"{where} [[starts]]"),
        algorithms=_methods(
            study.algorithms, study.downstream.plan, f"{where} [downstream.plan]", f"{where} [[algorithms]]"
        ),
    )


def partition_label(values: Settings) -> str:
    """What results call a partition: `iid`, `dirichlet(0.5)`, `dirichlet(0.5, minimum=5)`."""
    given = {key: value for key, value in values.items() if key != "name"}
    first = next(iter(names.describe(partitions.TABLE[values["name"]])), None) if _is_known(values) else None
    shown = [f"{value}" if first and key == first.name else f"{key}={value}" for key, value in given.items()]
    return f"{values.get('name')}({', '.join(shown)})" if shown else str(values.get("name"))


def _is_known(values: Settings) -> bool:
    return values.get("name") in partitions.TABLE


def _partition(values: Settings, where: str) -> Any:
    if "name" not in values:
        raise ValueError(f"{where} name: Field required (allowed: {', '.join(sorted(partitions.TABLE))})")
    cls = _find("partition", values["name"], partitions.TABLE, f"{where} name")
    return table(cls, {key: value for key, value in values.items() if key != "name"}, where)


def _methods(entries: Sequence[Entry], base: Settings, base_where: str, where: str) -> dict[str, Method]:
    algorithms = names.discover("fedstart.algorithms")
    starts = names.discover("fedstart.starts") if where.endswith("[[starts]]") else {}
    _distinct([entry.name for entry in entries], where)
    _plan({}, base, base_where)
    built: dict[str, Method] = {}
    for entry in entries:
        place = f"{where} {entry.name}"
        cls = _find("method", entry.method, {**algorithms, **starts}, f"{place} method")
        plan = _plan(base, entry.plan, f"{place} plan")
        method = table(cls, entry.settings, f"{place} settings")
        built[entry.name] = Method(entry, method, plan, entry.method in starts)
    return built


def _plan(base: Settings, changes: Settings, where: str) -> Plan:
    """The plan of `base` with changes; a change to one kind of local work takes the place of the other kind."""
    if "seed" in changes:
        raise ValueError(f"{where} seed: not allowed here; the seeds of a study are its `seeds`")
    work = {"local_steps", "local_epochs"}
    dropped = work if work & changes.keys() else set()
    return table(Plan, {**{key: value for key, value in base.items() if key not in dropped}, **changes}, where)


def _find(kind: str, name: str, choices: Mapping[str, type], where: str) -> type:
    try:
        return names.find(kind, name, choices)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _distinct(given: Sequence[str], where: str) -> None:
    twice = [name for place, name in enumerate(given) if name in given[:place]]
    if twice:
        raise ValueError(f"{where}: {twice[0]!r} is there twice; give each its own name")
