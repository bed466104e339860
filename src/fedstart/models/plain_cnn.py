"""A plain CNN of any depth: between the two-layer CNN of theory and the deep networks of practice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass as settings_dataclass

from fedstart.models._layers import image_shape
from fedstart.types import STRICT

if TYPE_CHECKING:
    from torch import nn

Count = Annotated[int, Field(ge=1)]


@settings_dataclass(frozen=True, config=STRICT)
class PlainCNN:
    """3x3 convolutions, each with normalisation and ReLU, 2x2 max-pooling behind all but the last, the mean over all
    places, then one linear layer. One convolution makes the two-layer CNN whose second layer is trained.

    The network is ours: no paper fixes it. Images from `2^(n - 1)` pixels a side with n convolutions. 3x32x32 inputs
    and 10 classes: 94,762 parameters with the defaults. `norm="none"` has biases in the place of normalisation.
    Raises ValueError if `groups` does not divide each of `channels`.
    """

    head: ClassVar[str] = "fc"

    channels: Annotated[tuple[Count, ...], Field(min_length=1, description="filters of the convolutions")] = (
        32,
        64,
        128,
    )
    norm: Annotated[Literal["group", "batch", "none"], Field(description="normalisation layers")] = "group"
    groups: Annotated[int, Field(ge=1, description="groups per GroupNorm layer; used by group only")] = 2

    @model_validator(mode="after")
    def _groups_divide_channels(self) -> PlainCNN:
        if self.norm == "group" and any(count % self.groups for count in self.channels):
            raise ValueError(f"groups must divide channels, got groups {self.groups} and channels {self.channels}")
        return self

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """From `(n, channels, height, width)` to logits; raises ValueError for another kind of input."""
        from fedstart.models._stacks import stack

        depth = len(self.channels)
        inputs = image_shape(shape, smallest=2 ** (depth - 1))[0]
        return stack(inputs, classes, self.channels, range(1, depth), self.norm, self.groups)
