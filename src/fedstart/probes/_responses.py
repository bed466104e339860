"""Filters of a network, and how they respond to the classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedstart import keys
from fedstart.data.federation import Federation
from fedstart.engines.replica import dtype_of
from fedstart.models import Model
from fedstart.probes._subject import Subject
from fedstart.types import Weights

CHUNK = 128


def filter_layers(model: Model) -> tuple[str, ...]:
    """Weights of convolutions and linear layers, in the module's order, each row a filter; the head's only where a
    network has no others.
    """
    module = model.module()
    found = [f"{name}.weight" for name, part in module.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    body = [name for name in found if name not in model.head]
    return tuple(body or found)


def responses(subject: Subject, weights: Weights, examples: int) -> dict[str, Tensor]:
    """Mean of each filter's output before activation over the examples of a class and over places, less its mean over
    the classes: shape (filters, classes) for each of `filter_layers`.

    Examples are drawn from all clients' training examples, the same for every call with the same plan's seed, as
    balanced over the classes as there are any. The network is in evaluation mode.
    """
    dtype = dtype_of(weights)
    module = subject.model.loaded(weights)
    names = filter_layers(subject.model)
    parts = dict(module.named_modules())
    seen: dict[str, Tensor] = {}
    hooks = [parts[name.removesuffix(".weight")].register_forward_hook(_keeping(seen, name)) for name in names]
    positions = balanced(subject.federation, examples, subject.plan.seed)
    classes = len(subject.federation.classes)
    sums: dict[str, Tensor] = {}
    count = torch.zeros(classes, dtype=torch.float64)
    with torch.inference_mode():
        for begin in range(0, len(positions), CHUNK):
            inputs, labels = subject.federation.batch(positions[begin : begin + CHUNK], dtype)
            module(inputs)
            picked = nn.functional.one_hot(labels, classes).double()
            count += picked.sum(0)
            for name in names:
                sums[name] = sums.get(name, 0) + seen[name].double().T @ picked
    for hook in hooks:
        hook.remove()
    held = count > 0
    means = {name: total[:, held] / count[held] for name, total in sums.items()}
    return {name: mean - mean.mean(1, keepdim=True) for name, mean in means.items()}


def balanced(federation: Federation, examples: int, seed: int) -> Tensor:
    """Positions of about `examples` training examples of all clients, as many of each class while there are any."""
    pool = torch.from_numpy(federation.parts["train"].values)
    order = torch.from_numpy(keys.generator(seed, "probe examples").permutation(len(pool)))
    pool = pool[order]
    labels = federation.labels(pool)
    each = -(-examples // len(federation.classes))
    return torch.cat([pool[labels == label][:each] for label in range(len(federation.classes))])


def _keeping(seen: dict[str, Tensor], name: str) -> Callable[[nn.Module, object, Tensor], None]:
    def keep(part: nn.Module, _: object, output: Tensor) -> None:
        # Convolutions have filters in dimension 1, linear layers in the last; the rest are places.
        channels = 1 if isinstance(part, nn.Conv2d) else output.dim() - 1
        places = [dim for dim in range(1, output.dim()) if dim != channels]
        seen[name] = output.mean(places) if places else output

    return keep
