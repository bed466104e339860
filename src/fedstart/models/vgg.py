"""A plain deep network: eight convolutions one after the other, without shortcuts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass as settings_dataclass

from fedstart.models._layers import image_shape
from fedstart.types import STRICT

if TYPE_CHECKING:
    from torch import nn


@settings_dataclass(frozen=True, config=STRICT)
class VGG:
    """Four stages of two 3x3 convolutions with normalisation and ReLU, each stage followed by 2x2 max-pooling; then the
    mean over all places and one linear layer. Images from 16x16 pixels.

    Like VGG (Simonyan and Zisserman 2015), but not one of its networks: their depths, normalisation and three linear
    layers differ, and their weights do not fit. 3x32x32 inputs and 10 classes: 4,692,426 parameters with
    normalisation. `norm="none"` has biases in its place.
    Raises ValueError if `groups` does not divide `width`.
    """

    head: ClassVar[str] = "fc"

    width: Annotated[int, Field(ge=1, description="filters of the first stage; doubled in each of the next")] = 64
    norm: Annotated[Literal["group", "batch", "none"], Field(description="normalisation layers")] = "group"
    groups: Annotated[int, Field(ge=1, description="groups per GroupNorm layer; used by group only")] = 2

    @model_validator(mode="after")
    def _groups_divide_width(self) -> VGG:
        if self.norm == "group" and self.width % self.groups:
            raise ValueError(f"groups must divide width, got groups {self.groups} and width {self.width}")
        return self

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """From `(n, channels, height, width)` to logits; raises ValueError for another kind of input."""
        from fedstart.models._stacks import stack

        inputs = image_shape(shape, smallest=16)[0]
        channels = [self.width * scale for scale in (1, 1, 2, 2, 4, 4, 8, 8)]
        return stack(inputs, classes, channels, (2, 4, 6, 8), self.norm, self.groups)
