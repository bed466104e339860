"""The local engine: all clients in this process, several at a time on threads that each own a model.

Every client runs on one torch thread, and results are taken in the order of the clients, so the number of
threads changes no bit of any result.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import joblib
import numpy as np
import torch
from torch.nn.functional import cross_entropy

from fedstart import tree
from fedstart.data.federation import Federation
from fedstart.engines.client import LocalClient, Replica, size
from fedstart.models import Model
from fedstart.types import Cost, Counts, Memories, Plan, Weights

NOTHING: Memories = MappingProxyType({})
EVALUATION_CHUNK = 512
WINDOW = 4
"""Results waiting per thread: bounds memory while a slow client holds up the order."""


class LocalEngine:
    """Runs clients on `threads` threads (none = one per core). Use as a context manager, or call `close()`.

    Raises ValueError for fewer than one thread.
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self.threads = threads or joblib.cpu_count()
        self.unscored: Mapping[int, str] = {}
        self._pool = ThreadPoolExecutor(self.threads, "fedstart", initializer=_use_one_torch_thread)
        # Sums in the caller's thread would split over all cores and wait for those that the clients hold.
        self._summing = ThreadPoolExecutor(1, "fedstart-sum", initializer=_use_one_torch_thread)
        self._own = threading.local()

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(cancel_futures=True)
        self._summing.shutdown()

    def cohort(
        self,
        model: Model,
        federation: Federation,
        plan: Plan,
        number: int,
        clients: Sequence[int],
        memories: Memories = NOTHING,
    ) -> LocalCohort:
        """The clients of round `number`, ready for an algorithm's `step`; `memories` is what they remember."""
        return LocalCohort(self, model, federation, plan, number, clients, memories)

    def evaluate(self, model: Model, federation: Federation, weights: Weights, part: str = "test") -> Counts:
        """Scores all clients in one pass over the part: correct, total and summed loss per client.

        The model is in evaluation mode (BatchNorm uses its running statistics).
        """
        positions = federation.parts[part]
        owners = np.repeat(np.arange(len(positions)), positions.sizes)
        dtype = _dtype(weights)

        def score(start: int) -> tuple[np.ndarray, np.ndarray]:
            replica = self.replica(model, dtype)
            replica.load(weights)
            replica.module.eval()
            inputs, labels = federation.batch(positions.values[start : start + EVALUATION_CHUNK], dtype)
            with torch.inference_mode():
                logits = replica.module(inputs)
                losses = cross_entropy(logits, labels, reduction="none").double()
                return (logits.argmax(1) == labels).numpy(), losses.numpy()

        chunks = list(self.stream(score, range(0, len(owners), EVALUATION_CHUNK)))
        correct = np.concatenate([c for c, _ in chunks]) if chunks else np.zeros(0)
        losses = np.concatenate([losses for _, losses in chunks]) if chunks else np.zeros(0)
        clients = len(positions)
        return Counts(
            correct=np.bincount(owners, correct, clients).astype(np.int64),
            total=positions.sizes.astype(np.int64),
            loss=np.bincount(owners, losses, clients),
        )

    def replica(self, model: Model, dtype: torch.dtype) -> Replica:
        """The calling thread's own copy of the model."""
        held = getattr(self._own, "held", None)
        if held is None or held[0] != (model, dtype):
            held = ((model, dtype), Replica(model, dtype))
            self._own.held = held
        return held[1]

    def add(self, mean: tree.Mean, weights: Weights, weight: float) -> None:
        """Adds one client's weights to a mean, on one torch thread."""
        self._summing.submit(mean.add, weights, weight).result()

    def stream(self, call: Callable[[int], Any], items: Sequence[int]) -> Iterator[Any]:
        """`call(item)` on the threads, results in the order of the items; the first error ends the rest."""
        waiting: deque[Future[Any]] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(call, item))
                if len(waiting) >= WINDOW * self.threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class LocalCohort:
    """The clients of one round in this process. Implements `fedstart.types.Cohort`; keeps the round's cost and loss.

    `loss_sum` and `loss_count` are the sum of the training losses so far and the number of examples in it.
    """

    def __init__(
        self,
        engine: LocalEngine,
        model: Model,
        federation: Federation,
        plan: Plan,
        number: int,
        clients: Sequence[int],
        memories: Memories = NOTHING,
    ) -> None:
        self.clients = tuple(sorted(clients))
        self.cost = Cost()
        self.missing: dict[int, str] = {}
        self.memories: dict[int, Mapping[str, Weights]] = dict(memories)
        self._before = memories
        self._engine = engine
        self._model = model
        self._federation = federation
        self._plan = plan
        self._number = number
        self.loss_sum = 0.0
        self.loss_count = 0

    @property
    def population(self) -> int:
        """Number of clients that could have been drawn."""
        return len(self._federation.eligible)

    @property
    def loss(self) -> float:
        """Mean training loss over all local steps so far, each example alike; NaN before any training."""
        return self.loss_sum / self.loss_count if self.loss_count else float("nan")

    def map(self, method: Callable[..., Any], *broadcast: Any) -> list[Any]:
        """`method(client, *broadcast)` for every client, in the order of `clients`. One exchange."""
        return list(self._exchange(method, broadcast))

    def mean(self, method: Callable[..., Weights], *broadcast: Any, weight: str | None = "train") -> Weights:
        """Streaming mean of `method(client, *broadcast)`, weighted by the size of the part `weight`; None = plain."""
        mean = tree.Mean()
        for client, result in zip(self.clients, self._exchange(method, broadcast), strict=True):
            share = 1 if weight is None else size(self._federation, self._plan, weight, client)
            self._engine.add(mean, result, share)
        return mean.value()

    def _exchange(self, method: Callable[..., Any], broadcast: tuple[Any, ...]) -> Iterator[Any]:
        dtype = _dtype(broadcast)
        down, up, examples = len(self.clients) * tree.nbytes(broadcast), 0, 0

        def call(identity: int) -> tuple[Any, LocalClient]:
            replica = self._engine.replica(self._model, dtype)
            memory = self._before.get(identity, {})
            client = LocalClient(identity, self._federation, self._plan, self._number, replica, memory)
            return method(client, *broadcast), client

        for result, client in self._engine.stream(call, self.clients):
            up += tree.nbytes(result)
            examples += client.examples
            self.loss_sum += client.loss_sum
            self.loss_count += client.loss_count
            if client.remembered:
                self.memories[client.identity] = {**self.memories.get(client.identity, {}), **client.remembered}
            yield result
        self.cost += Cost(examples, 1, down, up)


def _dtype(value: Any) -> torch.dtype:
    """The type of the first floating tensor in a nest of mappings and tuples; float32 if there is none."""
    if isinstance(value, torch.Tensor):
        return value.dtype
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    found = [_dtype(item) for item in items if isinstance(item, torch.Tensor | dict | list | tuple)]
    return next((dtype for dtype in found if dtype.is_floating_point), torch.float32)


def _use_one_torch_thread() -> None:
    # A thread's own OpenMP setting; the process keeps its number, as workers that follow would inherit it.
    torch.set_num_threads(1)
