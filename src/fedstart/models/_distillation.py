"""After surgery: the new network fitted to what the original says of unlabelled inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fedstart import keys
from fedstart.models._model import Model
from fedstart.models._surgery import checked_inputs
from fedstart.types import Diverged, Weights


def distilled(
    original: Model,
    original_weights: Weights,
    model: Model,
    weights: Weights,
    batches: Iterable[Tensor],
    *,
    epochs: int = 15,
    lr: float = 1e-4,
    seed: int = 0,
) -> Weights:
    """`weights` of a renormalised `model`, fitted to the original network's logits on unlabelled inputs.

    `original` is the network that `model` was made from, or any other with inputs and classes as many. `batches` are
    inputs of shape `(n, *shape)` as `Model.apply` takes them; all are kept, and the original's logits for them. Nothing
    that is given is changed. Best begun from `calibrated` weights.

    Minimises, one Adam step (Kingma and Ba 2015, arXiv:1412.6980; torch's settings) for each batch,

        1/(n classes) sum_i ||f(x_i) - g(x_i)||^2

    where f is the model and g the original, by all tensors that training changes (`Model.parameters`). The rate of step
    t = 0, 1, ..., T - 1 is `lr (1 + cos(pi t / T)) / 2`; an epoch takes the batches as they are, in an order drawn for
    `(seed, epoch)`. Both networks are in evaluation: no statistics change, and nothing is dropped out. The cost is one
    pass of the original, and `epochs` passes of the model forward and backward. The same arguments and number of torch
    threads give the same bits. As Adam divides by the gradient's size, even differences of rounding alone move weights,
    by about the rate in each step; only where the logits are the same bits nothing moves.

    Regression on another network's logits is that of Ba and Caruana 2014 (arXiv:1312.6184).

    Raises ValueError in one line without inputs, for inputs of another shape, for weights that do not fit, where the
    numbers of classes differ, for `epochs` below 0 or no whole number, and for an `lr` outside 0 < lr <= 1;
    Diverged where the loss or a weight becomes NaN or infinite.
    """
    inputs = checked_inputs(original, original_weights, model, weights, batches, "distillation")
    if original.classes != model.classes:
        raise ValueError(f"the original must have the model's {model.classes} classes, got {original.classes}")
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 0:
        raise ValueError(f"epochs must be a whole number of at least 0, got {epochs}")
    if not 0 < lr <= 1:
        raise ValueError(f"lr must be above 0 and at most 1, got {lr}")
    with torch.inference_mode(False):
        student = model.loaded(weights)
        with torch.no_grad():
            teacher = original.loaded(original_weights)
            # Images come with the channels last: a copy keeps their layout, and the new network reads them faster.
            wanted = [teacher(_as(batch, teacher)).to(_type(student)) for batch in inputs]
        with torch.enable_grad():
            _fit(student, inputs, wanted, epochs, lr, seed)
        state = student.state_dict()
        return {name: state[name].to(tensor.dtype, copy=True) for name, tensor in weights.items()}


def _fit(student: nn.Module, inputs: list[Tensor], wanted: list[Tensor], epochs: int, lr: float, seed: int) -> None:
    """Changes the student's parameters in place; `wanted` are the original's logits for each batch of inputs."""
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    steps = epochs * len(inputs)
    for epoch in range(epochs):
        order = keys.generator(seed, "distillation", epoch).permutation(len(inputs)).tolist()
        for step, place in enumerate(order, epoch * len(inputs)):
            # torch 2.13 crashes on the CPU in the backward pass of a GroupNorm layer that is given channels-last maps
            # without a gradient, as behind a convolution that is not trained: the images ask for one.
            batch = _as(inputs[place], student).requires_grad_()
            loss = (student(batch) - wanted[place]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.step()
            if not bool(loss.isfinite()):
                break
        if not all(bool(tensor.isfinite().all()) for tensor in [loss, *parameters]):
            raise Diverged(f"epoch {epoch + 1}: the loss or a weight is NaN or infinite; a smaller lr may help")


def _as(batch: Tensor, module: nn.Module) -> Tensor:
    """A copy of inputs in the module's type."""
    return batch.detach().to(_type(module), copy=True)


def _type(module: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in module.parameters())
