"""ResNet-18, with the tensor names and shapes of `torchvision.models.resnet18`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass as settings_dataclass

from fedstart.models._layers import image_shape
from fedstart.types import STRICT

if TYPE_CHECKING:
    from torch import nn


@settings_dataclass(frozen=True, config=STRICT)
class ResNet18:
    """ResNet-18 (He et al. 2016) for images of any number of channels, from 1x1 pixels.

    With `norm="batch", stem="imagenet"` and 3 channels, the state dict is that of torchvision's resnet18. With
    `norm="group"` the layers keep their names (`bn1`, ...) but have no running statistics, which averaging over
    clients would spoil (Hsieh et al. 2020); two groups are the choice of Reddi et al. 2021, 32 that of opacus.
    The `cifar` stem is one 3x3 convolution without pooling, for images of about 32 to 64 pixels.
    Raises ValueError if `groups` does not divide `width`.
    """

    head: ClassVar[str] = "fc"

    norm: Annotated[Literal["group", "batch"], Field(description="normalisation layers")] = "group"
    groups: Annotated[int, Field(ge=1, description="groups per GroupNorm layer; not used by batch")] = 2
    stem: Annotated[
        Literal["cifar", "imagenet"], Field(description="first layer: 3x3, or 7x7 with stride 2 and max-pooling")
    ] = "cifar"
    width: Annotated[int, Field(ge=1, description="channels of the first stage; doubled in each of the next")] = 64

    @model_validator(mode="after")
    def _groups_divide_width(self) -> ResNet18:
        if self.norm == "group" and self.width % self.groups:
            raise ValueError(f"groups must divide width, got groups {self.groups} and width {self.width}")
        return self

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """From `(n, channels, height, width)` to logits; raises ValueError for another kind of input."""
        from torch import nn

        from fedstart.models._residual import ResidualNetwork

        channels = image_shape(shape, smallest=1)[0]
        network = ResidualNetwork(channels, classes, self.width, self.stem, self._normalisation)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return network

    def _normalisation(self, channels: int) -> nn.Module:
        from torch import nn

        return nn.BatchNorm2d(channels) if self.norm == "batch" else nn.GroupNorm(self.groups, channels)
