"""Made-up images that a small network can tell apart: one smooth pattern for each class, plus noise."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings_dataclass

from fedstart import keys
from fedstart.data.cache import array_digest, content_fingerprint, statistics
from fedstart.data.federation import Examples
from fedstart.types import STRICT


@settings_dataclass(frozen=True, config=STRICT)
class Synthetic:
    """Settings of the made-up images; the same settings give the same bytes."""

    classes: Annotated[int, Field(ge=2, description="number of classes")] = 10
    examples: Annotated[int, Field(ge=1, description="number of images, as equal per class as can be")] = 2000
    size: Annotated[int, Field(ge=2, description="height and width in pixels")] = 8
    channels: Annotated[int, Field(ge=1, description="1 = grey, 3 = colour")] = 1
    noise: Annotated[float, Field(ge=0, description="standard deviation of the pixel noise, grey levels")] = 40.0
    groups: Annotated[int, Field(ge=1, description="values of the column `group`, each with its own brightness")] = 10
    seed: Annotated[int, Field(ge=0, description="names the draw")] = 0


def synthetic(settings: Synthetic) -> Examples:
    """Images of shape (examples, channels, size, size), uint8, with the column `group`; no official split.

    Raises ValueError if there are fewer examples than classes.
    """
    if settings.examples < settings.classes:
        raise ValueError(f"synthetic: {settings.examples} examples are too few for {settings.classes} classes")
    shape = (settings.channels, settings.size, settings.size)
    rng = keys.generator(settings.seed, "synthetic")
    patterns = rng.normal(size=(settings.classes, *shape))
    # A smooth pattern survives convolution and pooling, which white noise would not.
    for axis in (-2, -1):
        patterns = patterns + np.roll(patterns, 1, axis=axis) + np.roll(patterns, -1, axis=axis)
    patterns = 128 + 50 * patterns / patterns.std()
    labels = rng.permutation(np.arange(settings.examples) % settings.classes)
    group = rng.integers(settings.groups, size=settings.examples)
    brightness = rng.normal(scale=10.0, size=settings.groups)[group]
    noise = rng.normal(size=(settings.examples, *shape), scale=settings.noise)
    images = np.clip(np.rint(patterns[labels] + noise + brightness[:, None, None, None]), 0, 255).astype(np.uint8)
    class_names = tuple(f"pattern {label}" for label in range(settings.classes))
    mean, std = statistics(images)
    return Examples(
        name="synthetic",
        inputs=torch.from_numpy(images),
        labels=labels,
        class_names=class_names,
        fingerprint=content_fingerprint(array_digest(images), labels, class_names),
        mean=mean,
        std=std,
        columns={"group": group},
    )
