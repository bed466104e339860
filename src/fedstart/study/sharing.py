"""How the rows of pre-training are chosen and shared out, also where a start has its own way; fine-tuning's plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass as settings_dataclass

from fedstart import names
from fedstart.study.building import changed, distinct, partition, partition_label, plan, table
from fedstart.study.tables import Count, Settings, Table
from fedstart.types import STRICT, Plan

LOCAL = ("local_steps", "local_epochs", "batch_size", "lr", "momentum", "weight_decay", "clip", "optimizer")
"""Settings of a plan that say how one client trains once on its own."""


class LeftOut(Table):
    """`[pretraining] left_out`: rows kept for the downstream tasks by what a column says, such as a domain."""

    column: Annotated[str, Field(min_length=1, description="the column")]
    values: Annotated[
        Annotated[list[str | int], Field(min_length=1)] | None,
        Field(description="values left out, one at a time; none = each value of the column"),
    ] = None
    unused: Annotated[list[str | int], Field(description="values whose rows nobody gets")] = []  # noqa: RUF012


@settings_dataclass(frozen=True, config=STRICT)
class Source:
    """`pretraining.data` of a start: other examples than the study's (see `fedstart.data.sources.load`)."""

    source: Annotated[str, Field(min_length=1, description="digits, synthetic[:...], hf:NAME or path:PLACE")]
    input: Annotated[str | None, Field(description="column of the inputs; none = detected")] = None
    label: Annotated[str | None, Field(description="column of the labels; none = detected")] = None


class Changes(Table):
    """`pretraining` of a start: what differs for it from `[pretraining]`."""

    clients: Annotated[Count | None, Field(description="clients")] = None
    partition: Annotated[Settings | None, Field(description="name and settings of the partition")] = None
    withheld: Annotated[float | None, Field(ge=0, lt=1, description="share of the examples kept from every client")] = (
        None
    )
    data: Annotated[
        Source | None, Field(description="pre-train on these instead, all classes; fitted to the shape of the study's")
    ] = None


@dataclass(frozen=True)
class Sharing:
    """How the rows of pre-training are shared out; equal ones make one federation. `label` names the partition.

    `data` are other examples than the study's; None = the study's.
    """

    partition: Any
    clients: int | None
    withheld: float
    label: str
    data: Source | None = None


def check_cases(left_out: LeftOut | None, held_out: object, classes: object, where: str) -> None:
    """That something is left for the downstream tasks, and values are left out once only.

    Raises ValueError where no class is held out and the tasks would need one.
    """
    if left_out is not None and left_out.values is not None:
        distinct([str(value) for value in left_out.values], f"{where} [pretraining] left_out values")
    if held_out is None and classes == "mixed":
        raise ValueError(f"{where} [downstream] classes: 'mixed' draws half of the held-out classes; give held_out")
    if held_out is None and left_out is None and classes == "unseen":
        raise ValueError(
            f"{where} [pretraining]: no class is held out for the downstream tasks; give held_out or left_out, or "
            "downstream.classes = 'seen' or a list of labels"
        )


def sharing(base: Sharing, changes: Settings | None, where: str) -> Sharing:
    """The sharing of `[pretraining]` with what a start changes of it; `where` is the start's place in the file.

    Raises ValueError for a setting that is unknown or out of range.
    """
    if changes is None:
        return base
    if isinstance(changes.get("data"), Mapping):
        changes = {**changes, "data": table(Source, changes["data"], f"{where} pretraining.data")}
    given: Changes = table(Changes, changes, f"{where} pretraining")
    other = given.partition
    return Sharing(
        partition=base.partition if other is None else partition(other, f"{where} pretraining.partition"),
        clients=base.clients if given.clients is None else given.clients,
        withheld=base.withheld if given.withheld is None else given.withheld,
        label=base.label if other is None else partition_label(other),
        data=given.data,
    )


def personal(base: Settings, changes: Settings | None, where: str) -> Plan | None:
    """The plan of clients that fine-tune the final weights on their own; None if they do not.

    Raises ValueError for a setting that has no meaning there, such as rounds, and for one out of its range.
    """
    if changes is None:
        return None
    for name in changes:
        if name not in LOCAL:
            raise ValueError(f"{where}: {names.unknown('setting', name, LOCAL)}")
    return plan(changed(base, changes), {}, where)
