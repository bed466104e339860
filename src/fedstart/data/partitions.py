"""Partitions: who owns which example. Every kind is a settings dataclass with one method, `owners`.

`owners(labels, clients, rng, columns)` takes the labels, shape (N,), the number of clients, a keyed generator and
the columns, each of shape (N,). It returns the owner of every example, shape (N,), int64, 0 .. clients - 1.
Only `natural` leaves examples out; their owner is -1. Nobody falls below `minimum` examples: where chance gives a
client fewer, examples move to it from the largest clients, so a partition never hangs and is never redrawn.
Raises ValueError if the examples cannot be shared out under that rule.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Protocol

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass as settings_dataclass

from fedstart import names
from fedstart.types import STRICT

if TYPE_CHECKING:
    from fedstart.data.federation import Federation

Minimum = Annotated[int, Field(ge=1, description="examples of the smallest client")]
Column = Annotated[str, Field(min_length=1, description="name of the column that says where an example comes from")]


class Partition(Protocol):
    """What shares out examples; see the module's text."""

    def owners(
        self, labels: np.ndarray, clients: int | None, rng: np.random.Generator, columns: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """The owner of each example, shape (N,), int64."""
        ...


@settings_dataclass(frozen=True, config=STRICT)
class IID:
    """Examples dealt at random; sizes differ by at most one (McMahan et al. 2017, arXiv:1602.05629)."""

    minimum: Minimum = 10
    stratified: Annotated[bool, Field(description="split every class equally, as CoPreFL's IID setting does")] = False

    def owners(
        self, labels: np.ndarray, clients: int | None, rng: np.random.Generator, columns: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """The owner of each example, shape (N,)."""
        count = _enough("iid", len(labels), clients, self.minimum)
        order = _shuffled(labels, rng) if self.stratified else rng.permutation(len(labels))
        owners = np.empty(len(labels), dtype=np.int64)
        owners[order] = np.arange(len(labels)) % count
        return owners


@settings_dataclass(frozen=True, config=STRICT)
class Dirichlet:
    """Every class is cut by its own draw of shares over the clients, Dirichlet(alpha, ..., alpha).

    Hsu et al. 2019 (arXiv:1909.06335) and Li et al. 2022 (arXiv:2102.02079); CoPreFL uses alpha = 0.5. A client's
    count of a class is within one of share times class size. Sizes are unequal and are not balanced afterwards,
    beyond `minimum`.
    """

    alpha: Annotated[float, Field(gt=0, description="concentration; small = every client sees few classes")] = 0.5
    minimum: Minimum = 10

    def owners(
        self, labels: np.ndarray, clients: int | None, rng: np.random.Generator, columns: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """The owner of each example, shape (N,)."""
        count = _enough("dirichlet", len(labels), clients, self.minimum)
        order = _shuffled(labels, rng)
        sorted_owners = []
        for size in np.unique(labels, return_counts=True)[1]:
            shares = rng.dirichlet(np.full(count, self.alpha))
            cuts = np.rint(np.cumsum(shares) * size)
            cuts[-1] = size
            sorted_owners.append(np.searchsorted(cuts, np.arange(size), side="right"))
        owners = np.empty(len(labels), dtype=np.int64)
        owners[order] = np.concatenate(sorted_owners)
        return _repaired(owners, count, self.minimum, rng)


@settings_dataclass(frozen=True, config=STRICT)
class Shards:
    """Examples sorted by label, cut into equal shards, some shards to each client (McMahan et al. 2017).

    Shard sizes differ by at most one, so that no example is left out.
    """

    shards_per_client: Annotated[int, Field(ge=1, description="about as many classes as a client sees")] = 2
    minimum: Minimum = 10

    def owners(
        self, labels: np.ndarray, clients: int | None, rng: np.random.Generator, columns: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """The owner of each example, shape (N,)."""
        count = _enough("shards", len(labels), clients, self.minimum)
        shards = count * self.shards_per_client
        order = _shuffled(labels, rng)
        holder = rng.permutation(shards) % count
        owners = np.empty(len(labels), dtype=np.int64)
        owners[order] = holder[np.arange(len(labels)) * shards // len(labels)]
        return _repaired(owners, count, self.minimum, rng)


@settings_dataclass(frozen=True, config=STRICT)
class Natural:
    """One client for each value of a column, for instance a writer (LEAF: Caldas et al. 2018, arXiv:1812.01097).

    Values with fewer than `minimum` examples are left out. With `clients` given, that many of the others are
    drawn. Client numbers follow the sorted values.
    """

    column: Column
    minimum: Minimum = 10

    def owners(
        self, labels: np.ndarray, clients: int | None, rng: np.random.Generator, columns: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """The owner of each example, shape (N,); -1 for an example that is left out."""
        values, group = np.unique(_column("natural", self.column, columns), return_inverse=True)
        large = np.flatnonzero(np.bincount(group, minlength=len(values)) >= self.minimum)
        wanted = len(large) if clients is None else clients
        if not 1 <= wanted <= len(large):
            raise ValueError(
                f"natural: {len(large)} of the {len(values)} values of column {self.column!r} have {self.minimum} "
                f"examples or more (minimum); clients asked for: {'all' if clients is None else clients}"
            )
        client = np.full(len(values), -1, dtype=np.int64)
        client[np.sort(rng.choice(large, size=wanted, replace=False))] = np.arange(wanted)
        return client[group]


@settings_dataclass(frozen=True, config=STRICT)
class ByDomain:
    """Every client holds examples of one value of a column, for instance a domain of PACS (feature shift).

    The clients go to the values so that the smallest client is as large as can be (D'Hondt's rule); inside a value
    the examples are dealt at random. Without `clients` each value is one client.
    """

    column: Column
    minimum: Minimum = 10

    def owners(
        self, labels: np.ndarray, clients: int | None, rng: np.random.Generator, columns: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """The owner of each example, shape (N,)."""
        values, group = np.unique(_column("by_domain", self.column, columns), return_inverse=True)
        sizes = np.bincount(group, minlength=len(values))
        count = len(values) if clients is None else clients
        if count < len(values):
            raise ValueError(f"by_domain: {count} clients for {len(values)} values of column {self.column!r}")
        shares = _seats(sizes, count)
        smallest = int(np.argmin(sizes // shares))
        if sizes[smallest] // shares[smallest] < self.minimum:
            raise ValueError(
                f"by_domain: {self.column} {values[smallest].item()!r} has {sizes[smallest]} examples for "
                f"{shares[smallest]} clients, fewer than {self.minimum} each (minimum)"
            )
        order = _shuffled(group, rng)
        rank = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        owners = np.empty(len(group), dtype=np.int64)
        owners[order] = (np.cumsum(shares) - shares)[group[order]] + rank % shares[group[order]]
        return owners


TABLE: dict[str, type] = {
    "iid": IID,
    "dirichlet": Dirichlet,
    "shards": Shards,
    "natural": Natural,
    "by_domain": ByDomain,
}
"""Every kind of partition by the name that studies and the command line use."""


def heterogeneity(federation: Federation, part: str = "train") -> float:
    """How unlike the clients' labels are: mean total variation distance to the pooled labels, in [0, 1].

    Clients count by their size. 0 = everybody has the pooled distribution; 1 is out of reach for a finite number
    of clients, since each client is part of the pool.
    """
    counts = federation.label_counts(part)
    sizes = counts.sum(axis=1)
    pooled = counts.sum(axis=0) / max(sizes.sum(), 1)
    distance = 0.5 * np.abs(counts / np.maximum(sizes, 1)[:, None] - pooled).sum(axis=1)
    return float((distance * sizes).sum() / max(sizes.sum(), 1))


def _enough(kind: str, examples: int, clients: int | None, minimum: int) -> int:
    if clients is None or clients < 1:
        raise ValueError(f"{kind}: the number of clients must be given, at least 1 (given: {clients})")
    if examples < clients * minimum:
        raise ValueError(
            f"{kind}: {examples} examples are too few for {clients} clients with {minimum} each (minimum); "
            f"at most {examples // minimum} clients"
        )
    return clients


def _column(kind: str, column: str, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    if not columns:
        raise ValueError(f"{kind}: the data has no column {column!r}; name it in `columns` where the data is loaded")
    if column not in columns:
        raise names.unknown(f"{kind} column", column, columns)
    return columns[column]


def _shuffled(keys: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An order that sorts `keys`, shape (N,), random among equal keys."""
    order = rng.permutation(len(keys))
    return order[np.argsort(keys[order], kind="stable")]


def _seats(sizes: np.ndarray, count: int) -> np.ndarray:
    """D'Hondt: `count` seats over groups of the given sizes, at least one each; the largest smallest share."""
    seats = np.ones(len(sizes), dtype=np.int64)
    queue = [(-size / 2, group) for group, size in enumerate(sizes.tolist())]
    heapq.heapify(queue)
    for _ in range(count - len(sizes)):
        group = queue[0][1]
        seats[group] += 1
        heapq.heapreplace(queue, (-int(sizes[group]) / (int(seats[group]) + 1), group))
    return seats


def _repaired(owners: np.ndarray, clients: int, minimum: int, rng: np.random.Generator) -> np.ndarray:
    """The same owners, with examples moved from the largest clients until the smallest has `minimum`."""
    sizes = np.bincount(owners, minlength=clients)
    lacking = np.maximum(minimum - sizes, 0)
    if not lacking.any():
        return owners
    given = _given_up(sizes, minimum, int(lacking.sum()))
    order = _shuffled(owners, rng)
    rank = np.arange(len(owners)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    moved = order[rank < np.repeat(given, sizes)]
    repaired = owners.copy()
    repaired[rng.permutation(moved)] = np.repeat(np.arange(clients), lacking)
    return repaired


def _given_up(sizes: np.ndarray, minimum: int, missing: int) -> np.ndarray:
    """How many examples each client gives so that `missing` come together and the largest come down to one level."""
    low, high = minimum, int(sizes.max())
    while high - low > 1:
        level = (low + high) // 2
        low, high = (level, high) if np.maximum(sizes - level, 0).sum() >= missing else (low, level)
    given = np.maximum(sizes - low, 0)
    excess = int(given.sum()) - missing
    given[np.flatnonzero(given)[:excess]] -= 1
    return given
