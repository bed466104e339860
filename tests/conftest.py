"""One small federation with unequal clients, and one small model in float64, for every test that wants them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedstart import keys
from fedstart.data.federation import Examples, Federation, Positions
from fedstart.models import Model, load_architecture
from fedstart.types import Plan, Weights

# pytest runs a process on every core already; more threads of torch would wait for one another, spinning.
torch.set_num_threads(1)

SIZES = (5, 11, 23, 8, 17, 14)
CLASSES = 3


@pytest.fixture(scope="session")
def federation() -> Federation:
    """Six clients of 5 to 23 examples, 4 features, 3 classes, skewed labels; every client has a test part."""
    draws = keys.generator(7, "test-federation")
    count = sum(SIZES)
    owners = np.repeat(np.arange(len(SIZES)), SIZES)
    labels = (owners + draws.integers(0, 2, count)) % CLASSES
    centres = draws.normal(size=(CLASSES, 4))
    inputs = centres[labels] + 0.7 * draws.normal(size=(count, 4))
    examples = Examples("small", torch.from_numpy(inputs), labels.astype(np.int64), ("a", "b", "c"), "small-7")
    positions = draws.permutation(count)
    inverse = owners[positions]
    parts = {"train": Positions.from_owners(inverse, positions, len(SIZES))}
    parts["test"] = Positions.from_owners(np.roll(inverse, 3), positions, len(SIZES))
    return Federation("small", examples, parts, (0, 1, 2))


@pytest.fixture(scope="session")
def model() -> Model:
    """4 features, 6 hidden units, 3 classes."""
    return Model(load_architecture("mlp", {"hidden": [6]}), (4,), CLASSES)


@pytest.fixture(scope="session")
def weights(model: Model) -> Weights:
    """The model's initial weights in float64."""
    return {name: tensor.double() for name, tensor in model.init(3).items()}


@pytest.fixture(scope="session")
def plan() -> Plan:
    """Two rounds, four of six clients, every setting off its default."""
    return Plan(
        rounds=2,
        cohort=4,
        local_epochs=2,
        batch_size=4,
        lr=0.1,
        momentum=0.5,
        weight_decay=0.01,
        clip=0.8,
        query_fraction=0.3,
        seed=11,
    )
