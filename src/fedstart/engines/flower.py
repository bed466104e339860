"""The Flower engine, on the server: the same algorithms, their client methods called on nodes by message.

An exchange is one message to each client of the cohort and one reply from it. Replies are taken in the order of the
clients' identities, one at a time, so a mean holds one reply and has the bits of the local engine's. A client that
is silent, answers with an error, or with something that does not fit, is left out and reported.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedstart import tree
from fedstart.engines import wire
from fedstart.engines.client import SHARES, share
from fedstart.models import Model
from fedstart.types import Algorithm, Cost, Counts, Memories, Plan, Weights

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Patience:
    """How long a server waits, and how many it needs.

    `nodes`: nodes to wait for before a round, at most `join_seconds`. `reply_seconds`: time for all replies of one
    exchange. `share`: the part of the cohort, 0 to 1, that must answer every exchange (at least one client).
    """

    nodes: int = 1
    join_seconds: float = 300.0
    reply_seconds: float = 3600.0
    share: float = 0.5


@dataclass(frozen=True)
class Member:
    """A node as the server knows it: where it is, and how many examples each of its parts has."""

    node: int
    sizes: dict[str, int]


@dataclass
class Nodes:
    """Who is there: the nodes of a grid by the identity that their own configuration gives them.

    Implements `fedstart.training.Roster`; asking for `eligible` looks for nodes that came or went.
    """

    name: str
    grid: Grid
    patience: Patience = Patience()
    members: dict[int, Member] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)

    @property
    def eligible(self) -> np.ndarray:
        """Identities of the nodes that are there and have training examples, ascending.

        Waits for `patience.nodes` of them. Raises ValueError when they do not come in `patience.join_seconds`.
        """
        deadline = time.monotonic() + self.patience.join_seconds
        while True:
            self._look()
            found = sorted(identity for identity, member in self.members.items() if member.sizes.get("train", 0) > 0)
            if len(found) >= self.patience.nodes:
                return np.array(found, dtype=np.int64)
            if time.monotonic() > deadline:
                refused = "".join(f"; node {node}: {why}" for node, why in self.refused.items())
                raise ValueError(
                    f"{self.name}: {len(found)} of {self.patience.nodes} nodes came in "
                    f"{self.patience.join_seconds:g} seconds{refused}"
                )
            time.sleep(POLL_SECONDS)

    def _look(self) -> None:
        there = set(self.grid.get_node_ids())
        self.members = {identity: member for identity, member in self.members.items() if member.node in there}
        known = {member.node for member in self.members.values()} | set(self.refused)
        fresh = sorted(there - known)
        asked = [Message(RecordDict(), node, "query.hello") for node in fresh]
        for node, reply in zip(fresh, answers(self.grid, asked, self.patience.reply_seconds), strict=True):
            try:
                identity, sizes = _introduction(reply)
                if identity in self.members:
                    raise ValueError(f"client {identity} is there already, from node {self.members[identity].node}")
                self.members[identity] = Member(node, sizes)
            except ValueError as error:
                self.refused[node] = str(error)


class FlowerEngine:
    """Runs cohorts on the nodes of a Flower grid. Implements `fedstart.training.Engine`."""

    def __init__(self, grid: Grid, patience: Patience = Patience()) -> None:
        self.grid = grid
        self.patience = patience

    def cohort(
        self, model: Model, federation: Nodes, plan: Plan, number: int, clients: Sequence[int], memories: Memories
    ) -> FlowerCohort:
        """The clients of round `number`; what clients remember stays at their nodes, so `memories` is not used."""
        return FlowerCohort(self.grid, self.patience, model, federation, plan, number, clients)

    def evaluate(self, model: Model, federation: Nodes, weights: Weights, part: str = "test") -> Counts:
        """Scores all nodes on their own part; a node that does not answer as it should counts no examples."""
        identities = federation.eligible.tolist()
        content = wire.write((weights, part))
        content["task"] = ConfigRecord({"model": _model(model)})
        asked = [Message(content, federation.members[i].node, "evaluate.scores") for i in identities]
        rows = np.zeros((max(identities) + 1, 3))
        for identity, reply in zip(identities, answers(self.grid, asked, self.patience.reply_seconds), strict=True):
            try:
                rows[identity] = _scores(reply, federation.members[identity].sizes.get(part, 0))
            except ValueError:
                rows[identity] = 0
        return Counts(rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64), rows[:, 2])


class FlowerCohort:
    """The clients of one round on their nodes; `missing` says who failed and why. Implements `fedstart.types.Cohort`."""

    def __init__(
        self,
        grid: Grid,
        patience: Patience,
        model: Model,
        nodes: Nodes,
        plan: Plan,
        number: int,
        clients: Sequence[int],
    ) -> None:
        self.clients: list[int] = sorted(clients)
        self.cost = Cost()
        self.missing: dict[int, str] = {}
        self.memories: Memories = {}
        self.population = len(nodes.members)
        self._grid, self._patience, self._model, self._plan, self._number = grid, patience, model, plan, number
        self._members = dict(nodes.members)
        self._needed = max(1, math.ceil(patience.share * len(self.clients)))
        self._loss_sum, self._loss_count = 0.0, 0

    @property
    def loss(self) -> float:
        """Mean training loss over all local steps so far, each example alike; NaN before any training."""
        return self._loss_sum / self._loss_count if self._loss_count else float("nan")

    def map(self, method: Callable[..., Any], *broadcast: Any) -> list[Any]:
        """`method(client, *broadcast)` for every client that answers, in the order of `clients`. One exchange."""
        return [result for _, result in self._exchange(method, broadcast)]

    def mean(self, method: Callable[..., Weights], *broadcast: Any, weight: str | None = "train") -> Weights:
        """Streaming mean over the clients that answer, weighted by the size of the part `weight`; None = plain."""
        mean = tree.Mean()
        for client, result in self._exchange(method, broadcast):
            mean.add(result, 1 if weight is None else self._size(client, weight))
        return mean.value()

    def _exchange(self, method: Callable[..., Any], broadcast: tuple[Any, ...]) -> Iterator[tuple[int, Any]]:
        kind, shapes = wire.expected(method), self._shapes(broadcast)
        content = wire.write(broadcast)
        content["task"] = ConfigRecord(self._task(method))
        kind_of_message = f"train.{method.__name__}"
        asked = [
            Message(content, self._members[client].node, kind_of_message, group_id=str(self._number))
            for client in self.clients
        ]
        trainable = frozenset(self._model.parameters)
        down, up, examples = len(asked) * tree.nbytes(broadcast), 0, 0
        for client, reply in zip(
            tuple(self.clients), answers(self._grid, asked, self._patience.reply_seconds), strict=True
        ):
            try:
                result = wire.read(_content(reply))
                wire.check(result, kind, shapes, trainable)
                count, loss_sum, loss_count = _report(reply)
            except ValueError as error:
                self.missing[client] = f"{method.__name__}: {error}"
                continue
            up, examples = up + tree.nbytes(result), examples + count
            self._loss_sum, self._loss_count = self._loss_sum + loss_sum, self._loss_count + loss_count
            yield client, result
        self.clients = [client for client in self.clients if client not in self.missing]
        self.cost += Cost(examples, 1, down, up)
        if len(self.clients) < self._needed:
            why = "; ".join(f"client {client}: {reason}" for client, reason in self.missing.items())
            raise ValueError(
                f"round {self._number}: {len(self.clients)} clients answered, {self._needed} are needed ({why})"
            )

    def _task(self, method: Callable[..., Any]) -> dict[str, Any]:
        algorithm: Algorithm = method.__self__  # pyright: ignore[reportFunctionMemberAccess]
        return {
            "algorithm": type(algorithm).__module__.rpartition(".")[2],
            "settings": json.dumps(asdict(algorithm)),  # pyright: ignore[reportArgumentType]
            "plan": json.dumps(asdict(self._plan)),  # pyright: ignore[reportArgumentType]
            "model": _model(self._model),
            "round": self._number,
        }

    def _size(self, client: int, part: str) -> int:
        sizes = self._members[client].sizes
        if part in sizes or part not in SHARES:
            return sizes.get(part, 0)
        return share(self._plan, part, sizes["train"], f"client {client}")

    def _shapes(self, broadcast: tuple[Any, ...]) -> wire.Shapes:
        weights = next((v for v in broadcast if isinstance(v, dict) and v.keys() == self._model.shapes.keys()), None)
        if weights is None:
            raise ValueError("the first thing that a client method is sent must be the model's weights")
        return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}


def answers(grid: Grid, messages: Sequence[Message], seconds: float) -> Iterator[Message | str]:
    """The reply to each message, in the order of the messages, or why there is none.

    A reply waits at the SuperLink until its turn. `seconds` is the time for all of them together.
    """
    identifiers = list(grid.push_messages(messages))
    deadline = time.monotonic() + seconds
    for identifier in identifiers:
        found: Message | str | None = None if identifier else "the message could not be sent: the node has gone"
        while found is None:
            found = next(iter(grid.pull_messages([identifier])), None)
            if found is None and time.monotonic() > deadline:
                found = f"no answer in {seconds:g} seconds"
            elif found is None:
                time.sleep(POLL_SECONDS)
        yield found


def _content(reply: Message | str) -> RecordDict:
    if isinstance(reply, str):
        raise ValueError(reply)
    if reply.has_error():
        reason = (reply.error.reason or "").strip().splitlines() or [f"code {reply.error.code}"]
        raise ValueError(f"the node answered with an error: {reason[-1]}")
    return reply.content


def _report(reply: Message | str) -> tuple[int, float, int]:
    """Examples processed, sum of the training losses, and how many they are."""
    metrics = _content(reply).metric_records.get("report", {})
    examples, loss_sum, count = (metrics.get(key, -1) for key in ("examples", "loss-sum", "loss-count"))
    if not isinstance(examples, int) or not isinstance(count, int) or min(examples, count) < 0:
        raise ValueError("no count of the examples")
    if not isinstance(loss_sum, int | float) or not math.isfinite(loss_sum):
        raise ValueError(f"the training loss is {loss_sum!r}")
    return examples, float(loss_sum), count


def _introduction(reply: Message | str) -> tuple[int, dict[str, int]]:
    try:
        record = _content(reply).config_records["hello"]
        sizes = json.loads(str(record["sizes"]))
        identity = record["client"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"the introduction lacks {error}") from None
    if not isinstance(identity, int) or identity < 0:
        raise ValueError(f"client {identity!r} is not an identity (allowed: whole numbers from 0)")
    if not isinstance(sizes, dict) or not all(isinstance(n, int) and n >= 0 for n in sizes.values()):
        raise ValueError(f"client {identity}: sizes {sizes!r} are not counts")
    return identity, sizes


def _scores(reply: Message | str, size: int) -> tuple[float, float, float]:
    metrics = _content(reply).metric_records.get("scores", {})
    correct, total, loss = (metrics.get(key) for key in ("correct", "total", "loss"))
    if not isinstance(correct, int) or total != size or not 0 <= correct <= size:
        raise ValueError(f"{correct!r} of {total!r} correct is impossible for {size} examples")
    if not isinstance(loss, int | float) or not math.isfinite(loss):
        raise ValueError(f"the test loss is {loss!r}")
    return correct, size, float(loss)


def _model(model: Model) -> str:
    described = model.describe()
    return json.dumps({key: described[key] for key in ("name", "settings", "shape", "classes")})


assert torch  # the records of flwr convert tensors only once torch is there
