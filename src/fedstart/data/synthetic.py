"""Made-up images that a small network can tell apart: one smooth pattern for each class, plus noise."""

from __future__ import annotations

import numpy as np

from fedstart import keys
from fedstart.data.drawn import image_examples
from fedstart.data.federation import Examples
from fedstart.data.kinds import Synthetic


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
    class_names = [f"pattern {label}" for label in range(settings.classes)]
    return image_examples("synthetic", images, labels, class_names, {"group": group})
