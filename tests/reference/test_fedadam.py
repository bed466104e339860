"""FedAdam against a literal loop of Algorithm 2, and its limits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fedstart import tree
from fedstart.algorithms.fedadam import FedAdam
from fedstart.algorithms.reptile import Reptile
from fedstart.engines.local import LocalEngine
from fedstart.training import train
from reference import slow


def reference(model, federation, plan, x, server_lr, beta1, beta2, tau):
    m = {name: torch.zeros_like(tensor) for name, tensor in x.items()}
    v = {name: torch.full_like(tensor, tau * tau) for name, tensor in x.items()}
    for t in range(1, plan.rounds + 1):
        sampled, delta = slow.cohort(federation, plan, t), {}
        for i in sampled:
            trained = slow.local_training(model, federation, plan, t, i, x, federation.positions("train", i))
            delta[i] = {name: trained[name] - x[name] for name in x}
        for name in x:
            d = sum(delta[i][name] for i in sampled) / len(sampled)
            m[name] = beta1 * m[name] + (1 - beta1) * d
            v[name] = beta2 * v[name] + (1 - beta2) * d * d
        x = {name: x[name] + server_lr * m[name] / (torch.sqrt(v[name]) + tau) for name in x}
    return x, m, v


def last_round(algorithm, model, federation, plan, weights):
    with LocalEngine() as engine:
        *_, last = train(algorithm, model, federation, plan, weights, engine)
    return last


@pytest.mark.parametrize("tau", [0.003, 0.05])
def test_equals_the_literal_loop(model, federation, weights, plan, tau):
    longer, settings = replace(plan, rounds=4), {"server_lr": 0.03, "beta1": 0.7, "beta2": 0.8, "tau": tau}
    x, m, v = reference(model, federation, longer, weights, **settings)
    last = last_round(FedAdam(**settings), model, federation, longer, weights)
    slow.assert_close(last.state.weights, x)
    slow.assert_close(last.state.memory["first"], m)
    slow.assert_close(last.state.memory["second"], v)


def test_a_huge_tau_without_momentum_goes_a_share_of_the_way_to_the_mean(model, federation, weights, plan):
    """v is tau^2 up to rounding, so the step is server_lr / (2 tau) of the way: here 0.3 of it."""
    longer = replace(plan, rounds=3)
    far = last_round(FedAdam(server_lr=0.6e6, beta1=0, beta2=1 - 1e-12, tau=1e6), model, federation, longer, weights)
    slow.assert_close(far.state.weights, last_round(Reptile(0.3), model, federation, longer, weights).state.weights)


def test_the_first_step_is_as_long_in_every_direction_where_tau_is_small(model, federation, weights, plan):
    """Without momentum and with beta2 = 0 a step is server_lr times the sign of what clients moved."""
    once = replace(plan, rounds=1)
    first = last_round(FedAdam(server_lr=0.03, beta1=0, beta2=0, tau=1e-12), model, federation, once, weights)
    moved = tree.subtract(first.state.weights, weights)
    toward = tree.subtract(last_round(Reptile(), model, federation, once, weights).state.weights, weights)
    for name, tensor in moved.items():
        torch.testing.assert_close(tensor, 0.03 * toward[name].sign())
    assert first.info["step_norm"] == pytest.approx(0.03 * math.sqrt(sum(t.numel() for t in weights.values())))
