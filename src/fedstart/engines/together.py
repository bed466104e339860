"""Running a method on many clients in one pass.

A method is plain code for one client. It is called for each client of a group; at its first request (`descend`,
`gradient`, `loss`) it is left, all clients' requests are answered in one pass, and the method is called again, now
with that answer at hand, up to its next request. Methods are pure, so nothing is seen of the repetition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fedstart.engines.batches import size, steps
from fedstart.engines.stacked import Stack
from fedstart.types import Judgement, Weights


class Request(NamedTuple):
    """What a client's method asks for. Requests of one group with the same `kind`, `part`, ... go in one pass."""

    kind: str
    part: str
    proximal: float
    bent: bool
    weights: Weights
    linear: Weights | None


class _Asked(BaseException):
    """Leaves a method at a request that has no answer yet. No Exception, so that no method catches it."""

    def __init__(self, request: Request) -> None:
        self.request = request


@dataclass
class StackedClient:
    """One client of a group. Implements `fedstart.types.Client`; its `answers` are those of its requests so far."""

    identity: int
    stack: Stack
    memory: Mapping[str, Weights]
    answers: list[Any] = field(default_factory=list)
    remembered: dict[str, Weights] = field(default_factory=dict)
    examples: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    _asked: int = 0

    def begin(self) -> None:
        """Before each call of the method."""
        self._asked, self.remembered = 0, {}

    @property
    def lr(self) -> float:
        """eta: learning rate of the local steps."""
        return self.stack.plan.lr

    def size(self, part: str = "train") -> int:
        """Number of examples in the part."""
        return size(self.stack.federation, self.stack.plan, part, self.identity)

    def descend(
        self, weights: Weights, part: str = "train", *, linear: Weights | None = None, proximal: float = 0.0
    ) -> Weights:
        """Local SGD from `weights` on `loss + <linear, w> + proximal/2 ||w - weights||^2`."""
        return self._answer(Request("descend", part, proximal, linear is not None, weights, linear))

    def loss(self, weights: Weights, part: str = "train") -> float:
        """Mean loss over the part at `weights`."""
        return self._answer(Request("loss", part, 0.0, False, weights, None))

    def gradient(self, weights: Weights, part: str = "train") -> Judgement:
        """Mean loss over the whole part at `weights` and its gradient."""
        return self._answer(Request("gradient", part, 0.0, False, weights, None))

    def total_rate(self, part: str = "train") -> float:
        """Sum of the learning rates of all local steps on the part: K times eta."""
        return self.stack.plan.lr * steps(self.stack.plan, self.size(part))

    def recall(self, name: str) -> Weights | None:
        """What this client remembered under the name before this round; None if nothing."""
        return self.memory.get(name)

    def remember(self, name: str, weights: Weights) -> None:
        """Keeps weights for later rounds; this round still recalls what was there before."""
        self.remembered[name] = weights

    def _answer(self, request: Request) -> Any:
        self._asked += 1
        if self._asked > len(self.answers):
            raise _Asked(request)
        return self.answers[self._asked - 1]


def run(method: Callable[..., Any], clients: Sequence[StackedClient], broadcast: tuple[Any, ...]) -> list[Any]:
    """`method(client, *broadcast)` for every client, in their order."""
    results: list[Any] = [None] * len(clients)
    waiting = list(range(len(clients)))
    while waiting:
        groups: dict[tuple[Any, ...], list[tuple[int, Request]]] = {}
        for place in waiting:
            client = clients[place]
            client.begin()
            try:
                results[place] = method(client, *broadcast)
            except _Asked as asked:
                groups.setdefault(asked.request[:4], []).append((place, asked.request))
        for (kind, *_), group in groups.items():
            _answer(kind, [clients[place] for place, _ in group], [request for _, request in group])
        waiting = sorted(place for group in groups.values() for place, _ in group)
    return results


def _answer(kind: str, clients: Sequence[StackedClient], requests: Sequence[Request]) -> None:
    """Answers one request of each client, all of one kind, in one pass."""
    held, first = clients[0].stack, requests[0]
    stack = Stack(held.replica, held.federation, held.plan, held.number, [client.identity for client in clients])
    weights = [request.weights for request in requests]
    if kind == "descend":
        slopes = [request.linear for request in requests if request.linear is not None] if first.bent else None
        trained = stack.descend(weights, first.part, slopes, first.proximal)
        answers, examples = trained.weights, trained.examples
        for client, loss_sum, count in zip(clients, trained.loss_sums, examples, strict=True):
            client.loss_sum += float(loss_sum)
            client.loss_count += int(count)
    else:
        answers = stack.gradients(weights, first.part) if kind == "gradient" else stack.losses(weights, first.part)
        examples = stack.sizes(first.part)
    for client, answer, count in zip(clients, answers, examples, strict=True):
        client.answers.append(answer)
        client.examples += int(count)
