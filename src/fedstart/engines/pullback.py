"""Exact derivatives through a client's local training, in bounded memory.

Local training is a chain of steps. The chain is walked once more, keeping the state before some of its steps; then
back, from the last step to the first: the states between two kept ones are computed again, and each step hands the
cotangent of its result on to its beginning (a product with the Hessian of its minibatch, by differentiating twice).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from fedstart.engines import descent, products
from fedstart.engines.batches import Minibatches
from fedstart.engines.replica import Replica
from fedstart.types import Plan

KEPT_BYTES = 1 << 30
"""States of the chain that are kept at a time, as far as the square root of its length allows."""

Tensors = list[Tensor]
State = list[Tensors]
"""The parameters, and what the optimiser remembers of them."""


class Path:
    """The chain of local steps from where `replica` stands; `examples` counts those of Hessian products.

    `slope(positions)` is a minibatch's loss and gradient at the replica's weights; `losses(module, positions)` the
    loss of each example through a module.
    """

    def __init__(
        self,
        replica: Replica,
        plan: Plan,
        batches: Minibatches,
        slope: Callable[[np.ndarray], tuple[Tensor, Sequence[Tensor]]],
        losses: Callable[[Callable[[Tensor], Tensor], np.ndarray], Tensor],
    ) -> None:
        self.examples = 0
        self._replica, self._plan, self._batches, self._slope, self._losses = replica, plan, batches, slope, losses
        self._parameters: Tensors = list(replica.parameters.values())

    def pull_back(self, cotangent: Tensors) -> Tensors:
        """The derivative of `<cotangent, the chain's end>` by its beginning."""
        memory = descent.begin(self._parameters, self._plan)
        stride, steps = self._stride(memory), len(self._batches)
        kept = self._walk([self._parameters, *memory], range(steps), stride)
        pulls = [cotangent, *descent.begin(self._parameters, self._plan)]
        with products.differentiable(self._replica.module):
            for begin in reversed(range(0, steps, stride)):
                between = self._walk(kept.pop(), range(begin, min(begin + stride, steps)), 1)
                for step in reversed(range(begin, min(begin + stride, steps))):
                    pulls = self._back(between.pop(), pulls, step)
        return pulls[0]

    def _stride(self, memory: Sequence[Tensors]) -> int:
        """How many steps lie between two kept states."""
        steps = len(self._batches)
        state = sum(tensor.nbytes for tensors in [self._parameters, *memory] for tensor in tensors)
        for stride in range(1, math.isqrt(steps) + 1):
            if (math.ceil(steps / stride) + stride) * state <= KEPT_BYTES:
                return stride
        return max(1, math.isqrt(steps))

    def _walk(self, state: State, steps: range, stride: int) -> list[State]:
        """Copies of the states before each `stride`-th of the steps, beginning with `state`."""
        memory = [[tensor.clone() for tensor in tensors] for tensors in state[1:]]
        with torch.no_grad():
            torch._foreach_copy_([parameter.data for parameter in self._parameters], state[0])
        kept = [self._copy(memory)]
        for step in steps[: (len(steps) - 1) // stride * stride]:
            _, gradients = self._slope(self._batches.at(step))
            with torch.no_grad():
                if self._plan.clip is not None:
                    gradients = descent.clip(gradients, self._plan.clip)
                descent.update(self._parameters, gradients, memory, self._plan, step + 1)
            if (step + 1 - steps.start) % stride == 0:
                kept.append(self._copy(memory))
        return kept

    def _copy(self, memory: Sequence[Tensors]) -> State:
        return [[tensor.detach().clone() for tensor in tensors] for tensors in [self._parameters, *memory]]

    def _back(self, state: State, pulls: State, step: int) -> State:
        """The cotangents of a step's beginning from those of its end."""
        leaves = [[tensor.requires_grad_() for tensor in tensors] for tensors in state]
        positions = self._batches.at(step)
        losses = self._losses(lambda inputs: self._apply(leaves[0], inputs), positions)
        gradients = torch.autograd.grad(losses.mean(), leaves[0], create_graph=True, materialize_grads=True)
        if self._plan.clip is not None:
            gradients = descent.clip(gradients, self._plan.clip)
        parameters, memory = descent.stepped(leaves[0], gradients, leaves[1:], self._plan, step + 1)
        ends = [tensor for tensors in [parameters, *memory] for tensor in tensors]
        begins = [tensor for tensors in leaves for tensor in tensors]
        given = [tensor for tensors in pulls for tensor in tensors]
        found = iter(torch.autograd.grad(ends, begins, given, materialize_grads=True))
        self.examples += len(positions)
        return [[next(found) for _ in tensors] for tensors in leaves]

    def _apply(self, parameters: Tensors, inputs: Tensor) -> Tensor:
        weights = dict(zip(self._replica.parameters, parameters, strict=True))
        buffers = {name: buffer.clone() for name, buffer in self._replica.module.named_buffers()}
        return functional_call(self._replica.module, {**weights, **buffers}, (inputs,))
