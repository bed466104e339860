"""Tables of a study file that say what is asked of its results: how settings are chosen, and what the paper claims."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Settings = dict[str, Any]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Number = str | int | float
"""A value of a column of the published tables."""


class Table(BaseModel):
    """A table of a study file: unknown keys, NaN and infinity are refused, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class Selection(Table):
    """`[selection]`: how starts with `choose` are settled; see `fedstart.study.selection`."""

    rule: Annotated[
        Literal["validation", "paper"],
        Field(description="tasks of classes taken out of the pre-training classes; or the downstream tasks themselves"),
    ] = "validation"
    classes: Annotated[int, Field(ge=2, description="validation classes: the last of the pre-training classes")] = 20
    tasks: Annotated[int, Field(ge=1, description="validation tasks per seed")] = 5
    seeds: Annotated[
        list[Seed] | None, Field(min_length=1, description="seeds of the validation tasks; none = the study's first")
    ] = None


class Published(Table):
    """`[published]`: which rows of the paper's tables stand beside the results; see `fedstart.study.published`."""

    table: Annotated[
        str | Annotated[list[str], Field(min_length=1)],
        Field(description="a table of the paper, or several: the first that has a row counts"),
    ]
    where: Annotated[dict[str, Number], Field(description="column = value of the rows that count")] = {}
    rows: Annotated[
        dict[str, str | dict[str, Number]],
        Field(min_length=1, description="name of a start = the paper's method, or a table of columns"),
    ]
    algorithms: Annotated[
        dict[str, str] | None,
        Field(description="name of an algorithm = downstream_algorithm; none = those of the same name"),
    ] = None
    partitions: Annotated[
        dict[str, str | dict[str, Number]] | None,
        Field(description="partition = downstream_distribution, or a table of columns; none = iid and dirichlet(0.5)"),
    ] = None

    @field_validator("table", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        # Most tables have a bare number, which TOML reads as one.
        return [str(one) for one in value] if isinstance(value, list) else str(value)


class Watch(Table):
    """`[downstream.watch]`: probes of each task's weights on the way to the end; see `fedstart.study.watching`."""

    at: Annotated[
        list[Annotated[float, Field(ge=0, lt=1)]],
        Field(min_length=1, description="shares of the rounds after which to look; 0 = at the start"),
    ]
    probes: Annotated[dict[str, Settings], Field(min_length=1, description="probe = its settings")]


class Claim(Table):
    """One of `[[claims]]`: that `first` is better than `second`; see `fedstart.study.claims`.

    Two starts; with `start` given two algorithms, both from that start. `more_than` is another start, from which the
    difference is said to be smaller.
    """

    text: Annotated[str, Field(min_length=1, description="the claim in a sentence")]
    source: Annotated[str, Field(description="where it is claimed")] = ""
    score: Annotated[
        Literal["mean", "variance", "worst10", "worst20", "worst30"],
        Field(description="what is compared; better is higher, for the variance lower"),
    ] = "mean"
    first: Annotated[str, Field(description="the start, or algorithm, that is said to be better")]
    second: Annotated[str, Field(description="the start, or algorithm, that it is compared with")]
    start: Annotated[str | None, Field(description="compare two algorithms from this start; none = two starts")] = None
    more_than: Annotated[
        str | None, Field(description="with start: that the difference is larger than from this other start")
    ] = None
    algorithm: Annotated[str | None, Field(description="only under this algorithm; none = each")] = None
    partition: Annotated[str | None, Field(description="only on this partition; none = each")] = None
