"""Which examples clients see in a round: their parts and minibatches, for one client or many at once."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fedstart import keys
from fedstart.data.federation import Federation
from fedstart.types import Plan

SHARES = ("support", "query")
"""Parts that are shares of `train`, redrawn each round, unless the data has them."""


def chunk(shape: tuple[int, ...]) -> int:
    """Examples of this shape per forward pass where no minibatch is asked for: 32 to 2,048.

    Many enough to keep the processor busy; few enough that a convolution's outputs fit its cache.
    """
    return max(32, min(2048, 2**18 // math.prod(shape)))


class Rows(NamedTuple):
    """The positions of a part: row k, shape (clients, largest), begins with `sizes[k]` positions of client k.

    Behind them a row is filled with others of the client's positions.
    """

    positions: np.ndarray
    sizes: np.ndarray


def rows(federation: Federation, plan: Plan, part: str, number: int, clients: np.ndarray) -> Rows:
    """The part of each client in round `number`. Raises ValueError for a client without examples in it."""
    if part in federation.parts or part not in SHARES:
        held = _held(federation, plan, part, clients)
        if not held.sizes.all():
            empty = int(clients[held.sizes.argmin()])
            raise ValueError(f"{federation.name}: client {empty} has no examples in {part!r}")
        return held
    train = _held(federation, plan, "train", clients)
    query = sizes(federation, plan, "query", clients)
    shuffled = keys.orders(plan.seed, "query", number, clients, train.sizes)
    if part == "query":
        return Rows(np.take_along_axis(train.positions, shuffled[:, : query.max()], 1), query)
    columns = query[:, None] + np.arange(int((train.sizes - query).max()))
    chosen = np.take_along_axis(shuffled, columns.clip(max=shuffled.shape[1] - 1), 1)
    return Rows(np.take_along_axis(train.positions, chosen, 1), train.sizes - query)


def minibatches(plan: Plan, number: int, clients: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every client and step the places, in the client's own row, of the examples of that step's minibatch.

    Returns places of shape (clients, steps, width) and how many of each are meant, shape (clients, steps): 0 where a
    client has fewer steps than others. Drawn without replacement, reshuffled each pass, keyed by (seed, round, client).
    """
    width = min(plan.batch_size, int(sizes.max()))
    batches = -(-sizes // plan.batch_size)
    taken = np.array([steps(plan, int(examples)) for examples in sizes])
    passes, places = np.divmod(np.arange(int(taken.max())), batches[:, None])
    columns = places[:, :, None] * plan.batch_size + np.arange(width)
    counts = (sizes[:, None] - places * plan.batch_size).clip(0, width)
    over = np.arange(counts.shape[1]) >= taken[:, None]
    counts[over] = passes[over] = 0
    orders = [
        keys.orders(plan.seed, "minibatches", number, clients, sizes, repeat) for repeat in range(passes.max() + 1)
    ]
    rows = np.arange(len(clients))[:, None, None]
    return np.stack(orders)[passes[:, :, None], rows, columns.clip(max=orders[0].shape[1] - 1)], counts


def size(federation: Federation, plan: Plan, part: str, client: int) -> int:
    """Number of examples of one client's part, as `sizes`."""
    return int(sizes(federation, plan, part, np.array([client]))[0])


def sizes(federation: Federation, plan: Plan, part: str, clients: np.ndarray) -> np.ndarray:
    """Number of examples of each client's part; `support` and `query` are shares of `train` unless the data has them.

    Raises ValueError when a client has fewer than two examples to divide.
    """
    shared = part in SHARES and part not in federation.parts
    source = "train" if shared else part
    for client in (clients.min(), clients.max()):
        federation.positions(source, int(client))
    offsets = federation.parts[source].offsets
    held = offsets[clients + 1] - offsets[clients]
    if not shared:
        return held
    whose = f"{federation.name}: client {clients[held.argmin()]}"
    share(plan, part, int(held.min()), whose)
    return np.array([share(plan, part, examples, whose) for examples in held.tolist()])


def share(plan: Plan, part: str, train: int, whose: str) -> int:
    """How many of `train` examples become `support` or `query`. Raises ValueError for fewer than two examples."""
    if train < 2:
        raise ValueError(
            f"{whose} has {train} examples, too few to divide into support and query (allowed: at least 2)"
        )
    held = min(max(1, round(plan.query_fraction * train)), train - 1)
    return held if part == "query" else train - held


def steps(plan: Plan, examples: int) -> int:
    """Minibatch steps of one client's local training."""
    return plan.local_steps or (plan.local_epochs or 0) * math.ceil(examples / plan.batch_size)


def _held(federation: Federation, plan: Plan, part: str, clients: np.ndarray) -> Rows:
    counts, held = sizes(federation, plan, part, clients), federation.parts[part]
    columns = np.minimum(np.arange(int(counts.max())), counts[:, None] - 1)
    return Rows(held.values[held.offsets[clients][:, None] + columns], counts)
