"""The networks of the workloads as most people write them in PyTorch, and their tensors' names as in fedstart."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn


def simple_cnn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """pfl-research's `simple_cnn` without its dropout: 1,626,442 parameters for 3x32x32 inputs and 10 classes."""
    side = (shape[1] - 4) // 2
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(shape[0], 32, 3),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 3),
            relu2=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            hidden=nn.Linear(64 * side * side, 128),
            relu3=nn.ReLU(),
            fc=nn.Linear(128, classes),
        )
    )


def leaf_cnn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """LEAF's network for FEMNIST: 6,603,710 parameters for 1x28x28 inputs and 62 classes."""
    side = shape[1] // 4
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(shape[0], 32, 5, padding=2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(32, 64, 5, padding=2),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            hidden=nn.Linear(64 * side * side, 2048),
            relu3=nn.ReLU(),
            fc=nn.Linear(2048, classes),
        )
    )


def perceptron(shape: tuple[int, ...], classes: int) -> nn.Module:
    """One hidden layer of 64 units."""
    return nn.Sequential(
        OrderedDict(hidden1=nn.Linear(shape[0], 64), relu1=nn.ReLU(), fc=nn.Linear(64, classes)),
    )


class ResNet18(nn.Module):
    """ResNet-18 with GroupNorm (two groups) for small images: a 3x3 stem without pooling."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
        self.bn1 = nn.GroupNorm(2, 64)
        self.relu = nn.ReLU()
        widths = (64, 64, 128, 256, 512)
        for stage in range(1, 5):
            before, width = widths[stage - 1 : stage + 1]
            blocks = nn.Sequential(_Block(before, width, 1 if stage == 1 else 2), _Block(width, width, 1))
            self.add_module(f"layer{stage}", blocks)
        self.fc = nn.Linear(512, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.relu(self.bn1(self.conv1(inputs)))
        for stage in range(1, 5):
            maps = self.get_submodule(f"layer{stage}")(maps)
        return self.fc(maps.mean(dim=(-2, -1)))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.GroupNorm(2, outputs)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.GroupNorm(2, outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(2, outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(inputs)))))
        return self.relu(maps + self.downsample(inputs))


FACTORIES = {"simple_cnn": simple_cnn, "cnn": leaf_cnn, "mlp": perceptron, "resnet18": ResNet18}


def build(name: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    """A module of the architecture `name` (fedstart's name for it), always with the same initial values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FACTORIES[name](shape, classes)
