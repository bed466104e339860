"""The Flower engine, on the server: the same algorithms, their client methods called on nodes by message.

An exchange is one message to each client of the cohort and one reply from it. Replies are taken in the order of the
clients' identities, one at a time, so a mean holds one reply and has the bits of the local engine's. A client that
is silent, answers with an error, or with something that does not fit, is left out and reported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedstart import keys, tree
from fedstart.engines import replies, wire
from fedstart.engines.batches import SHARES, share, steps
from fedstart.engines.exchanges import exchanges
from fedstart.engines.members import USUAL, Member, Nodes, Patience
from fedstart.engines.privacy import Privacy, PrivateMean, refuse_unless_means
from fedstart.engines.rehearsal import rehearse
from fedstart.models import Model
from fedstart.schedules import Adaptive
from fedstart.types import Algorithm, Cost, Counts, Memories, Plan, Weights

__all__ = ["FlowerCohort", "FlowerEngine", "Member", "Nodes", "Patience"]

MOST_WORK = 100
"""Passes over its examples, or trainings, that a node can claim for one exchange."""

COUNTED = "counted"
"""Under this name the server keeps of each client, not what it remembers, but which of its rounds counted last."""


class FlowerEngine:
    """Runs cohorts on the nodes of a Flower grid. Implements `fedstart.training.Engine`.

    `privacy` wraps every mean in one of Flower's strategies for differential privacy (see `engines.privacy`);
    algorithms with another kind of exchange are then refused. `unscored` says of each client that gave no scores in
    the last evaluation why it did not.
    """

    def __init__(self, grid: Grid, patience: Patience = USUAL, privacy: Privacy | None = None) -> None:
        self.grid = grid
        self.patience = patience
        self.unscored: Mapping[int, str] = {}
        self._private = PrivateMean(privacy) if privacy else None

    def cohort(
        self, model: Model, federation: Nodes, plan: Plan, number: int, clients: Sequence[int], memories: Memories
    ) -> FlowerCohort:
        """The clients of round `number`. What they remember stays at their nodes; `memories` says since which round.

        Raises ValueError for a plan with steps on examples that this server does not have, and for an adaptive
        schedule, whose sums over clients nodes do not send.
        """
        if isinstance(plan.schedule, Adaptive):
            raise ValueError("schedule = adaptive runs on the local engine only (allowed here: step, cosine, plateau)")
        if plan.server_steps:
            raise ValueError("server_steps: a Flower server holds no examples (allowed: 0)")
        return FlowerCohort(self.grid, self.patience, model, federation, plan, number, clients, memories, self._private)

    def evaluate(self, model: Model, federation: Nodes, weights: Weights, part: str = "test") -> Counts:
        """Scores all nodes on their own part; a node that does not answer as it should counts no examples.

        Raises ValueError when no node gives scores.
        """
        members = federation.members or {i: federation.members[i] for i in federation.eligible.tolist()}
        identities = [identity for identity in sorted(members) if members[identity].sizes.get(part, 0)]
        content = wire.write((weights, part))
        content.config_records["form"]["model"] = _model(model)
        asked = [Message(content, members[i].node, "evaluate.scores") for i in identities]
        rows, unscored = np.zeros((max(members, default=-1) + 1, 3)), {}
        for identity, reply in zip(
            identities, replies.answers(self.grid, asked, self.patience.reply_seconds), strict=True
        ):
            try:
                rows[identity] = replies.scores(reply, members[identity].sizes[part])
            except ValueError as error:
                unscored[identity] = wire.one_line(f"scores: {error}")
        self.unscored = unscored
        if len(unscored) == len(identities):
            raise ValueError(f"{federation.name}: no node gave scores on {part!r}{_reasons(unscored)}")
        return Counts(rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64), rows[:, 2])


class _Answer(NamedTuple):
    """A client's checked answer, its weight in a mean, and the message and reply that it came from."""

    value: Any
    weight: float
    asked: Message
    reply: RecordDict


class FlowerCohort:
    """The clients of one round on their nodes; `missing` says who failed. Implements `fedstart.types.Cohort`."""

    def __init__(
        self,
        grid: Grid,
        patience: Patience,
        model: Model,
        nodes: Nodes,
        plan: Plan,
        number: int,
        clients: Sequence[int],
        memories: Memories,
        private: PrivateMean | None = None,
    ) -> None:
        self.clients: list[int] = sorted(clients)
        self.cost = Cost()
        self.missing: dict[int, str] = {}
        self.population = len(nodes.trained)
        self._grid, self._patience, self._model, self._plan, self._number = grid, patience, model, plan, number
        self._private, self._before = private, memories
        self._run = next((int(held[COUNTED]["run"]) for held in memories.values()), 0)
        self._remembered = False
        self._members = dict(nodes.members)
        self._needed = max(1, math.ceil(patience.share * len(self.clients)))
        self._loss_sum, self._loss_count = 0.0, 0

    @property
    def stagnating(self) -> float:
        """NaN: nodes do not send what would tell."""
        return float("nan")

    @property
    def loss(self) -> float:
        """Mean training loss over all local steps so far, each example alike; NaN before any training."""
        return self._loss_sum / self._loss_count if self._loss_count else float("nan")

    @property
    def memories(self) -> Memories:
        """Which round of each client counted last, for methods whose clients remember something."""
        if not self._remembered:
            return self._before
        counted = {COUNTED: {"round": torch.tensor(self._number), "run": torch.tensor(self._run)}}
        return {**self._before, **dict.fromkeys(self.clients, counted)}

    def map(self, method: Callable[..., Any], *broadcast: Any) -> list[Any]:
        """`method(client, *broadcast)` for every client that answers, in the order of `clients`. One exchange."""
        if self._private:
            raise ValueError(f"{method.__qualname__}: differential privacy needs a mean, not each client's own answer")
        return [answer.value for answer in self._exchange(method, broadcast, None)]

    def mean(self, method: Callable[..., Weights], *broadcast: Any, weight: str | None = "train") -> Weights:
        """Streaming mean over the clients that answer, weighted by the size of the part `weight`; None = plain."""
        answers = self._exchange(method, broadcast, weight)
        if self._private:
            private = self._private
            return private.mean(self._number, [private.reply(a.asked, a.value, a.reply) for a in answers])
        mean = tree.Mean()
        for answer in answers:
            mean.add(answer.value, answer.weight)
        return mean.value()

    def server(self, method: Callable[..., Any], *broadcast: Any, pieces: int = 1) -> list[Any]:
        """Raises ValueError: this server holds no examples of its own."""
        raise ValueError(f"{method.__qualname__}: a Flower server holds no examples (scenario II runs locally)")

    def refine(self, weights: Weights) -> Weights:
        """Raises ValueError: this server holds no examples of its own."""
        raise ValueError("server_steps: a Flower server holds no examples (allowed: 0)")

    def _exchange(self, method: Callable[..., Any], broadcast: tuple[Any, ...], part: str | None) -> Iterator[_Answer]:
        wire.expected(method)
        rehearsed = rehearse(method, self._model, broadcast)
        like = wire.pattern(rehearsed.value)
        self._remembered |= rehearsed.remembers
        asked = self._messages(method, broadcast, rehearsed.value, part)
        del rehearsed
        down, up, examples, backward = len(asked) * tree.nbytes(broadcast), 0, 0, 0
        for client, message, reply in zip(
            tuple(self.clients), asked, replies.answers(self._grid, asked, self._patience.reply_seconds), strict=True
        ):
            try:
                content = replies.content(reply)
                report = replies.report(content, client, self._most_work(client))
                result = wire.check(wire.read(content), like)
                if self._private:
                    self._private.check(result)
                weight = self._weight(client, part, content)
            except ValueError as error:
                self.missing[client] = wire.one_line(f"{method.__name__}: {error}")
                continue
            up += tree.nbytes(result)
            examples, backward = examples + report.examples, backward + report.backward
            self._loss_sum, self._loss_count = self._loss_sum + report.loss_sum, self._loss_count + report.loss_count
            del reply
            yield _Answer(result, weight, message, content)
        self.clients = [client for client in self.clients if client not in self.missing]
        self.cost += Cost(examples, 1, down, up, backward)
        if len(self.clients) < self._needed:
            raise ValueError(
                f"round {self._number}: {len(self.clients)} clients answered, {self._needed} are needed"
                f"{_reasons(self.missing)}"
            )

    def _messages(
        self, method: Callable[..., Any], broadcast: tuple[Any, ...], reference: Any, part: str | None
    ) -> list[Message]:
        task = self._task(method)
        nodes = [self._members[client].node for client in self.clients]
        if self._private:
            algorithm = getattr(method, "__self__", None)
            refuse_unless_means(algorithm, exchanges(type(algorithm)), "differential privacy")
            task.update(self._private.announce(self._number, reference, nodes))
        if self._remembered and not self._run:
            # A name for the training that is the same when it is repeated, and another for other weights or settings.
            held = {name: value for name, value in task.items() if name != "round"}
            self._run = keys.number(0, f"{json.dumps(held)}/{tree.fingerprint(wire.first_tree(broadcast))}")
        task["run"] = str(self._run)
        if part in SHARES and self._plan.query_split == "classes":
            task["sized"] = part
        content = wire.write(broadcast)
        arrays, form = content.array_records["arrays"], content.config_records["form"]
        counted = [self._counted(client) for client in self.clients]
        contents = {number: _content(arrays, {**form, **task, "counted": number}) for number in set(counted)}
        kind, group = f"train.{method.__name__}", str(self._number)
        return [
            Message(contents[number], node, kind, group_id=group) for number, node in zip(counted, nodes, strict=True)
        ]

    def _counted(self, client: int) -> int:
        return int(self._before[client][COUNTED]["round"]) if client in self._before else 0

    def _task(self, method: Callable[..., Any]) -> dict[str, Any]:
        algorithm: Algorithm = method.__self__  # pyright: ignore[reportFunctionMemberAccess]
        return {
            "algorithm": type(algorithm).__module__.rpartition(".")[2],
            "settings": json.dumps(asdict(algorithm)),  # pyright: ignore[reportArgumentType]
            "plan": json.dumps(asdict(self._plan)),  # pyright: ignore[reportArgumentType]
            "model": _model(self._model),
            "round": self._number,
        }

    def _weight(self, client: int, part: str | None, content: RecordDict) -> float:
        """A client's weight in a mean: the size of its part. Raises ValueError when it is 0.

        How many examples some classes have only the node knows: its word is taken, within what its `train` allows.
        """
        sizes = self._members[client].sizes
        if part is None:
            return 1
        shared = part in SHARES and part not in sizes
        train = sizes.get("train", 0)
        if shared and self._plan.query_split == "classes":
            return replies.size(content, train - 1)
        size = share(self._plan, part, train, "it") if shared else sizes.get(part, 0)
        if size == 0:
            raise ValueError(f"it has no examples in {part!r}")
        return size

    def _most_work(self, client: int) -> int:
        examples = sum(self._members[client].sizes.values())
        return MOST_WORK * max(examples, steps(self._plan, examples) * self._plan.batch_size)


def _content(arrays: ArrayRecord, form: dict[str, Any]) -> RecordDict:
    # One array record and one config record, as Flower's client mods want it.
    return RecordDict({"arrays": arrays, "form": ConfigRecord(form)})


def _reasons(missing: Mapping[int, str]) -> str:
    why = "; ".join(f"client {client}: {reason}" for client, reason in sorted(missing.items()))
    return f" ({wire.one_line(why)})" if why else ""


def _model(model: Model) -> str:
    described = model.describe()
    return json.dumps({key: described[key] for key in ("name", "settings", "shape", "classes")})
