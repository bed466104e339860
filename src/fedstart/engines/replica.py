"""One module whose tensors are overwritten in place: what a thread of the local engine computes with."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from fedstart.engines import products
from fedstart.engines.execution import Execution
from fedstart.models import Model
from fedstart.types import Weights

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


def dtype_of(value: Any) -> torch.dtype:
    """The type of the first floating tensor in a nest of mappings and tuples; float32 if there is none."""
    if isinstance(value, torch.Tensor):
        return value.dtype
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    found = [dtype_of(item) for item in items if isinstance(item, torch.Tensor | dict | list | tuple)]
    return next((dtype for dtype in found if dtype.is_floating_point), torch.float32)
