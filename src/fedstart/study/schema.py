"""The tables of a study file, as typed settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from fedstart import names
from fedstart.engines.execution import Execution
from fedstart.study.building import changed, distinct, find, partition, partition_label, plan
from fedstart.study.building import table as table
from fedstart.study.sharing import LeftOut, Sharing, check_cases, personal, sharing
from fedstart.study.tables import Claim, Count, Published, Seed, Selection, Settings, Table, Watch
from fedstart.types import Plan

if TYPE_CHECKING:
    from fedstart.models import Architecture

CLASSES = ("unseen", "seen", "mixed")
Label = Annotated[int, Field(ge=0)]


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
        Count | Annotated[list[Label], Field(min_length=1)] | None,
        Field(description="classes kept for the downstream tasks: the last n, or a list of labels; none = no class"),
    ] = None
    left_out: Annotated[
        LeftOut | None, Field(description="rows kept for the downstream tasks; each value of the column is a case")
    ] = None
    classes: Annotated[
        list[int] | None, Field(description="classes to pre-train on; none = all that are not held out")
    ] = None
    clients: Annotated[Count | None, Field(description="clients; none where the partition fixes them")] = None
    partition: Annotated[Settings, Field(description="name and settings of the partition")]
    withheld: Annotated[float, Field(ge=0, lt=1, description="share of the examples kept from every client")] = 0.0
    plan: Annotated[Settings, Field(description="rounds, cohort, local work, lr, ...")]


class Downstream(Table):
    """`[downstream]`: the tasks that starts are judged by."""

    classes: Annotated[
        Literal["unseen", "seen", "mixed"] | Annotated[list[Label], Field(min_length=1)],
        Field(
            description="what tasks draw from: held-out classes, those pre-trained on, half of each, or these labels"
        ),
    ] = "unseen"
    tasks: Annotated[int, Field(ge=1, description="tasks per seed, the same for every start")] = 10
    classes_per_task: Annotated[int, Field(ge=2, description="classes drawn for each task from the held-out ones")]
    clients: Annotated[Count | None, Field(description="clients per task; none where the partition fixes them")] = None
    test_fraction: Annotated[float, Field(gt=0, lt=1, description="share of each client's examples for its test")] = 0.2
    partitions: Annotated[list[Settings], Field(min_length=1, description="name and settings of each partition")]
    plan: Annotated[Settings, Field(description="rounds, cohort, local work, lr, ...")]
    personal: Annotated[
        Settings | None, Field(description="what differs from the plan where each client fine-tunes the final weights")
    ] = None
    watch: Annotated[Watch | None, Field(description="probes of the weights on the way")] = None

    @field_validator("classes", mode="before")
    @classmethod
    def _known_classes(cls, value: Any) -> Any:
        # Of the words that are allowed pydantic does not say which is the nearest.
        if isinstance(value, str) and value not in CLASSES:
            raise names.unknown("classes", value, CLASSES)
        return value


class Entry(Table):
    """One of `[[starts]]` or `[[algorithms]]`."""

    method: Annotated[str, Field(min_length=1, description="a file of fedstart.algorithms, or of fedstart.starts")]
    name: Annotated[str, Field(min_length=1, description="what the results are called; by default the method")]
    settings: Annotated[Settings, Field(description="settings of the method")] = {}
    plan: Annotated[Settings, Field(description="what differs from the table's plan")] = {}
    pretraining: Annotated[
        Settings | None, Field(description="what differs from [pretraining] for a start: partition, withheld, clients")
    ] = None
    model: Annotated[
        ModelTable | None, Field(description="a start's own architecture, downstream too; none = that of [model]")
    ] = None
    choose: Annotated[
        dict[str, Annotated[list[Any], Field(min_length=1)]] | None,
        Field(min_length=1, description="path into the entry = values to choose from, as [selection] says"),
    ] = None


class Study(Table):
    """A whole study file, its scale and overrides applied, checked as far as that needs no data."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$", description="letters, digits, '-', '_' and '.'")]
    description: str = ""
    scale: Annotated[str, Field(description="the scale that was applied; empty without one")] = ""
    seeds: Annotated[list[Seed], Field(min_length=1)]
    data: Data
    model: ModelTable
    pretraining: Pretraining
    downstream: Downstream
    starts: Annotated[list[Entry], Field(min_length=1)]
    algorithms: Annotated[list[Entry], Field(min_length=1)]
    selection: Selection | None = None
    published: Published | None = None
    claims: list[Claim] = []
    execution: Annotated[
        Settings, Field(description="how the engine computes; what is not given is measured on this machine and chosen")
    ] = {}

    def tables(self) -> dict[str, Any]:
        """Plain values, without what is not set: what the resolved study.toml holds."""
        return self.model_dump(exclude_none=True)


@dataclass(frozen=True)
class Method:
    """An entry with its method and plan built; `start` says that the method is one of fedstart.starts.

    `architecture` is a start's own; None = the study's.
    `personal` is the plan of an algorithm's clients when they fine-tune the final weights; None = they do not.
    """

    entry: Entry
    method: Any
    plan: Plan
    start: bool
    architecture: Architecture | None = None
    personal: Plan | None = None


@dataclass(frozen=True)
class Parts:
    """What a study's tables describe, built; partitions by their labels, methods by the names of their entries.

    `sharing` is how `[pretraining]` shares out its rows, `sharings` how each start does. `probes` look at the weights
    on the way, by name.
    """

    architecture: Architecture
    sharing: Sharing
    sharings: Mapping[str, Sharing]
    downstream_partitions: Mapping[str, Any]
    starts: Mapping[str, Method]
    algorithms: Mapping[str, Method]
    probes: Mapping[str, Any]


def build(study: Study, where: str) -> Parts:
    """Everything that a study names, built from its settings; `where` is the file, which opens every error.

    Raises ValueError for unknown methods, models and partitions (with the nearest name), for settings that are
    unknown or out of range, for names that appear twice, and for an entry whose `choose` is not settled.
    """
    down, starts = f"{where} [[downstream.partitions]]", f"{where} [[starts]]"
    labels = [partition_label(values) for values in study.downstream.partitions]
    distinct(labels, down)
    table(Execution, study.execution, f"{where} [execution]")
    before, after = study.pretraining, study.downstream
    check_cases(before.left_out, before.held_out, after.classes, where)
    shared = partition(before.partition, f"{where} [pretraining.partition]")
    base = Sharing(shared, before.clients, before.withheld, partition_label(before.partition))
    return Parts(
        architecture=_architecture(study.model, f"{where} [model"),
        sharing=base,
        sharings={entry.name: sharing(base, entry.pretraining, f"{starts} {entry.name}") for entry in study.starts},
        downstream_partitions={
            label: partition(values, down) for label, values in zip(labels, after.partitions, strict=True)
        },
        starts=_methods(study.starts, before.plan, f"{where} [pretraining.plan]", starts),
        algorithms={
            name: replace(method, personal=personal(changed(after.plan, method.entry.plan), after.personal, own))
            for name, method in _methods(
                study.algorithms, after.plan, f"{where} [downstream.plan]", f"{where} [[algorithms]]"
            ).items()
            for own in [f"{where} [downstream.personal]"]
        },
        probes=_probes(after.watch.probes if after.watch else {}, f"{where} [downstream.watch.probes"),
    )


def _architecture(given: ModelTable, where: str) -> Architecture:
    """The architecture of a model table; `where` opens every error, up to the table's name."""
    cls = find("model", given.name, names.discover("fedstart.models"), f"{where}] name")
    return table(cls, given.settings, f"{where}.settings]")


def _probes(given: Mapping[str, Settings], where: str) -> dict[str, Any]:
    known = names.discover("fedstart.probes") if given else {}
    return {
        name: table(find("probe", name, known, f"{where}]"), settings, f"{where}.{name}]")
        for name, settings in given.items()
    }


def _methods(entries: Sequence[Entry], base: Settings, base_where: str, where: str) -> dict[str, Method]:
    algorithms = names.discover("fedstart.algorithms")
    starts = names.discover("fedstart.starts") if where.endswith("[[starts]]") else {}
    distinct([entry.name for entry in entries], where)
    plan({}, base, base_where)
    built: dict[str, Method] = {}
    for entry in entries:
        place = f"{where} {entry.name}"
        if entry.pretraining is not None and not where.endswith("[[starts]]"):
            raise ValueError(f"{place} pretraining: not allowed here; it belongs to an entry of [[starts]]")
        if entry.model is not None and not where.endswith("[[starts]]"):
            raise ValueError(f"{place} model: not allowed here; it belongs to an entry of [[starts]]")
        if entry.choose:
            raise ValueError(f"{place} choose: not settled here; only starts of a study that is run can have it")
        cls = find("method", entry.method, {**algorithms, **starts}, f"{place} method")
        own = plan(base, entry.plan, f"{place} plan")
        method = table(cls, entry.settings, f"{place} settings")
        network = None if entry.model is None else _architecture(entry.model, f"{place} [model")
        built[entry.name] = Method(entry, method, own, entry.method in starts, network)
    return built
