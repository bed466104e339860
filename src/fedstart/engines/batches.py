"""Which examples clients see in a round: their parts and minibatches, for one client or many at once."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fedstart import keys
from fedstart.data.federation import Federation, Positions
from fedstart.engines.division import divide
from fedstart.types import Plan

SHARES = ("support", "query")
"""Parts of `train` that `Plan.query_split` divides, unless the data has them."""


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
    query = _shares(federation, plan, "query", clients, train.sizes)
    if plan.query_split != "random":
        return _divided(federation, plan, part, number, clients, train, query)
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


def at_server(federation: Federation, plan: Plan, number: int, pieces: int) -> Federation:
    """The server's own examples as clients: `pieces` random parts of equal size (to one), drawn anew each round.

    `train`, `support` and `query` are all the whole piece. Raises ValueError for fewer examples than pieces.
    """
    held = federation.server
    used = round(plan.server_share * len(held))
    if used < pieces:
        raise ValueError(
            f"{federation.name}: the server has {used} examples of its own, {pieces} are needed "
            "(withheld is the share that it keeps)"
        )
    # The share is drawn once for all rounds, the pieces anew in each.
    chosen = held[keys.generator(plan.seed, "server-share").permutation(len(held))[:used]]
    order = keys.generator(plan.seed, "server-pieces", number).permutation(used)
    offsets = np.arange(pieces + 1) * used // pieces
    whole = Positions(offsets, chosen[order])
    parts = {"train": whole, "support": whole, "query": whole}
    return Federation(f"{federation.name} at the server", federation.examples, parts, federation.classes)


class Minibatches:
    """One client's minibatches, step by step: `positions` of its part, shape (n,), in the order of `minibatches`.

    `at(step, draw)` are the positions of a step's minibatch, shape (width,). Draw 0 is the one that every method
    sees; further draws are minibatches of the same step from orders of their own.
    """

    def __init__(self, plan: Plan, number: int, client: int, positions: np.ndarray) -> None:
        self._plan, self._number, self._client, self._positions = plan, number, np.array([client]), positions
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        return steps(self._plan, len(self._positions))

    def at(self, step: int, draw: int = 0) -> np.ndarray:
        """The positions of step 0, 1, ..."""
        width, examples = self._plan.batch_size, len(self._positions)
        repeat, place = divmod(step, math.ceil(examples / width))
        if (repeat, draw) not in self._orders:
            purpose = f"minibatches-{draw}" if draw else "minibatches"
            sizes = np.array([examples])
            order = keys.orders(self._plan.seed, purpose, self._number, self._client, sizes, repeat)[0]
            self._orders[repeat, draw] = self._positions[order]
        return self._orders[repeat, draw][place * width : (place + 1) * width]


def size(federation: Federation, plan: Plan, part: str, number: int, client: int) -> int:
    """Number of examples of one client's part in round `number`, as `sizes`."""
    return int(sizes(federation, plan, part, number, np.array([client]))[0])


def sizes(federation: Federation, plan: Plan, part: str, number: int, clients: np.ndarray) -> np.ndarray:
    """Number of examples of each client's part in round `number`, which matters only for `query_split = "classes"`.

    `support` and `query` are taken from `train` unless the data has them. Raises ValueError when a client has fewer
    than two examples to divide.
    """
    shared = part in SHARES and part not in federation.parts
    source = "train" if shared else part
    for client in (clients.min(), clients.max()):
        federation.positions(source, int(client))
    if shared and plan.query_split == "classes":
        return rows(federation, plan, part, number, clients).sizes
    offsets = federation.parts[source].offsets
    held = offsets[clients + 1] - offsets[clients]
    return _shares(federation, plan, part, clients, held) if shared else held


def share(plan: Plan, part: str, train: int, whose: str) -> int:
    """How many of `train` examples become `support` or `query`. Raises ValueError for fewer than two examples.

    Not for `query_split = "classes"`, where that depends on the labels.
    """
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
    """A part that the data has; the round does not matter."""
    counts, held = sizes(federation, plan, part, 0, clients), federation.parts[part]
    columns = np.minimum(np.arange(int(counts.max())), counts[:, None] - 1)
    return Rows(held.values[held.offsets[clients][:, None] + columns], counts)


def _shares(federation: Federation, plan: Plan, part: str, clients: np.ndarray, train: np.ndarray) -> np.ndarray:
    """`share` of each client's number of training examples, shape (clients,)."""
    whose = f"{federation.name}: client {clients[train.argmin()]}"
    share(plan, part, int(train.min()), whose)
    return np.array([share(plan, part, examples, whose) for examples in train.tolist()])


def _divided(
    federation: Federation,
    plan: Plan,
    part: str,
    number: int,
    clients: np.ndarray,
    train: Rows,
    query: np.ndarray,
) -> Rows:
    """The part of each client whose query shall have `query` examples."""
    found = []
    for client, row, held, wanted in zip(clients.tolist(), *train, query.tolist(), strict=True):
        own = row[:held]
        found.append(own[divide(plan, number, client, federation.examples.labels[own], wanted)[SHARES.index(part)]])
    counts = np.array([len(own) for own in found])
    columns = np.arange(int(counts.max()))
    return Rows(np.stack([own[columns.clip(max=len(own) - 1)] for own in found]), counts)
