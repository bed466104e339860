"""One step of local SGD on lists of tensors: for the parameters of one client, or of many, stacked.

Gradients are never changed in place: autograd may hand out one tensor for two parameters, or one number expanded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedstart.types import Plan


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


def update(parameters: Sequence[Tensor], gradients: Sequence[Tensor], velocities: Sequence[Tensor], plan: Plan) -> None:
    """`v = momentum * v + g + weight_decay * w; w -= lr * v`. `velocities` begin at 0; empty without momentum."""
    # Not torch's fused SGD: it reads a gradient as if it lay in memory like its parameter, and not all of these do.
    moves = list(gradients)
    if plan.weight_decay:
        moves = list(torch._foreach_add(moves, list(parameters), alpha=plan.weight_decay))
    if plan.momentum:
        torch._foreach_mul_(list(velocities), plan.momentum)
        torch._foreach_add_(list(velocities), moves)
        moves = list(velocities)
    torch._foreach_add_(list(parameters), moves, alpha=-plan.lr)
