"""The multi-layer perceptron."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass as settings_dataclass

from fedstart.types import STRICT

if TYPE_CHECKING:
    from torch import nn


@settings_dataclass(frozen=True, config=STRICT)
class MLP:
    """Linear layers with ReLU between them, on the flattened input of any shape; `hidden=()` is logistic regression.

    `hidden=(200, 200)` is the "2NN" of McMahan et al. 2017.
    """

    head: ClassVar[str] = "fc"

    hidden: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...], Field(description="units of each hidden layer, first to last")
    ] = (200,)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """From `(n, *shape)` to logits."""
        from torch import nn

        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        width = math.prod(shape)
        for number, units in enumerate(self.hidden, start=1):
            layers[f"hidden{number}"] = nn.Linear(width, units)
            layers[f"relu{number}"] = nn.ReLU()
            width = units
        layers["fc"] = nn.Linear(width, classes)
        return nn.Sequential(layers)
