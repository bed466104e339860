"""One step of local SGD on lists of tensors: for the parameters of one client, or of many, stacked.

Gradients are never changed in place: autograd may hand out one tensor for two parameters, or one number expanded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedstart.engines.batches import steps
from fedstart.types import Plan

ADAM = (0.9, 0.999, 1e-8)
"""Adam's beta 1, beta 2 and epsilon (Kingma and Ba 2015, arXiv:1412.6980, Algorithm 1)."""


def add_terms(
    gradients: Sequence[Tensor],
    parameters: Sequence[Tensor],
    slope: Sequence[Tensor],
    anchor: Sequence[Tensor],
    proximal: float,
) -> Sequence[Tensor]:
    """The gradients with those of `<slope, w> + proximal/2 ||w - anchor||^2`; an empty list leaves a term out."""
    if slope:
        gradients = torch._foreach_add(list(gradients), list(slope))
    if anchor:
        pull = torch._foreach_sub(list(parameters), list(anchor))
        gradients = torch._foreach_add(list(gradients), list(pull), alpha=proximal)
    return gradients


def clip(gradients: Sequence[Tensor], limit: float, clients: int | None = None) -> Sequence[Tensor]:
    """The gradients, scaled so that their norm together is at most `limit`.

    With `clients`, the gradients have shape (clients, ...) and each client has a norm of its own.
    """
    rows = 1 if clients is None else clients
    squares = torch.stack([gradient.square().reshape(rows, -1).sum(1) for gradient in gradients]).sum(0)
    factor = (limit / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    if clients is None:
        return [gradient * factor[0] for gradient in gradients]
    return [gradient * factor.view(-1, *[1] * (gradient.dim() - 1)) for gradient in gradients]


def total_rate(plan: Plan, examples: int) -> float:
    """Sum of the learning rates of all local steps on so many examples: K times eta.

    Raises ValueError for an optimiser that rescales gradients, whose steps have no such rate.
    """
    if plan.optimizer == "adam":
        raise ValueError("optimizer = 'adam' has no total rate, which this method needs (allowed: 'sgd', 'nesterov')")
    return plan.lr * steps(plan, examples)


def begin(parameters: Sequence[Tensor], plan: Plan) -> list[list[Tensor]]:
    """What the plan's optimiser remembers before its first step: nothing, velocities, or Adam's two moments; zeros."""
    kinds = 2 if plan.optimizer == "adam" else 1 if plan.momentum else 0
    return [[torch.zeros_like(parameter) for parameter in parameters] for _ in range(kinds)]


def update(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], memory: Sequence[list[Tensor]], plan: Plan, step: int
) -> None:
    """Step number `step` = 1, 2, ... of the plan's optimiser, in place; `Plan` has the formulas."""
    # Not torch's fused SGD: it reads a gradient as if it lay in memory like its parameter, and not all of these do.
    if plan.optimizer != "sgd":
        moved, remembered = stepped(parameters, gradients, memory, plan, step)
        for old, new in zip([parameters, *memory], [moved, *remembered], strict=True):
            torch._foreach_copy_(list(old), new)
        return
    moves = list(gradients)
    if plan.weight_decay:
        moves = list(torch._foreach_add(moves, list(parameters), alpha=plan.weight_decay))
    if plan.momentum:
        torch._foreach_mul_(memory[0], plan.momentum)
        torch._foreach_add_(memory[0], moves)
        moves = memory[0]
    torch._foreach_add_(list(parameters), moves, alpha=-plan.lr)


def stepped(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], memory: Sequence[list[Tensor]], plan: Plan, step: int
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """What `update` makes of its arguments, as new tensors that autograd can go back through."""
    moves = list(gradients)
    if plan.weight_decay:
        moves = [move + plan.weight_decay * parameter for move, parameter in zip(moves, parameters, strict=True)]
    remembered: list[list[Tensor]] = []
    if plan.optimizer == "adam":
        first = [ADAM[0] * m + (1 - ADAM[0]) * g for m, g in zip(memory[0], moves, strict=True)]
        second = [ADAM[1] * v + (1 - ADAM[1]) * g.square() for v, g in zip(memory[1], moves, strict=True)]
        remembered = [first, second]
        bias = [1 - beta**step for beta in ADAM[:2]]
        moves = [m / bias[0] / (_root(v / bias[1]) + ADAM[2]) for m, v in zip(first, second, strict=True)]
    elif plan.momentum:
        remembered = [[plan.momentum * v + g for v, g in zip(memory[0], moves, strict=True)]]
        if plan.optimizer == "nesterov":
            moves = [g + plan.momentum * v for v, g in zip(remembered[0], moves, strict=True)]
        else:
            moves = remembered[0]
    return [w - plan.lr * move for w, move in zip(parameters, moves, strict=True)], remembered


def _root(squares: Tensor) -> Tensor:
    """The square root, with the derivative 0 at 0 instead of infinity: a weight that never had a gradient stays."""
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)
