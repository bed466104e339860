"""FedYogi against a literal loop of Algorithm 2, and its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedstart import tree
from fedstart.algorithms.fedyogi import FedYogi
from fedstart.algorithms.reptile import Reptile
from reference import slow
from reference.engine import last_round


def reference(model, federation, plan, x, server_lr, beta1, beta2, tau):
    def second(v, d):
        return v - (1 - beta2) * d * d * torch.sign(v - d * d)

    return slow.adaptive_server(model, federation, plan, x, server_lr, beta1, tau, second)


@pytest.mark.parametrize("tau", [0.003, 0.05])
def test_equals_the_literal_loop(model, federation, weights, plan, tau):
    longer, settings = replace(plan, rounds=4), {"server_lr": 0.03, "beta1": 0.7, "beta2": 0.8, "tau": tau}
    x, m, v = reference(model, federation, longer, weights, **settings)
    last = last_round(FedYogi(**settings), model, federation, longer, weights)
    slow.assert_close(last.state.weights, x)
    slow.assert_close(last.state.memory["first"], m)
    slow.assert_close(last.state.memory["second"], v)


def test_a_huge_tau_without_momentum_goes_a_share_of_the_way_to_the_mean(model, federation, weights, plan):
    """v is tau^2 up to rounding, so the step is server_lr / (2 tau) of the way: here 0.3 of it."""
    longer = replace(plan, rounds=3)
    far = last_round(FedYogi(server_lr=0.6e6, beta1=0, beta2=1 - 1e-12, tau=1e6), model, federation, longer, weights)
    slow.assert_close(far.state.weights, last_round(Reptile(0.3), model, federation, longer, weights).state.weights)


def test_the_second_moment_goes_up_or_down_by_the_same(model, federation, weights, plan):
    """A small tau begins below every change, a large one above."""
    once, beta2 = replace(plan, rounds=1), 0.8
    toward = tree.subtract(last_round(Reptile(), model, federation, once, weights).state.weights, weights)
    for tau, sign in ((1e-9, 1), (10.0, -1)):
        second = last_round(FedYogi(beta2=beta2, tau=tau), model, federation, once, weights).state.memory["second"]
        for name, tensor in second.items():
            torch.testing.assert_close(tensor, tau**2 + sign * (1 - beta2) * toward[name] ** 2)
