"""One step of local SGD on lists of tensors, in place: for the parameters of one client, or of many, stacked."""

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
) -> None:
    """Adds the gradients of `<slope, w> + proximal/2 ||w - anchor||^2`; an empty list leaves a term out."""
    if slope:
        torch._foreach_add_(list(gradients), list(slope))
    if anchor:
        torch._foreach_add_(list(gradients), torch._foreach_sub(list(parameters), list(anchor)), alpha=proximal)


def clip(gradients: Sequence[Tensor], limit: float, clients: int | None = None) -> None:
    """Scales the gradients so that their norm together is at most `limit`.

    With `clients`, the gradients have shape (clients, ...) and each client has a norm of its own.
    """
    shape = (1,) if clients is None else (clients,)
    squares = torch.stack([gradient.square().reshape(*shape, -1).sum(1) for gradient in gradients]).sum(0)
    factor = (limit / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *[1] * (gradient.dim() - 1)))


def update(parameters: Sequence[Tensor], gradients: Sequence[Tensor], velocities: Sequence[Tensor], plan: Plan) -> None:
    """`v = momentum * v + g + weight_decay * w; w -= lr * v`. `velocities` begin at 0; empty without momentum."""
    # Not torch's fused SGD: it reads a gradient as if it lay in memory like its parameter, and not all of these do.
    moves = list(gradients)
    if plan.weight_decay:
        torch._foreach_add_(moves, list(parameters), alpha=plan.weight_decay)
    if plan.momentum:
        torch._foreach_mul_(list(velocities), plan.momentum)
        torch._foreach_add_(list(velocities), moves)
        moves = list(velocities)
    torch._foreach_add_(list(parameters), moves, alpha=-plan.lr)
