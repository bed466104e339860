"""Pieces that several architectures share."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

# Architectures are listed, and their settings checked, without torch, which takes a second to import.
if TYPE_CHECKING:
    from torch import nn


def image_shape(shape: tuple[int, ...], smallest: int) -> tuple[int, int, int]:
    """`(channels, height, width)`; raises ValueError for another shape or a side below `smallest` pixels."""
    if len(shape) != 3 or min(shape[1:]) < smallest:
        raise ValueError(
            f"input shape {shape} does not suit this model (allowed: (channels, height, width), "
            f"height and width at least {smallest})"
        )
    return shape[0], shape[1], shape[2]


def two_convolutions(
    shape: tuple[int, ...], classes: int, channels: tuple[int, int], kernel: int, hidden: int
) -> nn.Module:
    """Twice (convolution with "same" padding, 2x2 max-pooling, ReLU), then a hidden linear layer with ReLU and `fc`.

    ReLU and max-pooling commute; behind the pooling ReLU has a quarter of the numbers to look at, and behind the
    flattening its gradient lies in memory as it is needed.

    `kernel` is odd. Raises ValueError unless `shape` is an image of at least 4x4 pixels.
    """
    from torch import nn

    inputs, height, width = image_shape(shape, smallest=4)
    features = channels[1] * (height // 4) * (width // 4)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(inputs, channels[0], kernel, padding=kernel // 2),
        pool1=nn.MaxPool2d(2),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(channels[0], channels[1], kernel, padding=kernel // 2),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        relu2=nn.ReLU(),
        hidden=nn.Linear(features, hidden),
        relu3=nn.ReLU(),
        fc=nn.Linear(hidden, classes),
    )
    return nn.Sequential(layers)
