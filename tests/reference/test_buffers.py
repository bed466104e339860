"""Buffers under methods whose server steps past the mean: running statistics and counts take the plain mean."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from fedstart import tree
from fedstart.algorithms.fedadagrad import FedAdagrad
from fedstart.algorithms.fedadam import FedAdam
from fedstart.algorithms.fedavg import FedAvg
from fedstart.algorithms.fedavgm import FedAvgM
from fedstart.algorithms.feddyn import FedDyn
from fedstart.algorithms.fedyogi import FedYogi
from fedstart.algorithms.qffl import QFFL
from fedstart.algorithms.reptile import Reptile
from fedstart.engines.local import LocalEngine
from fedstart.models import Model
from fedstart.types import Plan, State
from reference import slow

BUFFERS = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
METHODS = [QFFL(2.0), FedAvgM(0.9, 3.0), FedAdam(3.0), FedYogi(3.0), FedAdagrad(3.0), Reptile(3.0)]


@dataclass(frozen=True)
class Normalised:
    """A small model with running statistics and a count of batches."""

    head: ClassVar[str] = "out"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        layers = {"first": nn.Linear(shape[0], 5, bias=False), "norm": nn.BatchNorm1d(5), "out": nn.Linear(5, classes)}
        return nn.Sequential(OrderedDict(layers))


@pytest.mark.parametrize("method", [*METHODS, FedDyn(0.3)], ids=lambda method: type(method).__name__)
def test_buffers_take_the_mean_and_parameters_do_not(method, federation):
    model = Model(Normalised(), (4,), 3)
    weights = {n: t.double() if t.is_floating_point() else t for n, t in model.init(2).items()}
    plan = Plan(rounds=2, local_steps=2, batch_size=8, lr=0.1)
    state, weight = State(weights), "train" if isinstance(method, FedAvgM) else None
    with LocalEngine() as engine:
        for number in (1, 2):
            # FedDyn's clients remember nothing in this cohort, so all of them train on their loss and a proximal term.
            cohort = engine.cohort(model, federation, plan, number, range(6))
            after, _ = method.step(state, cohort)
            learn = method.learn if isinstance(method, FedDyn) else FedAvg().learn
            mean = cohort.mean(learn, state.weights, weight=weight)
            slow.assert_close({n: after.weights[n] for n in BUFFERS}, {n: mean[n] for n in BUFFERS}, relative=1e-12)
            assert all(float((after.weights[n] - mean[n]).abs().max()) > 1e-6 for n in set(weights) - BUFFERS)
            state = after
    assert state.weights["norm.num_batches_tracked"] == 4
    assert all(not BUFFERS & set(kept) for kept in state.memory.values())


def test_parameters_are_told_by_type_and_name():
    weights = {
        "a": torch.zeros(2),
        "a.running_mean": torch.zeros(2),
        "running_var": torch.zeros(2),
        "running_variable": torch.zeros(2),
        "a.num_batches_tracked": torch.tensor(0),
    }
    assert list(tree.parameters(weights)) == ["a", "running_variable"]
