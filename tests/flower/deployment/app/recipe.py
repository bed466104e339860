"""What server, nodes and the tests' local run must agree on: data, model, plan and first weights."""

from __future__ import annotations

import functools

from fedstart.data.digits import digits
from fedstart.data.federation import Federation
from fedstart.data.partitions import Dirichlet
from fedstart.data.tasks import federate
from fedstart.models import Model, load_architecture
from fedstart.types import Plan

MODEL = Model(load_architecture("cnn3x3", {"channels": [4, 8], "hidden": 16}), (1, 8, 8), 10)
WEIGHTS = MODEL.init(5)


@functools.cache
def federation() -> Federation:
    """The digits over three clients of unequal size and with skewed labels."""
    skewed = Dirichlet(alpha=0.5)
    return federate(digits(), classes=range(10), partition=skewed, clients=3, seed=4, name="digits", test_fraction=0)


def plan(rounds: int) -> Plan:
    """A few steps of SGD, with settings off their defaults."""
    return Plan(rounds=rounds, local_steps=6, batch_size=16, lr=0.05, momentum=0.5, query_fraction=0.3, seed=9)
