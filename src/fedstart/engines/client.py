"""A client in this process: the door from an algorithm to one client's examples and a model to train on them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn.functional import cross_entropy

from fedstart import keys
from fedstart.data.federation import Federation
from fedstart.engines import descent, products
from fedstart.engines.batches import chunk, rows, size, steps
from fedstart.engines.execution import Execution
from fedstart.models import Model
from fedstart.types import Judgement, Plan, Weights

FLOAT32 = Execution()


class Replica:
    """One module whose tensors are overwritten in place; each thread owns one, so nothing is built per client."""

    def __init__(self, model: Model, dtype: torch.dtype, execution: Execution = FLOAT32) -> None:
        self.module = model.module().to(dtype)
        self.dtype = dtype
        self.channels_last = execution.channels_last
        self._brief = execution.precision == "bfloat16" and dtype == torch.float32
        self._refuse_dropout()
        if execution.linear == "onednn":
            products.use_onednn(self.module)
        if self.channels_last:
            for part in self.module.modules():
                if isinstance(part, nn.MaxPool2d):
                    part.register_forward_hook(_keep_gradient_layout)
        self.parameters = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        state = self.module.state_dict(keep_vars=True)
        for tensor in state.values():
            if tensor.dim() == 4 and self.channels_last:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
        self._tensors = {name: state[name].data for name in model.shapes}

    def load(self, weights: Weights) -> None:
        """Overwrites every parameter and buffer, for training."""
        if not self.module.training:
            self.module.train()
        with torch.no_grad():
            torch._foreach_copy_(list(self._tensors.values()), [weights[name] for name in self._tensors])

    def read(self) -> Weights:
        """A copy of every parameter and buffer."""
        return {name: tensor.clone() for name, tensor in self._tensors.items()}

    def precision(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        return torch.autocast("cpu", torch.bfloat16) if self._brief else nullcontext()

    def _refuse_dropout(self) -> None:
        for name, part in self.module.named_modules():
            if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
                raise ValueError(
                    f"{name or 'the model'}: dropout p={part.p} draws from torch's global generator, so no round could "
                    "be replayed (allowed: p=0)"
                )


def _keep_gradient_layout(_: nn.Module, __: object, output: Tensor) -> None:
    # Behind a flattening, gradients come with the channels first, and pooling would copy its whole input twice.
    if not is_functorch_wrapped_tensor(output) and output.requires_grad:
        output.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))


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

    @property
    def lr(self) -> float:
        """eta: learning rate of the local steps."""
        return self.plan.lr

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
        plan, parameters = self.plan, list(self.replica.parameters.values())
        velocities = [torch.zeros_like(parameter) for parameter in parameters] if plan.momentum else []
        anchor = [weights[name] for name in self.replica.parameters] if proximal else []
        slope = [linear[name] for name in self.replica.parameters] if linear is not None else []
        positions = self._positions(part)
        total = torch.zeros((), dtype=torch.float64)
        for batch in self._minibatches(len(positions)):
            loss = self._forward(positions[batch]).mean()
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
            with torch.no_grad():
                gradients = descent.add_terms(gradients, parameters, slope, anchor, proximal)
                if plan.clip is not None:
                    gradients = descent.clip(gradients, plan.clip)
                descent.update(parameters, gradients, velocities, plan)
            total += loss.detach() * len(batch)
            self._count(len(batch))
        self.loss_sum += float(total)
        return self.replica.read()

    def loss(self, weights: Weights, part: str = "train") -> float:
        """Mean loss over the part at `weights`."""
        self.replica.load(weights)
        positions = self._positions(part)
        with torch.no_grad():
            total = sum(float(self._forward(some).double().sum()) for some in self._chunks(positions))
        self.examples += len(positions)
        return total / len(positions)

    def gradient(self, weights: Weights, part: str = "train") -> Judgement:
        """Mean loss over the whole part at `weights` and its gradient, accumulated over chunks."""
        self.replica.load(weights)
        positions, parameters = self._positions(part), self.replica.parameters
        total, gradients = 0.0, [torch.zeros_like(parameter) for parameter in parameters.values()]
        for some in self._chunks(positions):
            losses = self._forward(some)
            mean = losses.sum() / len(positions)
            found = torch.autograd.grad(mean, list(parameters.values()), materialize_grads=True)
            torch._foreach_add_(gradients, list(found))
            total += float(losses.detach().double().sum())
        self.examples += len(positions)
        return Judgement(total / len(positions), dict(zip(parameters, gradients, strict=True)))

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
        inputs, labels = self.federation.batch(positions, self.replica.dtype, self.replica.channels_last)
        with self.replica.precision():
            logits = self.replica.module(inputs)
        return cross_entropy(logits.to(self.replica.dtype), labels, reduction="none")

    def _count(self, examples: int) -> None:
        self.examples += examples
        self.loss_count += examples

    def _positions(self, part: str) -> np.ndarray:
        return rows(self.federation, self.plan, part, self.number, np.array([self.identity])).positions[0]

    def _minibatches(self, examples: int) -> Iterator[np.ndarray]:
        batch, left = self.plan.batch_size, steps(self.plan, examples)
        client, sizes = np.array([self.identity]), np.array([examples])
        for repeat in itertools.count():
            order = keys.orders(self.plan.seed, "minibatches", self.number, client, sizes, repeat)[0]
            for start in range(0, examples, batch)[:left]:
                yield order[start : start + batch]
                left -= 1
            if not left:
                return

    def _chunks(self, positions: np.ndarray) -> Iterator[np.ndarray]:
        width = chunk(self.federation.examples.shape)
        for start in range(0, len(positions), width):
            yield positions[start : start + width]
