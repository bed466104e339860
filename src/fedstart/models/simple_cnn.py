"""The convolutional network of pfl-research's CIFAR-10 benchmark."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass as settings_dataclass

from fedstart.models._layers import image_shape
from fedstart.types import STRICT

if TYPE_CHECKING:
    from torch import nn

Count = Annotated[int, Field(ge=1)]


@settings_dataclass(frozen=True, config=STRICT)
class SimpleCNN:
    """Two 3x3 convolutions without padding, one 2x2 max-pooling, two linear layers, ReLU between (pfl-research's
    `simple_cnn`, without its dropout). 3x32x32 inputs and 10 classes: 1,626,442 parameters. Images from 6x6 pixels.
    Initial values are PyTorch's defaults (pfl-research: Glorot).
    """

    head: ClassVar[str] = "fc"

    channels: Annotated[tuple[Count, Count], Field(description="filters of the two convolutions")] = (32, 64)
    hidden: Annotated[int, Field(ge=1, description="units of the hidden linear layer")] = 128

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """From `(n, channels, height, width)` to logits; raises ValueError for another kind of input."""
        from torch import nn

        inputs, height, width = image_shape(shape, smallest=6)
        features = self.channels[1] * ((height - 4) // 2) * ((width - 4) // 2)
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(inputs, self.channels[0], 3),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(self.channels[0], self.channels[1], 3),
            pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            relu2=nn.ReLU(),
            hidden=nn.Linear(features, self.hidden),
            relu3=nn.ReLU(),
            fc=nn.Linear(self.hidden, classes),
        )
        return nn.Sequential(layers)
