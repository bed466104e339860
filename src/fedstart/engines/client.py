"""A client in this process: the door from an algorithm to one client's examples and a model to train on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedstart import keys
from fedstart.data.federation import Federation
from fedstart.models import Model
from fedstart.types import Judgement, Plan, Weights

SHARES = ("support", "query")
"""Parts that are shares of `train`, redrawn each round, unless the data has them."""

CHUNK = 256
"""Examples per forward pass where no minibatch is asked for: small enough for a ResNet-18 at 64 pixels."""


class Replica:
    """One module whose tensors are overwritten in place; each thread owns one, so nothing is built per client."""

    def __init__(self, model: Model, dtype: torch.dtype) -> None:
        self.module = model.module().to(dtype)
        self.dtype = dtype
        self._refuse_dropout()
        self.parameters = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        state = self.module.state_dict(keep_vars=True)
        for tensor in state.values():
            if tensor.dim() == 4:
                # Convolutions and pooling on a CPU are much faster with the channels last.
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
        self._tensors = {name: state[name].data for name in model.shapes}

    def load(self, weights: Weights) -> None:
        """Overwrites every parameter and buffer."""
        with torch.no_grad():
            torch._foreach_copy_(list(self._tensors.values()), [weights[name] for name in self._tensors])

    def read(self) -> Weights:
        """A copy of every parameter and buffer."""
        return {name: tensor.clone() for name, tensor in self._tensors.items()}

    def _refuse_dropout(self) -> None:
        for name, part in self.module.named_modules():
            if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
                raise ValueError(
                    f"{name or 'the model'}: dropout p={part.p} draws from torch's global generator, so no round could "
                    "be replayed (allowed: p=0)"
                )


@dataclass
class LocalClient:
    """One client in one round. Implements `fedstart.types.Client`; counts what it processes.

    `train` mode is used throughout (BatchNorm normalises with the minibatch at hand); buffers travel with the
    weights and are averaged like them.
    """

    identity: int
    federation: Federation
    plan: Plan
    number: int
    replica: Replica
    memory: Mapping[str, Weights] = field(default_factory=dict)
    remembered: dict[str, Weights] = field(default_factory=dict)
    examples: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0

    def size(self, part: str = "train") -> int:
        """Number of examples in the part."""
        return size(self.federation, self.plan, part, self.identity)

    def descend(
        self, weights: Weights, part: str = "train", *, linear: Weights | None = None, proximal: float = 0.0
    ) -> Weights:
        """Local SGD from `weights` on `loss + <linear, w> + proximal/2 ||w - weights||^2`, as long as the plan says.

        Minibatches are drawn without replacement, reshuffled each pass, keyed by (seed, round, client).
        """
        self.replica.load(weights)
        self.replica.module.train()
        parameters = list(self.replica.parameters.values())
        optimizer = torch.optim.SGD(
            parameters, self.plan.lr, self.plan.momentum, weight_decay=self.plan.weight_decay, fused=True
        )
        anchor = [weights[name] for name in self.replica.parameters] if proximal else []
        slope = [linear[name] for name in self.replica.parameters] if linear is not None else []
        positions = self._positions(part)
        total = torch.zeros((), dtype=torch.float64)
        for batch in self._minibatches(len(positions)):
            optimizer.zero_grad(set_to_none=True)
            loss = self._forward(positions[batch]).mean()
            loss.backward()
            if slope or anchor:
                _add_terms(parameters, slope, anchor, proximal)
            if self.plan.clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, self.plan.clip)
            optimizer.step()
            total += loss.detach() * len(batch)
            self._count(len(batch))
        self.loss_sum += float(total)
        return self.replica.read()

    def loss(self, weights: Weights, part: str = "train") -> float:
        """Mean loss over the part at `weights`."""
        self.replica.load(weights)
        self.replica.module.train()
        positions = self._positions(part)
        with torch.no_grad():
            total = sum(float(self._forward(chunk).double().sum()) for chunk in _chunks(positions))
        self.examples += len(positions)
        return total / len(positions)

    def gradient(self, weights: Weights, part: str = "train") -> Judgement:
        """Mean loss over the whole part at `weights` and its gradient, accumulated over chunks."""
        self.replica.load(weights)
        self.replica.module.train()
        self.replica.module.zero_grad(set_to_none=True)
        positions = self._positions(part)
        total = 0.0
        for chunk in _chunks(positions):
            losses = self._forward(chunk)
            (losses.sum() / len(positions)).backward()
            total += float(losses.detach().double().sum())
        self.examples += len(positions)
        gradient = {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for name, p in self.replica.parameters.items()
        }
        return Judgement(total / len(positions), {name: g.detach() for name, g in gradient.items()})

    def total_rate(self, part: str = "train") -> float:
        """Sum of the learning rates of all local steps on the part: K times eta."""
        return self.plan.lr * steps(self.plan, self.size(part))

    def recall(self, name: str) -> Weights | None:
        """What this client remembered under the name before this round; None if nothing."""
        return self.memory.get(name)

    def remember(self, name: str, weights: Weights) -> None:
        """Keeps weights for later rounds; this round still recalls what was there before."""
        self.remembered[name] = weights

    def _forward(self, positions: np.ndarray) -> Tensor:
        inputs, labels = self.federation.batch(positions, self.replica.dtype)
        return cross_entropy(self.replica.module(inputs), labels, reduction="none")

    def _count(self, examples: int) -> None:
        self.examples += examples
        self.loss_count += examples

    def _positions(self, part: str) -> np.ndarray:
        if part in self.federation.parts or part not in SHARES:
            positions = self.federation.positions(part, self.identity)
            if len(positions) == 0:
                raise ValueError(f"{self.federation.name}: client {self.identity} has no examples in {part!r}")
            return positions
        train = self.federation.positions("train", self.identity)
        held = size(self.federation, self.plan, "query", self.identity)
        order = keys.generator(self.plan.seed, "query", self.number, self.identity).permutation(len(train))
        return train[order[:held]] if part == "query" else train[order[held:]]

    def _minibatches(self, examples: int) -> Iterator[np.ndarray]:
        batch = self.plan.batch_size
        left = steps(self.plan, examples)
        draws = keys.generator(self.plan.seed, "minibatches", self.number, self.identity)
        while left > 0:
            order = draws.permutation(examples)
            for start in range(0, examples, batch)[:left]:
                yield order[start : start + batch]
                left -= 1


def size(federation: Federation, plan: Plan, part: str, client: int) -> int:
    """Number of examples of a client's part; `support` and `query` are shares of `train` unless the data has them.

    Raises ValueError when a client has fewer than two examples to divide.
    """
    if part in federation.parts or part not in SHARES:
        return len(federation.positions(part, client))
    return share(plan, part, len(federation.positions("train", client)), f"{federation.name}: client {client}")


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


@torch.no_grad()
def _add_terms(parameters: list[nn.Parameter], slope: list[Tensor], anchor: list[Tensor], proximal: float) -> None:
    """Adds the gradients of the linear and of the proximal term, in place."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in parameters if p.grad is not None]
    if slope:
        torch._foreach_add_(gradients, slope)
    if anchor:
        torch._foreach_add_(gradients, torch._foreach_sub([p.detach() for p in parameters], anchor), alpha=proximal)


def _chunks(positions: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(positions), CHUNK):
        yield positions[start : start + CHUNK]
