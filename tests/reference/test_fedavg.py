"""FedAvg against a literal loop, and its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedstart.algorithms.fedavg import FedAvg
from fedstart.engines.local import LocalEngine
from fedstart.training import train
from reference import slow


def reference(model, federation, plan, weights):
    for t in range(1, plan.rounds + 1):
        members = slow.cohort(federation, plan, t)
        n = sum(len(federation.positions("train", k)) for k in members)
        mean = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        for k in members:
            positions = federation.positions("train", k)
            trained = slow.local_training(model, federation, plan, t, k, weights, positions)
            for name in mean:
                mean[name] = mean[name] + len(positions) / n * trained[name]
        weights = mean
    return weights


@pytest.mark.parametrize("work", [{"local_epochs": 2}, {"local_epochs": None, "local_steps": 7}])
def test_equals_the_literal_loop(model, federation, weights, plan, work):
    plan = replace(plan, **work)
    expected = reference(model, federation, plan, weights)
    with LocalEngine() as engine:
        *_, last = train(FedAvg(), model, federation, plan, weights, engine)
    slow.assert_close(last.state.weights, expected)


def test_one_whole_batch_step_is_gradient_descent_on_the_pooled_loss(model, federation, weights, plan):
    plan = replace(
        plan, cohort=None, local_epochs=None, local_steps=1, batch_size=1000, momentum=0, clip=None, weight_decay=0
    )
    with LocalEngine() as engine:
        *_, split = train(FedAvg(), model, federation, plan, weights, engine)
        *_, pooled = train(FedAvg(), model, federation.pooled(), plan, weights, engine)
    slow.assert_close(split.state.weights, pooled.state.weights)


def test_zero_rounds_change_nothing(model, federation, weights, plan):
    with LocalEngine() as engine:
        assert list(train(FedAvg(), model, federation, replace(plan, rounds=0), weights, engine)) == []
