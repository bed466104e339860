"""Filters of a network, followed from module to module through forward passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import ReferenceType, ref

import numpy as np
import torch
from torch import Tensor, nn

from fedstart.data.federation import Federation
from fedstart.engines.replica import dtype_of
from fedstart.models import Model
from fedstart.models._normalisation import FrozenBatchNorm
from fedstart.types import Weights

SOURCES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMALISATIONS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    FrozenBatchNorm,
)
RECTIFIERS = (nn.ReLU, nn.ReLU6)
PASSING = (
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.dropout._DropoutNd,
    nn.Identity,
    nn.Flatten,
)
"""What changes neither the number of the channels nor which is which."""


@dataclass
class Channels:
    """The channels that one layer makes, with what later modules do to them, masks of shape (count,).

    `last` says that they lie in the last dimension, not in the second. `silent` is None before any ReLU.
    """

    name: str
    count: int
    last: bool
    zero: Tensor
    silent: Tensor | None = None

    @property
    def dead(self) -> Tensor:
        """Silent or zero, shape (count,)."""
        return self.zero if self.silent is None else self.zero | self.silent

    def nowhere(self, output: Tensor) -> Tensor:
        """Which channels are zero at every place of every example, shape (count,)."""
        empty = output == 0
        if self.last:
            return empty.reshape(-1, self.count).all(0)
        return empty.reshape(len(output), self.count, -1).all(2).all(0)


@dataclass
class _Pass:
    """One forward pass: the channels met so far, and the tensors that carry them.

    A tensor that is changed in place afterwards carries them no more, which its version tells.
    """

    met: list[Channels] = field(default_factory=list)
    carried: dict[int, tuple[ReferenceType[Tensor], int, Channels]] = field(default_factory=dict)

    def of(self, tensor: Tensor) -> Channels | None:
        held = self.carried.get(id(tensor))
        # Another tensor can have the place in memory of one that is gone.
        if held is None or held[0]() is not tensor or held[1] != tensor._version:
            return None
        return held[2]

    def carry(self, tensor: Tensor, channels: Channels) -> None:
        self.carried[id(tensor)] = (ref(tensor), tensor._version, channels)

    def begin(self, name: str, count: int, last: bool) -> Channels:
        earlier = Counter(channels.name.partition(" ")[0] for channels in self.met)[name]
        numbered = f"{name} {earlier + 1}" if earlier else name
        self.met.append(Channels(numbered, count, last, torch.zeros(count, dtype=torch.bool)))
        return self.met[-1]


def watch(model: Model, weights: Weights, sample: Federation, batches: Sequence[np.ndarray]) -> list[Channels]:
    """The channels that the modules of a network make, in the order of a forward pass in evaluation mode.

    `silent` are those that are zero behind a ReLU on all batches, positions of examples of `sample`; a second ReLU on
    the same channels has its own entry. The network must take the same path on every batch. `weights` are copied into
    a module made for this.
    """
    dtype = dtype_of(weights)
    module = model.loaded(weights)
    for part in module.modules():
        if isinstance(part, RECTIFIERS):
            part.inplace = False
    found: list[Channels] = []
    with torch.no_grad():
        for positions in batches:
            inputs, _ = sample.batch(positions, dtype)
            seen = _Pass()
            hooks = [part.register_forward_hook(partial(_see, seen, name)) for name, part in module.named_modules()]
            module(inputs)
            for hook in hooks:
                hook.remove()
            found = [_both(*pair) for pair in zip(found, seen.met, strict=True)] if found else seen.met
    return found


def _both(left: Channels, right: Channels) -> Channels:
    if left.silent is not None and right.silent is not None:
        left.silent &= right.silent
    return left


def _see(seen: _Pass, name: str, part: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    if not isinstance(output, Tensor) or not inputs or not isinstance(inputs[0], Tensor):
        return
    channels = seen.of(inputs[0])
    if isinstance(part, SOURCES):
        channels = seen.begin(f"{name}.weight", len(part.weight), isinstance(part, nn.Linear))
        channels.zero |= _without_weight(part.weight)
    elif isinstance(part, NORMALISATIONS):
        channels = _normalised(seen, name, part, channels)
    elif isinstance(part, RECTIFIERS):
        if channels is None:
            channels = seen.begin(name, output.shape[1], last=False)
        elif channels.silent is not None:
            channels = seen.begin(name, channels.count, channels.last)
        channels.silent = channels.nowhere(output)
    elif not isinstance(part, PASSING) or (channels is not None and channels.last and isinstance(part, nn.Flatten)):
        return
    if channels is not None:
        seen.carry(output, channels)


def _normalised(seen: _Pass, name: str, part: nn.Module, channels: Channels | None) -> Channels | None:
    scale = part.weight
    if not isinstance(scale, Tensor):
        return channels
    if channels is None:
        channels = seen.begin(f"{name}.weight", len(scale), isinstance(part, nn.LayerNorm | nn.RMSNorm))
    if channels.count != len(scale):
        return None
    channels.zero |= _without_weight(scale)
    return channels


def _without_weight(weight: Tensor) -> Tensor:
    return (weight.detach().reshape(len(weight), -1) == 0).all(1)
