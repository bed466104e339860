"""A node of an app: its identity and its own examples, from its configuration."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from fedstart import keys, names
from fedstart.data import sources, tasks
from fedstart.data.federation import Examples, Federation, Positions
from fedstart.engines import node
from fedstart.flower.settings import UNKNOWN, DataTable, Recipe


def serve(app: ClientApp, mods: Sequence[Mod] = ()) -> None:
    """Makes `app` answer every message of fedstart's algorithms with this node's own examples.

    `mods` are Flower's client mods for privacy (`flwr.clientapp.mod`): every answer passes through them, and methods
    with an exchange that they do not protect are refused.
    """
    node.serve(app, site, mods)


def site(context: Context) -> node.Site:
    """The node's identity, `partition-id` in its configuration, and its examples.

    Raises ValueError, in one line, for an identity or data that do not fit the app.
    """
    identity = context.node_config.get("partition-id")
    if type(identity) is not int or identity < 0:
        raise ValueError(
            f"partition-id is {identity!r}: a node's configuration must give its own number (allowed: 0, 1, 2, ...)"
        )
    recipe = Recipe.read(context.run_config, context.node_config)
    if recipe.data.own:
        return node.Site(identity, _cached_own(_key(context.run_config, context.node_config), identity))
    federation = _cached_shared(_key(context.run_config, context.node_config))
    if identity >= federation.clients:
        raise ValueError(f"partition-id is {identity}, but there are {federation.clients} clients (allowed: from 0)")
    return node.Site(identity, federation)


def shared(recipe: Recipe) -> Federation:
    """The whole federation over the common source, of which a node uses its own share.

    Raises ValueError when it is not the one that the app was made with.
    """
    table = recipe.federation
    federation = tasks.federate(
        _examples(recipe),
        classes=table.classes,
        partition=recipe.partition,
        clients=table.clients,
        seed=table.seed,
        name=table.name,
        test_fraction=table.test_fraction,
        withheld=table.withheld,
        merge=recipe.data.merge,
    )
    if table.fingerprint not in (UNKNOWN, federation.fingerprint):
        raise ValueError(
            f"{table.name}: the data here ({recipe.data.source}) are not those that the app was made with "
            f"(fingerprint {federation.fingerprint[:12]}, expected {table.fingerprint[:12]})"
        )
    return federation


def own(recipe: Recipe, identity: int) -> Federation:
    """A federation in which client `identity` has everything and the others nothing.

    With `data.merge` all rows are split at random, `max(1, round(test_fraction * n))` to test; without it the
    official test rows are the test part. Raises ValueError for too few examples of the classes in use.
    """
    table, examples = recipe.federation, _examples(recipe)
    rows = np.flatnonzero(np.isin(examples.labels, table.classes))
    where = f"{table.name}: client {identity}"
    if len(rows) < (2 if table.test_fraction else 1):
        raise ValueError(f"{where} has {len(rows)} examples of the classes in use in {recipe.data.source}")
    if not table.test_fraction:
        parts = {"train": rows}
    elif recipe.data.merge:
        held = min(max(1, int(np.floor(table.test_fraction * len(rows) + 0.5))), len(rows) - 1)
        order = keys.generator(table.seed, "test-split", identity).permutation(rows)
        parts = {"train": np.sort(order[held:]), "test": np.sort(order[:held])}
    else:
        if "split" not in examples.columns:
            raise ValueError(f"{where}: {recipe.data.source} has no official splits; use data.merge = true")
        test = examples.columns["split"][rows] == 1
        parts = {"train": rows[~test], "test": rows[test]}
    held_by = {part: Positions.from_owners(np.full(len(r), identity), r, identity + 1) for part, r in parts.items()}
    return Federation(table.name, examples, held_by, table.classes)


def _examples(recipe: Recipe) -> Examples:
    """The source's examples, with the classes numbered and images normalised as the app says."""
    data = recipe.data
    examples = _load(data.source, data.input, data.label, data.columns)
    if examples.shape != recipe.model.shape:
        raise ValueError(f"{data.source}: inputs have shape {examples.shape}, the model takes {recipe.model.shape}")
    agreed = {"mean": data.mean or examples.mean, "std": data.std or examples.std}
    return replace(_renumbered(examples, data), **agreed)


def _renumbered(examples: Examples, data: DataTable) -> Examples:
    if not data.class_names or data.class_names == examples.class_names:
        return examples
    for name in examples.class_names:
        if name not in data.class_names:
            raise ValueError(f"{data.source}: {names.unknown('class', name, data.class_names)}")
    lookup = np.array([data.class_names.index(name) for name in examples.class_names], dtype=np.int64)
    return replace(examples, labels=lookup[examples.labels], class_names=data.class_names)


@functools.lru_cache(maxsize=2)
def _load(source: str, input: str | None, label: str | None, columns: tuple[str, ...]) -> Examples:
    return sources.load(source, input=input, label=label, columns=columns)


def _key(run_config: Mapping[str, Any], node_config: Mapping[str, Any]) -> str:
    relevant = {k: v for k, v in node_config.items() if k.startswith("data.")}
    return json.dumps([dict(run_config), relevant], sort_keys=True)


@functools.lru_cache(maxsize=2)
def _cached_shared(key: str) -> Federation:
    return shared(Recipe.read(*json.loads(key)))


@functools.lru_cache(maxsize=4)
def _cached_own(key: str, identity: int) -> Federation:
    return own(Recipe.read(*json.loads(key)), identity)
