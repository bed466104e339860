"""SCAFFOLD against a literal loop of its Algorithm 1 with option II, and its limits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fedstart.algorithms.fedavg import FedAvg
from fedstart.algorithms.scaffold import Scaffold
from fedstart.engines.local import LocalEngine
from fedstart.training import train
from reference import slow


def reference(model, federation, plan, x, server_lr):
    everyone = range(federation.clients)
    zero = {name: torch.zeros_like(tensor) for name, tensor in x.items()}
    c, c_i = dict(zero), {i: dict(zero) for i in everyone}
    for t in range(1, plan.rounds + 1):
        sampled = slow.cohort(federation, plan, t)
        y, plus = {}, {}
        for i in sampled:
            positions = federation.positions("train", i)

            def correction(w, i=i, c=c):
                return {name: c[name] - c_i[i][name] for name in w}

            y[i] = slow.local_training(model, federation, plan, t, i, x, positions, correction)
            k = plan.local_steps or plan.local_epochs * math.ceil(len(positions) / plan.batch_size)
            plus[i] = {name: c_i[i][name] - c[name] + (x[name] - y[i][name]) / (k * plan.lr) for name in x}
        x = {name: x[name] + server_lr / len(sampled) * sum(y[i][name] - x[name] for i in sampled) for name in x}
        c = {name: c[name] + sum(plus[i][name] - c_i[i][name] for i in sampled) / len(everyone) for name in c}
        c_i.update(plus)
    return x, c, c_i


@pytest.mark.parametrize("work", [{"local_epochs": 2}, {"local_epochs": None, "local_steps": 5}])
def test_equals_the_literal_loop(model, federation, weights, plan, work):
    plan = replace(plan, rounds=4, clip=None, **work)
    x, c, c_i = reference(model, federation, plan, weights, server_lr=0.7)
    with LocalEngine() as engine:
        *_, last = train(Scaffold(server_lr=0.7), model, federation, plan, weights, engine)
    slow.assert_close(last.state.weights, x)
    slow.assert_close(last.state.memory["control"], c, relative=1e-8)
    for i, memory in last.memories.items():
        slow.assert_close(memory["control"], c_i[i], relative=1e-8)


def test_the_first_round_of_one_whole_step_is_fedavg_with_equal_weights(model, federation, weights, plan):
    one = replace(
        plan, rounds=1, local_epochs=None, local_steps=1, batch_size=1000, momentum=0, weight_decay=0, clip=None
    )
    with LocalEngine() as engine:
        first = next(train(Scaffold(), model, federation, one, weights, engine))
        cohort = engine.cohort(model, federation, one, 1, first.clients)
        slow.assert_close(first.state.weights, cohort.mean(FedAvg().learn, weights, weight=None))


def test_only_clients_that_were_seen_remember(model, federation, weights, plan):
    with LocalEngine() as engine:
        first, second = train(Scaffold(), model, federation, plan, weights, engine)
    assert set(first.memories) == set(first.clients)
    assert set(second.memories) == set(first.clients) | set(second.clients)
