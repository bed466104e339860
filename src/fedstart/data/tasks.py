"""Federations from examples: a pre-training federation, downstream tasks, and their record on disk."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from fedstart import keys
from fedstart.data import subsets
from fedstart.data.federation import Examples, Federation, Positions
from fedstart.data.partitions import ByDomain, Natural, Partition
from fedstart.files import write_atomically

SERVER = "server"
"""In a saved partition, the part of the examples that no client holds."""


def split_classes(examples: Examples, held_out: int | Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The labels for pre-training and the labels held out for downstream tasks, both ascending.

    A number n holds out the last n labels; a sequence holds out those labels. At least one label stays on each side.
    Raises ValueError for labels that do not exist and if a side would be empty.
    """
    total = len(examples.class_names)
    if isinstance(held_out, int) and not 1 <= held_out < total:
        raise ValueError(f"{examples.name}: cannot hold out {held_out} of {total} classes (allowed: 1 to {total - 1})")
    wanted = range(total - held_out, total) if isinstance(held_out, int) else held_out
    downstream = tuple(sorted(subsets.checked(examples, wanted)))
    pretraining = tuple(label for label in range(total) if label not in set(downstream))
    if not pretraining:
        raise ValueError(f"{examples.name}: all {total} classes are held out; none is left for pre-training")
    return pretraining, downstream


def only(examples: Examples, column: str, values: Sequence[str | int]) -> Examples:
    """A copy of the examples whose `column` has one of the values, for instance the domains of a pre-training set.

    Normalisation stays that of the whole source. Raises ValueError for an unknown column or value.
    """
    rows = np.flatnonzero(subsets.rows_with(examples, column, values))
    return replace(
        examples,
        name=f"{examples.name} {' '.join(str(value) for value in values)}",
        inputs=examples.select(torch.from_numpy(rows)),
        labels=examples.labels[rows],
        fingerprint=hashlib.sha256(examples.fingerprint.encode() + rows.tobytes()).hexdigest(),
        columns={name: entries[rows] for name, entries in examples.columns.items()},
    )


def withhold(rows: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows for the clients and rows kept from them, both in the order given; `round(share * n)` are kept."""
    if not 0 <= share < 1:
        raise ValueError(f"withheld must be at least 0 and below 1 (given: {share})")
    kept = np.zeros(len(rows), dtype=bool)
    number = int(np.floor(share * len(rows) + 0.5))
    kept[keys.generator(seed, "withheld").choice(len(rows), size=number, replace=False)] = True
    return rows[~kept], rows[kept]


def federate(
    examples: Examples,
    *,
    classes: Sequence[int],
    partition: Partition,
    clients: int | None,
    seed: int,
    name: str,
    test_fraction: float = 0.2,
    withheld: float = 0.0,
    merge: bool = True,
    among: np.ndarray | None = None,
) -> Federation:
    """The examples of some classes shared out over clients: parts `train` and, for `test_fraction` > 0, `test`.

    `merge=True` pools all rows and splits every client's share at random: `max(1, round(test_fraction * n))` to
    test, at least one to train. `merge=False` partitions the official train rows; the official test rows follow
    each client's train labels (largest remainder per class), or the same column for natural and by_domain, and
    `test_fraction` only says whether there is a test part. `withheld` is a random share of the (train) rows that
    no client gets: the federation's `server` holds them. `clients=None` leaves the number to natural and by_domain.
    `among`, boolean of shape (N,), says which rows there are at all (none = every one).
    Raises ValueError for unknown classes, too few examples, a source without official splits, or a client
    that would be left without test examples.
    """
    if not 0 <= test_fraction < 1:
        raise ValueError(f"{name}: test_fraction must be at least 0 and below 1 (given: {test_fraction})")
    chosen = np.isin(examples.labels, subsets.checked(examples, classes)) & (True if among is None else among)
    rows, official_test = (np.flatnonzero(chosen), None) if merge else _official(examples, chosen, name)
    rows, kept = withhold(rows, withheld, seed)
    if not len(rows):
        raise ValueError(f"{name}: no examples of the classes asked for")
    columns = {column: entries[rows] for column, entries in examples.columns.items()}
    owners = partition.owners(examples.labels[rows], clients, keys.generator(seed, "partition"), columns)
    count = int(owners.max()) + 1 if clients is None else clients
    rng = keys.generator(seed, "test-split")
    if not test_fraction:
        parts = {"train": Positions.from_owners(owners, rows, count)}
    elif official_test is None:
        test = _test_rows(owners, count, test_fraction, rng, name)
        parts = {
            "train": Positions.from_owners(np.where(test, -1, owners), rows, count),
            "test": Positions.from_owners(np.where(test, owners, -1), rows, count),
        }
    else:
        strata = examples.columns[partition.column] if isinstance(partition, Natural | ByDomain) else examples.labels
        followers = _followers(strata[rows], owners, strata[official_test], count, rng)
        parts = {
            "train": Positions.from_owners(owners, rows, count),
            "test": Positions.from_owners(followers, official_test, count),
        }
        _every_client_tested(parts["test"], name)
    return Federation(name, examples, parts, classes=tuple(int(label) for label in classes), server=kept)


def tasks(
    examples: Examples,
    *,
    classes: Sequence[int],
    count: int,
    classes_per_task: int,
    clients: int | None,
    partition: Partition,
    test_fraction: float = 0.2,
    seed: int,
    merge: bool = True,
    name: str | None = None,
    among: np.ndarray | None = None,
) -> list[Federation]:
    """Downstream federations, each over some of the classes, drawn without replacement and sorted.

    Task t depends on `seed` and t only, not on `count`, so every start and method meets the same tasks. It is called
    `name` (none = that of the examples) and its number.
    Raises ValueError if there are fewer classes than `classes_per_task`, and as `federate` does.
    """
    if not 1 <= classes_per_task <= len(classes):
        raise ValueError(f"{classes_per_task} classes per task asked for (allowed: 1 to {len(classes)})")
    pool = np.sort(np.asarray(classes))
    return [
        federate(
            examples,
            classes=tuple(np.sort(rng.choice(pool, size=classes_per_task, replace=False)).tolist()),
            partition=partition,
            clients=clients,
            seed=keys.number(seed, "task", task),
            name=f"{name or examples.name} task {task}",
            test_fraction=test_fraction,
            merge=merge,
            among=among,
        )
        for task in range(count)
        for rng in [keys.generator(seed, "task-classes", task)]
    ]


def save_partition(federation: Federation, path: str | Path) -> None:
    """Writes who holds what: Parquet with the columns part, client, position, and the federation's fingerprint.

    Examples of the server's own have the part "server" and the client -1.
    The file is written whole or not at all. Raises OSError if it cannot be written.
    """
    part_names = sorted(federation.parts)
    sizes = [federation.parts[part].sizes for part in part_names]
    counts = [*(int(size.sum()) for size in sizes), len(federation.server)]
    owners = [np.repeat(np.arange(federation.clients), size) for size in sizes]
    table = pa.table(
        {
            "part": pa.array(np.repeat([*part_names, SERVER], counts)).dictionary_encode(),
            "client": np.concatenate([*owners, np.full(len(federation.server), -1)]),
            "position": np.concatenate([*(federation.parts[part].values for part in part_names), federation.server]),
        }
    )
    record = {
        "name": federation.name,
        "clients": federation.clients,
        "classes": [int(label) for label in federation.classes],
        "parts": part_names,
        "fingerprint": federation.fingerprint,
    }
    stream = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"fedstart": json.dumps(record)}), stream, compression="zstd")
    write_atomically(Path(path), stream.getvalue())


def load_partition(examples: Examples, path: str | Path) -> Federation:
    """The federation that `save_partition` wrote, over the same examples.

    Raises ValueError if the file is missing or damaged, or was made from other examples.
    """
    try:
        table = pq.read_table(path)
        record = json.loads((table.schema.metadata or {})[b"fedstart"])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not a readable partition ({str(error).splitlines()[0]})") from None
    part, client, position = (table[name].to_numpy() for name in ("part", "client", "position"))
    if len(position) and not 0 <= position.min() <= position.max() < len(examples):
        raise ValueError(f"{path}: made from other examples than {examples.name} ({len(examples)} rows)")
    parts = {
        name: Positions.from_owners(client[part == name], position[part == name], record["clients"])
        for name in record["parts"]
    }
    server = position[part == SERVER].astype(np.int64)
    federation = Federation(record["name"], examples, parts, tuple(record["classes"]), server)
    if federation.fingerprint != record["fingerprint"]:
        raise ValueError(f"{path}: made from other examples than {examples.name}, or altered (fingerprints differ)")
    return federation


def _official(examples: Examples, chosen: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The chosen rows of the official train split and of the official test split."""
    if "split" not in examples.columns:
        raise ValueError(f"{name}: {examples.name} has no official splits; use merge = true")
    split = examples.columns["split"]
    return np.flatnonzero(chosen & (split == 0)), np.flatnonzero(chosen & (split == 1))


def _test_rows(owners: np.ndarray, clients: int, fraction: float, rng: np.random.Generator, name: str) -> np.ndarray:
    """Which examples go to their owner's test part, shape (n,), boolean."""
    held = np.flatnonzero(owners >= 0)
    sizes = np.bincount(owners[held], minlength=clients)
    if sizes.min() < 2:
        client = int(np.argmin(sizes))
        raise ValueError(f"{name}: client {client} has {sizes[client]} examples; a train and a test part need 2")
    wanted = np.clip(np.floor(fraction * sizes + 0.5), 1, sizes - 1)
    order = rng.permutation(held)
    order = order[np.argsort(owners[order], kind="stable")]
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    test = np.zeros(len(owners), dtype=bool)
    test[order[rank < np.repeat(wanted, sizes)]] = True
    return test


def _followers(
    train_strata: np.ndarray, owners: np.ndarray, test_strata: np.ndarray, clients: int, rng: np.random.Generator
) -> np.ndarray:
    """Owners of test rows: a stratum (class, writer, domain) goes to clients in proportion to their train rows in it.

    Counts are rounded by largest remainder; what rounding has kept from a client in earlier strata counts for it.
    Rows of a stratum that nobody trains on get -1.
    """
    values, codes = np.unique(np.concatenate([train_strata, test_strata]), return_inverse=True)
    held = owners >= 0
    pairs, counts = np.unique(codes[: len(owners)][held] * clients + owners[held], return_counts=True)
    edges = np.searchsorted(pairs, np.arange(len(values) + 1) * clients)
    order = rng.permutation(len(test_strata))
    test_codes = codes[len(owners) :]
    order = order[np.argsort(test_codes[order], kind="stable")]
    sizes = np.bincount(test_codes, minlength=len(values))
    stops = np.cumsum(sizes)
    result = np.full(len(test_strata), -1, dtype=np.int64)
    owed = np.zeros(clients)
    for code in np.flatnonzero((sizes > 0) & (np.diff(edges) > 0)):
        here = slice(edges[code], edges[code + 1])
        holders = pairs[here] % clients
        quota = counts[here] * (sizes[code] / counts[here].sum())
        given = np.floor(quota + 1e-9)
        rest = int(sizes[code] - given.sum())
        # Equal remainders would always favour the first clients; the tiny noise draws between them.
        claim = quota - given + owed[holders] + rng.uniform(0, 1e-6, size=len(holders))
        given[np.argsort(-claim)[:rest]] += 1
        owed[holders] += quota - given
        result[order[stops[code] - sizes[code] : stops[code]]] = np.repeat(holders, given.astype(np.int64))
    return result


def _every_client_tested(test: Positions, name: str) -> None:
    empty = np.flatnonzero(test.sizes == 0)
    if len(empty):
        raise ValueError(
            f"{name}: client {empty[0]} is left without official test examples ({len(empty)} of {len(test)} clients); "
            "use fewer clients or merge = true"
        )
