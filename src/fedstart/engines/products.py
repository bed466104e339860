"""Linear layers through oneDNN: on some processors torch's own library for float32 products takes twice as long."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor


def available() -> bool:
    """Whether this build of torch has oneDNN's linear layer."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def use_onednn(module: nn.Module) -> None:
    """Lets every `nn.Linear` in the module compute through oneDNN; subclasses are left as they are."""
    for part in module.modules():
        if type(part) is nn.Linear:
            part.forward = functools.partial(_forward, part)  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def differentiable(module: nn.Module) -> Iterator[None]:
    """Inside, linear layers compute through torch again: oneDNN's products have no second derivative."""
    changed = {part: part.__dict__.pop("forward") for part in module.modules() if "forward" in part.__dict__}
    try:
        yield
    finally:
        for part, forward in changed.items():
            part.forward = forward


def _forward(layer: nn.Linear, inputs: Tensor) -> Tensor:
    if layer.weight.dtype != torch.float32 or inputs.dim() != 2 or is_functorch_wrapped_tensor(inputs):
        return nn.functional.linear(inputs, layer.weight, layer.bias)
    return _Linear.apply(inputs.float(), layer.weight, layer.bias)  # pyright: ignore[reportReturnType]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _product(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        gradient = grads[0].contiguous()
        wanted = ctx.needs_input_grad
        return (
            _product(gradient, weight.t(), None) if wanted[0] else None,
            _product(gradient.t(), inputs.t(), None) if wanted[1] else None,
            gradient.sum(0) if wanted[2] else None,
        )


def _product(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    """`left @ right.T + bias`."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
