"""The small convolutional network that CoPreFL uses for FEMNIST."""

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
class CNN3x3:
    """Two 3x3 convolutions, each with ReLU and 2x2 max-pooling, then two linear layers (Chu et al. 2025, section 4).

    The paper gives the kinds of layers, not their widths: the defaults are ours. Images from 4x4 pixels.
    """

    head: ClassVar[str] = "fc"

    channels: Annotated[tuple[Count, Count], Field(description="filters of the two convolutions")] = (32, 64)
    hidden: Annotated[int, Field(ge=1, description="units of the hidden linear layer")] = 128

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """From `(n, channels, height, width)` to logits; raises ValueError for another kind of input."""
        return two_convolutions(shape, classes, self.channels, kernel=3, hidden=self.hidden)
