"""The residual network of ResNet-18. It stands apart from its settings, which can be read without torch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class ResidualNetwork(nn.Module):
    """Eight blocks of two convolutions between `conv1` and `fc`; `norm` makes a normalisation layer of a width."""

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
        """From `(n, channels, height, width)` to logits."""
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
