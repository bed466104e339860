"""The settings of an app: Flower's flat run config, as typed tables.

A key is `TABLE.SETTING`, for instance `plan.rounds`. Flower allows true and false, numbers and strings only, so a
list is a string that holds TOML (`"[16, 32]"`) and nothing is the string `"none"`.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass as settings_dataclass

from fedstart import names
from fedstart.data import partitions
from fedstart.engines.members import Patience
from fedstart.models import Model, load_architecture
from fedstart.starts.checkpoint import Checkpoint
from fedstart.types import STRICT, Algorithm, Plan, Weights

TABLES = ("run", "plan", "settings", "model", "data", "federation", "partition", "patience")
UNKNOWN = "unknown to the server"


@settings_dataclass(frozen=True, config=STRICT)
class RunTable:
    """`run.*`: what is trained, from where, and where the result goes on the server's machine."""

    method: Annotated[str, Field(min_length=1, description="federated method (fedstart list methods)")]
    out: Annotated[str, Field(pattern=r"^/", description="run directory, an absolute path on the server's machine")]
    begin: Annotated[
        str | None, Field(pattern=r"^/", description="weights to begin from, an absolute path; none = drawn")
    ] = None
    seed: Annotated[int, Field(ge=0, description="names the initial weights, or a fresh head")] = 0


@settings_dataclass(frozen=True, config=STRICT)
class DataTable:
    """`data.*`: where a node's examples come from; a node's own configuration wins.

    `own` says that everything there is this client's; otherwise each node takes its share of a common source.
    `class_names` is the order in which all nodes number their classes, and `mean` and `std` (per channel, on the
    scale 0 to 1) how all normalise images; empty = as the source says.
    """

    source: Annotated[str, Field(min_length=1, description="digits, synthetic[:...], hf:NAME or path:PLACE")]
    input: Annotated[str | None, Field(description="column of the inputs; none = detected")] = None
    label: Annotated[str | None, Field(description="column of the labels; none = detected")] = None
    columns: Annotated[tuple[str, ...], Field(description="further columns that the partition uses")] = ()
    merge: Annotated[bool, Field(description="pool the official train and test rows before splitting")] = True
    own: Annotated[bool, Field(description="true: all of the source is this client's")] = False
    class_names: Annotated[tuple[str, ...], Field(description="all classes, in the order of their numbers")] = ()
    mean: Annotated[tuple[float, ...], Field(description="mean per channel")] = ()
    std: Annotated[tuple[float, ...], Field(description="standard deviation per channel")] = ()


@settings_dataclass(frozen=True, config=STRICT)
class FederationTable:
    """`federation.*`: how a source is shared out; a node that rebuilds it must meet the same fingerprint."""

    name: Annotated[str, Field(min_length=1, description="what results call it")]
    classes: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=2, description="labels in use")]
    clients: Annotated[int | None, Field(ge=1, description="clients; none where the partition fixes them")] = None
    seed: Annotated[int, Field(ge=0, description="names the draws of the partition and of the test split")] = 0
    test_fraction: Annotated[float, Field(ge=0, lt=1, description="share of a client's examples for its test")] = 0.0
    withheld: Annotated[float, Field(ge=0, lt=1, description="share of the examples kept from every client")] = 0.0
    fingerprint: Annotated[str, Field(description="SHA-256 of the federation, where the server knows it")] = UNKNOWN


@dataclass(frozen=True)
class Recipe:
    """What a node needs to find its examples: the source, and its share of it."""

    data: DataTable
    federation: FederationTable
    partition: partitions.Partition
    model: Model

    @classmethod
    def read(cls, run_config: Mapping[str, Any], node_config: Mapping[str, Any]) -> Recipe:
        """From the app's run config and a node's own configuration, whose `data.*` wins.

        Raises ValueError in one line for what is unknown, missing, or out of range.
        """
        own = {key: value for key, value in node_config.items() if key.startswith("data.")}
        return _recipe(_tables({**run_config, **own}))


@dataclass(frozen=True)
class AppSettings:
    """All settings of an app, checked."""

    run: RunTable
    algorithm: Algorithm
    plan: Plan
    recipe: Recipe
    patience: Patience

    @classmethod
    def read(cls, run_config: Mapping[str, Any]) -> AppSettings:
        """From Flower's run config. Raises ValueError in one line for what is unknown, missing, or out of range."""
        tables = _tables(run_config)
        run = _build(RunTable, tables, "run")
        method = names.find("method", run.method, names.discover("fedstart.algorithms"))
        return cls(
            run=run,
            algorithm=_build(method, tables, "settings"),
            plan=_build(Plan, tables, "plan"),
            recipe=_recipe(tables),
            patience=_patience(tables),
        )

    def weights(self) -> Weights:
        """The weights before the first round. Raises ValueError for a file that does not fit the model."""
        model = self.recipe.model
        if self.run.begin is None:
            return model.init(self.run.seed)
        return Checkpoint(self.run.begin).begin(model, self.run.seed)


def run_config(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Tables of settings in the types that Flower allows; `AppSettings.read` understands the result, flattened."""
    return {
        table: {key: _written(value) for key, value in settings.items()}
        for table, settings in tables.items()
        if settings
    }


def flat(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Tables as Flower hands them to an app: `{"plan.rounds": 3}`."""
    return {f"{table}.{key}": value for table, settings in tables.items() for key, value in settings.items()}


def model_table(model: Model) -> dict[str, Any]:
    """The table `model` for a model."""
    described = model.describe()
    return {**{key: described[key] for key in ("name", "shape", "classes")}, **described["settings"]}


def partition_table(partition: partitions.Partition) -> dict[str, Any]:
    """The table `partition` for a partition."""
    name = next(name for name, cls in partitions.TABLE.items() if cls is type(partition))
    return {"name": name, **asdict(partition)}  # pyright: ignore[reportArgumentType]


def _recipe(tables: Mapping[str, Mapping[str, Any]]) -> Recipe:
    federation: FederationTable = _build(FederationTable, tables, "federation")
    model = _model(dict(tables["model"]))
    if model.classes != len(federation.classes):
        raise ValueError(
            f"run config: model.classes is {model.classes}, but federation.classes names {len(federation.classes)}"
        )
    settings = dict(tables["partition"]) or {"name": "iid"}
    partition = names.find("partition", str(settings.pop("name", "iid")), partitions.TABLE)
    built = names.build(partition, settings, "run config [partition]")
    return Recipe(_build(DataTable, tables, "data"), federation, built, model)


def _patience(tables: Mapping[str, Mapping[str, Any]]) -> Patience:
    patience: Patience = _build(Patience, tables, "patience")
    if patience.nodes < 1 or patience.join_seconds < 0 or patience.reply_seconds <= 0 or not 0 <= patience.share <= 1:
        raise ValueError(
            f"run config [patience]: {patience} is impossible (allowed: nodes from 1, seconds from 0, share 0 to 1)"
        )
    return patience


def _model(settings: dict[str, Any]) -> Model:
    missing = [key for key in ("name", "shape", "classes") if key not in settings]
    if missing:
        raise ValueError(f"run config [model] {missing[0]}: Field required")
    name, shape, classes = (settings.pop(key) for key in ("name", "shape", "classes"))
    if not isinstance(shape, list) or not all(type(size) is int for size in shape) or type(classes) is not int:
        raise ValueError(
            f'run config [model]: shape must be a list such as "[1, 8, 8]" and classes a number '
            f"(given: {shape!r}, {classes!r})"
        )
    return Model(load_architecture(str(name), settings, "run config [model]"), tuple(shape), classes)


def _build(cls: type, tables: Mapping[str, Mapping[str, Any]], table: str) -> Any:
    return names.build(cls, tables[table], f"run config [{table}]")


def _tables(flat_config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = {table: {} for table in TABLES}
    for path, value in flat_config.items():
        table, dot, key = path.partition(".")
        if table not in tables or not dot:
            raise ValueError(f"run config: {names.unknown('setting' if not dot else 'table', path, TABLES)}")
        tables[table][key] = _read(value, path)
    return tables


def _read(value: Any, path: str) -> Any:
    if value == "none":
        return None
    if not isinstance(value, str) or not value.startswith("["):
        return value
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"run config {path}: not a TOML list: {error} (given: {value!r})") from None


def _written(value: Any) -> bool | int | float | str:
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        # Quotes of the other kind keep it readable inside the quotes of pyproject.toml.
        items = (f"'{item}'" if _is_plain(item) else json.dumps(item, ensure_ascii=False) for item in value)
        return f"[{', '.join(items)}]"
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"a {type(value).__name__} cannot stand in a run config (allowed: numbers, strings, lists)")


def _is_plain(item: Any) -> bool:
    return isinstance(item, str) and item.isprintable() and "'" not in item
