"""FedAdam against a literal loop of Algorithm 2, and its limits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fedstart import tree
from fedstart.algorithms.fedadam import FedAdam
from fedstart.algorithms.reptile import Reptile
from reference import slow
from reference.engine import last_round


def reference(model, federation, plan, x, server_lr, beta1, beta2, tau):
    def second(v, d):
        return beta2 * v + (1 - beta2) * d * d

    return slow.adaptive_server(model, federation, plan, x, server_lr, beta1, tau, second)


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
