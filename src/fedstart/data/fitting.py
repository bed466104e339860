"""Images brought to another shape, so that one network can take them."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch
from torch import Tensor

from fedstart.data.cache import statistics
from fedstart.data.federation import Examples

CHUNK = 1024
"""Images that are resized at a time: bounds memory."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


def fitted(examples: Examples, shape: tuple[int, ...]) -> Examples:
    """The examples as images of `shape` = (channels, height, width): the same object if they are so already.

    Grey images get three equal channels, coloured ones become grey (BT.601); the size changes bilinearly, smoothed
    where it shrinks, without regard to the ratio of the sides. Mean and standard deviation are those of the result.
    Raises ValueError where one of the two is no image, or of other than 1 or 3 channels.
    """
    given = examples.shape
    if given == shape:
        return examples
    if len(given) != 3 or len(shape) != 3 or not {given[0], shape[0]} <= {1, 3}:
        raise ValueError(
            f"{examples.name}: inputs of shape {given} cannot be fitted to {shape} (allowed: images of 1 or 3 channels)"
        )
    pieces = [_fit(examples.inputs[begin : begin + CHUNK], shape) for begin in range(0, len(examples), CHUNK)]
    inputs = torch.cat(pieces)
    mean, std = statistics(inputs.numpy())
    return replace(
        examples,
        inputs=inputs.contiguous(memory_format=torch.channels_last),
        fingerprint=hashlib.sha256(f"{examples.fingerprint} {shape}".encode()).hexdigest(),
        mean=mean,
        std=std,
    )


def _fit(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    values = images.float()
    if shape[0] < values.shape[1]:
        values = (values * torch.tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    if values.shape[2:] != shape[1:]:
        values = torch.nn.functional.interpolate(values, shape[1:], mode="bilinear", antialias=True)
    return values.round().clamp(0, 255).to(torch.uint8).expand(-1, shape[0], -1, -1)
