"""Stacks of convolutions under one linear layer. They stand apart from the settings, which are read without torch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Literal

from torch import nn

Norm = Literal["group", "batch", "none"]


def stack(
    inputs: int, classes: int, channels: Sequence[int], pooled: Collection[int], norm: Norm, groups: int
) -> nn.Sequential:
    """3x3 convolutions `conv1`, `conv2`, ... with "same" padding, each followed by its normalisation `norm1`, ... and
    ReLU; then the mean over all places, and `fc`.

    `channels` are the convolutions' filters, in order; 2x2 max-pooling stands behind the `pooled` ones, counted from 1.
    Convolutions have a bias only without normalisation, which would take it away. Their initial values are those of
    He et al. 2015, biases zero.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, outputs in enumerate(channels, start=1):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=norm == "none")
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)
        layers[f"conv{number}"] = convolution
        if norm != "none":
            layers[f"norm{number}"] = nn.BatchNorm2d(outputs) if norm == "batch" else nn.GroupNorm(groups, outputs)
        # ReLU and max-pooling commute; behind the pooling ReLU has a quarter of the numbers to look at.
        if number in pooled:
            layers[f"pool{number}"] = nn.MaxPool2d(2)
        layers[f"relu{number}"] = nn.ReLU()
        inputs = outputs
    layers["mean"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(inputs, classes)
    return nn.Sequential(layers)
