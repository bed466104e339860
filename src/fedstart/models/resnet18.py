"""ResNet-18, with the tensor names and shapes of `torchvision.models.resnet18`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass as settings_dataclass
from torch import Tensor, nn

from fedstart.models._layers import image_shape
from fedstart.types import STRICT


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
        channels = image_shape(shape, smallest=1)[0]
        network = _ResidualNetwork(channels, classes, self.width, self.stem, self._normalisation)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return network

    def _normalisation(self, channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels) if self.norm == "batch" else nn.GroupNorm(self.groups, channels)


class _ResidualNetwork(nn.Module):
    def __init__(self, channels: int, classes: int, width: int, stem: str, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        imagenet = stem == "imagenet"
        kernel, stride = (7, 2) if imagenet else (3, 1)
        self.conv1 = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if imagenet else nn.Identity()
        self.layer1 = nn.Sequential(_Block(width, width, 1, norm), _Block(width, width, 1, norm))
        self.layer2 = nn.Sequential(_Block(width, 2 * width, 2, norm), _Block(2 * width, 2 * width, 1, norm))
        self.layer3 = nn.Sequential(_Block(2 * width, 4 * width, 2, norm), _Block(4 * width, 4 * width, 1, norm))
        self.layer4 = nn.Sequential(_Block(4 * width, 8 * width, 2, norm), _Block(8 * width, 8 * width, 1, norm))
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.maxpool(self.relu(self.bn1(self.conv1(inputs))))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        return self.fc(maps.mean(dim=(-2, -1)))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = norm(outputs)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = norm(outputs)
        self.downsample = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, norm(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(inputs)))))
        return self.relu(maps + self.downsample(inputs))
