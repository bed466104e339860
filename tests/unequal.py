"""Clients of very different sizes with features or uint8 images, and small models for them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch

from fedstart import keys
from fedstart.data.federation import Examples, Federation, Positions
from fedstart.models import Model, load_architecture
from fedstart.types import Plan, Weights

SIZES = (2, 9, 40, 13, 5, 27, 11, 3)
SHAPES = {"mlp": (5,), "simple_cnn": (2, 8, 8)}
SETTINGS = {"mlp": {"hidden": [6]}, "simple_cnn": {"channels": [3, 5], "hidden": 7}}
CLASSES = 3

PLAN = Plan(
    rounds=2,
    cohort=7,
    local_epochs=2,
    batch_size=8,
    lr=0.1,
    momentum=0.5,
    weight_decay=0.01,
    clip=0.8,
    query_fraction=0.3,
    seed=11,
)
"""Every setting off its default; some clients have less than a minibatch, and one of the eight is not drawn."""


@functools.cache
def federation(name: str = "mlp", sizes: Sequence[int] = SIZES) -> Federation:
    """Clients of these sizes with learnable examples for the model `name`; positions in no order."""
    draws = keys.generator(5, "test-unequal")
    shape, count = SHAPES[name], sum(sizes)
    labels = draws.integers(0, CLASSES, count)
    inputs = draws.normal(size=(CLASSES, *shape))[labels] + draws.normal(size=(count, *shape))
    if len(shape) == 3:
        inputs = (128 + 40 * inputs).clip(0, 255).astype(np.uint8)
    examples = Examples(name, torch.from_numpy(inputs), labels, ("a", "b", "c"), name, (0.5,), (0.25,))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return Federation("unequal", examples, {"train": Positions(offsets, draws.permutation(count))}, (0, 1, 2))


@functools.cache
def model(name: str = "mlp") -> Model:
    """A model that takes this federation's examples."""
    return Model(load_architecture(name, SETTINGS[name]), SHAPES[name], CLASSES)


def start(name: str = "mlp", dtype: torch.dtype = torch.float64) -> Weights:
    """Initial weights."""
    return {key: tensor.to(dtype) for key, tensor in model(name).init(3).items()}
