"""The convolutional network of the LEAF benchmark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass as settings_dataclass

from fedstart.models._layers import two_convolutions
from fedstart.types import STRICT

if TYPE_CHECKING:
    from torch import nn

Count = Annotated[int, Field(ge=1)]


@settings_dataclass(frozen=True, config=STRICT)
class CNN:
    """Two 5x5 convolutions, each with ReLU and 2x2 max-pooling, then two linear layers (Caldas et al. 2018, LEAF).

    With 1x28x28 inputs and 62 classes it has the 6,603,710 parameters of LEAF's FEMNIST model. Images from 4x4
    pixels; their size changes the first linear layer only. Initial values are PyTorch's defaults (LEAF: TensorFlow's).
    """

    head: ClassVar[str] = "fc"

    channels: Annotated[tuple[Count, Count], Field(description="filters of the two convolutions")] = (32, 64)
    hidden: Annotated[int, Field(ge=1, description="units of the hidden linear layer")] = 2048

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """From `(n, channels, height, width)` to logits; raises ValueError for another kind of input."""
        return two_convolutions(shape, classes, self.channels, kernel=5, hidden=self.hidden)
