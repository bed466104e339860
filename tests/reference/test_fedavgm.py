"""FedAvgM against a literal loop, and its limits."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedstart import tree
from fedstart.algorithms.fedavg import FedAvg
from fedstart.algorithms.fedavgm import FedAvgM
from fedstart.types import State
from reference import slow
from reference.engine import last_round


def reference(model, federation, plan, w, momentum, server_lr):
    v = {name: torch.zeros_like(tensor) for name, tensor in w.items()}
    for t in range(1, plan.rounds + 1):
        members = slow.cohort(federation, plan, t)
        positions = {k: federation.positions("train", k) for k in members}
        n = sum(len(some) for some in positions.values())
        delta = {name: torch.zeros_like(tensor) for name, tensor in w.items()}
        for k in members:
            trained = slow.local_training(model, federation, plan, t, k, w, positions[k])
            delta = {name: delta[name] + len(positions[k]) / n * (w[name] - trained[name]) for name in w}
        v = {name: momentum * v[name] + delta[name] for name in w}
        w = {name: w[name] - server_lr * v[name] for name in w}
    return w, v


def test_equals_the_literal_loop(model, federation, weights, plan):
    longer = replace(plan, rounds=4)
    expected, velocity = reference(model, federation, longer, weights, momentum=0.6, server_lr=0.7)
    last = last_round(FedAvgM(momentum=0.6, server_lr=0.7), model, federation, longer, weights)
    slow.assert_close(last.state.weights, expected)
    slow.assert_close(last.state.memory["velocity"], velocity)


def test_no_momentum_is_fedavg(model, federation, weights, plan):
    longer = replace(plan, rounds=3)
    found, expected = (
        last_round(method, model, federation, longer, weights).state.weights for method in (FedAvgM(0.0), FedAvg())
    )
    slow.assert_close(found, expected, relative=1e-12)


def test_the_first_round_is_fedavg_whatever_the_momentum(model, federation, weights, plan):
    once = replace(plan, rounds=1)
    found, expected = (
        last_round(method, model, federation, once, weights).state.weights for method in (FedAvgM(0.95), FedAvg())
    )
    slow.assert_close(found, expected, relative=1e-12)


def test_rounds_that_all_move_alike_go_ten_times_as_far_with_momentum_nine_tenths(weights):
    """Every client always answers with weights 0.1 below the server's."""

    class Falling:
        def mean(self, method, broadcast):
            return {name: tensor - 0.1 for name, tensor in broadcast.items()}

    states = [State(weights)]
    for _ in range(300):
        states.append(FedAvgM(0.9).step(states[-1], Falling())[0])
    for moved in tree.subtract(states[-2].weights, states[-1].weights).values():
        torch.testing.assert_close(moved, torch.full_like(moved, 1.0))
