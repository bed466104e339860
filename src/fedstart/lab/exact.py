"""Exact dynamics: clients and a cohort whose weights are coefficients of patches, for many runs in one pass.

Filters move along the directions of a `Geometry` only: w = w_start + sum_k A_k x_k. Methods that do no more than add
and scale weights take A for weights and need not know; `{"coefficients": A}` has shape (B, 1 or K, F, M): the server's
trees have 1 in the place of the clients. One call of a method serves the clients of all runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from fedstart.engines import allocation
from fedstart.lab.geometry import Geometry
from fedstart.types import Algorithm, Cohort, Direction, State, Weights

LINEAR = ("FedAvg", "FedAvgM", "FedDyn", "FedProx", "Reptile", "Scaffold")
"""Methods that only add and scale weights. All others measure lengths or angles, which coefficients do not show."""

NAME = "coefficients"


@dataclass(frozen=True, eq=False)
class Shares:
    """What each client of each run holds, padded to the largest: N examples, D = C + N directions, Q = B K rows."""

    geometry: Geometry

    @cached_property
    def examples(self) -> tuple[Tensor, Tensor]:
        """Places of the examples, shape (B, K, N), and which of them are there."""
        owners, clients = self.geometry.owners, self.geometry.clients
        held = owners.unsqueeze(1) == torch.arange(clients).view(1, -1, 1)
        size = int(held.sum(2).max())
        places = held.byte().argsort(dim=2, descending=True, stable=True)[:, :, :size]
        return places, held.gather(2, places)

    @cached_property
    def directions(self) -> Tensor:
        """Places of a client's own directions, shape (B, K, D): all signals, then its own noise."""
        places, _ = self.examples
        signals = torch.arange(self.geometry.classes).expand(*places.shape[:2], -1)
        return torch.cat([signals, self.geometry.classes + places], 2)

    @cached_property
    def gram(self) -> Tensor:
        """Inner products of a client's own directions, shape (B, K, D, D)."""
        width = self.directions.shape[2]
        rows = self.geometry.gram.unsqueeze(1).expand(-1, self.geometry.clients, -1, -1)
        rows = rows.gather(2, self.directions.unsqueeze(3).expand(-1, -1, -1, rows.shape[3]))
        return rows.gather(3, self.directions.unsqueeze(2).expand(-1, -1, width, -1))

    @cached_property
    def incidence(self) -> Tensor:
        """1 where a direction is a patch of an example, shape (B, K, D, N)."""
        places, there = self.examples
        signals = torch.nn.functional.one_hot(self._of(self.geometry.truth), self.geometry.classes)
        noise = torch.eye(places.shape[2], dtype=torch.int64).expand(*places.shape, -1)
        return (torch.cat([signals, noise], 3).mT * there.unsqueeze(2)).double()

    @cached_property
    def targets(self) -> Tensor:
        """1 for the label of an example, shape (B, K, C, N)."""
        return torch.nn.functional.one_hot(self._of(self.geometry.labels), self.geometry.classes).mT.double()

    @cached_property
    def sizes(self) -> Tensor:
        """Examples of each client, shape (B, K)."""
        return self.examples[1].sum(2).double()

    def _of(self, values: Tensor) -> Tensor:
        places, _ = self.examples
        return values.unsqueeze(1).expand(-1, places.shape[1], -1).gather(2, places)


@dataclass(eq=False)
class ExactClient:
    """All clients of all runs in one; implements what linear methods ask of `fedstart.types.Client`.

    Local training is full-batch gradient descent: `steps` steps of rate `eta`, a number each or one for each run.
    """

    shares: Shares
    eta: Tensor
    steps: Tensor
    memory: Mapping[str, Weights] = field(default_factory=dict)
    remembered: dict[str, Weights] = field(default_factory=dict)
    moved: Tensor = field(default_factory=lambda: torch.zeros(0))

    def descend(
        self,
        weights: Weights,
        part: str = "train",
        *,
        linear: Weights | None = None,
        proximal: float = 0.0,
        direction: Direction | None = None,
    ) -> Weights:
        """Local steps on `loss + <linear, w> + proximal/2 ||w - weights||^2`; the coefficients after them.

        Own coefficients x and the distance phi along `linear` follow
        `x <- (1 - eta proximal) x - eta g(z)`, `phi <- (1 - eta proximal) phi - eta`, where z are the inner products
        of filters and own directions at `weights + x + phi linear`.
        """
        if direction is not None:
            raise ValueError("exact dynamics have no steps with a direction of their own (allowed: FedAvg's steps)")
        shares, geometry = self.shares, self.shares.geometry
        begin = weights[NAME]
        z_begin = self._own(geometry.overlaps.unsqueeze(1) + begin @ geometry.gram.unsqueeze(1))
        slope = None if linear is None else self._own(linear[NAME] @ geometry.gram.unsqueeze(1))
        moved, distance = torch.zeros_like(z_begin), torch.zeros_like(_wide(self.eta))
        longest, even = int(self.steps.max()), bool((self.steps == self.steps[0]).all())
        for step in range(longest):
            rate = _wide(self.eta if even else self.eta * (step < self.steps))
            z = torch.baddbmm(_rows(z_begin), _rows(moved), _rows(shares.gram)).view_as(moved)
            if slope is not None:
                z.addcmul_(distance, slope)
            if proximal:
                moved.mul_(1 - rate * proximal)
                distance.mul_(1 - rate * proximal)
            moved.addcmul_(self._gradient(z), rate, value=-1)
            distance.sub_(rate)
        places = shares.directions.unsqueeze(2).expand_as(moved)
        self.moved = moved.new_zeros(*moved.shape[:3], begin.shape[3]).scatter_add_(3, places, moved)
        if linear is not None:
            self.moved.addcmul_(distance, linear[NAME])
        return {NAME: begin + self.moved}

    def _gradient(self, z: Tensor) -> Tensor:
        """The gradient's coefficients at inner products z; both of shape (B, K, F, D)."""
        shares, classes = self.shares, self.shares.geometry.classes
        flat = _rows(z)
        grouped = flat.view(len(flat), classes, -1, flat.shape[2])
        logits = grouped.relu().mean(2) @ _rows(shares.incidence)
        residual = (logits.softmax(1) - _rows(shares.targets)) * self._weights
        pull = (residual @ _rows(shares.incidence).mT).unsqueeze(2).expand_as(grouped)
        return torch.ops.aten.threshold_backward(pull, grouped, 0).view_as(z)

    @cached_property
    def _weights(self) -> Tensor:
        """1 / (N_k m), the share of an example in its client's loss and of a filter in its logit; (B K, 1, 1)."""
        return 1 / (self.shares.sizes * self.shares.geometry.filters).view(-1, 1, 1)

    def _own(self, all_directions: Tensor) -> Tensor:
        """What clients see of numbers of all directions, (B, 1 or K, F, M): their own, (B, K, F, D)."""
        places = self.shares.directions.unsqueeze(2).expand(-1, -1, all_directions.shape[2], -1)
        return all_directions.expand(-1, places.shape[1], -1, -1).gather(3, places)

    def total_rate(self, part: str = "train") -> Tensor:
        """Sum of the rates of all local steps, shape (B, 1, 1, 1); that of one where a run makes none."""
        return _wide(self.eta * self.steps.clamp(min=1))

    def recall(self, name: str) -> Weights | None:
        """What the clients remembered under the name, with K in the place of the clients."""
        return self.memory.get(name)

    def remember(self, name: str, weights: Weights) -> None:
        """Keeps coefficients for later rounds."""
        self.remembered[name] = weights


class ExactCohort:
    """All clients of one round of all runs; implements what linear methods ask of `fedstart.types.Cohort`."""

    def __init__(self, client: ExactClient) -> None:
        self._client = client
        self.clients = tuple(range(client.shares.geometry.clients))

    @property
    def population(self) -> int:
        """Number of clients K: all of them take part."""
        return len(self.clients)

    def mean(self, method: Callable[..., Weights], *broadcast: Any, weight: str | None = "train") -> Weights:
        """Mean of the clients' trees, weighted by their examples; None is the plain mean."""
        sizes = torch.ones_like(self._client.shares.sizes) if weight is None else self._client.shares.sizes
        share = (sizes / sizes.sum(1, keepdim=True)).unsqueeze(1)
        found = method(self._client, *broadcast)
        return {
            name: (share @ tensor.expand(-1, len(self.clients), -1, -1).flatten(2)).unflatten(2, tensor.shape[2:])
            for name, tensor in found.items()
        }


@dataclass(frozen=True, eq=False)
class Moment:
    """B runs behind a round: `coefficients` (B, F, M) and how far clients moved (B, K, F, M).

    `tau` (B,) are the round's local steps, `steps` (B,) those so far.
    """

    number: int
    coefficients: Tensor
    moved: Tensor
    tau: Tensor
    steps: Tensor


Schedule = Callable[[int, Moment | None], Tensor]
"""tau of round `number` = 1, 2, ... for each run, shape (B,), from what the last round showed."""


def follow(
    geometry: Geometry, algorithm: Algorithm, eta: float | Tensor, schedule: int | Schedule, rounds: int
) -> Iterator[Moment]:
    """Yields `rounds` rounds of a linear method on all runs at once; all clients take part in each.

    `eta` is a number or one for each run; `schedule` is tau, or says it for each round and run; tau = 0 is no work.
    Raises ValueError for a method that measures lengths or angles.
    """
    if (name := type(algorithm).__name__) not in LINEAR:
        raise ValueError(f"exact dynamics carry methods that add and scale weights, not {name} ({', '.join(LINEAR)})")
    allocation.keep_memory()
    rates = torch.as_tensor(eta, dtype=torch.float64).expand(len(geometry))
    shares, memory = Shares(geometry), {}
    begin = torch.zeros_like(geometry.overlaps[:, :, :1]).expand(-1, -1, geometry.gram.shape[1])
    state, taken, last = State({NAME: begin.unsqueeze(1)}), torch.zeros(len(geometry), dtype=torch.int64), None
    for number in range(1, rounds + 1):
        steps = (torch.tensor([schedule]) if isinstance(schedule, int) else schedule(number, last)).expand(
            len(geometry)
        )
        client = ExactClient(shares, rates, steps, memory)
        state, _ = algorithm.step(state, cast(Cohort, ExactCohort(client)))
        memory = {**memory, **client.remembered}
        taken = taken + steps
        last = Moment(number, state.weights[NAME].squeeze(1), client.moved, steps, taken)
        yield last


def mean_loss(geometry: Geometry, coefficients: Tensor) -> Tensor:
    """Mean training loss over all examples at coefficients (B, F, M), shape (B,)."""
    z = geometry.overlaps + coefficients @ geometry.gram
    active = z.view(len(z), geometry.classes, -1, z.shape[2]).relu().mean(2)
    signal = active[:, :, : geometry.classes].gather(2, geometry.truth.unsqueeze(1).expand(-1, geometry.classes, -1))
    logits = (signal + active[:, :, geometry.classes :]).log_softmax(1)
    return -logits.gather(1, geometry.labels.unsqueeze(1)).mean((1, 2))


def _rows(tensor: Tensor) -> Tensor:
    """(B, K, ...) as (B K, ...)."""
    return tensor.flatten(0, 1)


def _wide(values: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)
