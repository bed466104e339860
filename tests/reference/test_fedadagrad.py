"""FedAdagrad against a literal loop of Algorithm 2, and its limits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fedstart import tree
from fedstart.algorithms.fedadagrad import FedAdagrad
from fedstart.algorithms.reptile import Reptile
from fedstart.types import State
from reference import slow
from reference.engine import last_round


def reference(model, federation, plan, x, server_lr, beta1, tau):
    def second(v, d):
        return v + d * d

    return slow.adaptive_server(model, federation, plan, x, server_lr, beta1, tau, second)


@pytest.mark.parametrize("tau", [0.003, 0.05])
def test_equals_the_literal_loop(model, federation, weights, plan, tau):
    longer, settings = replace(plan, rounds=4), {"server_lr": 0.03, "beta1": 0.7, "tau": tau}
    x, m, v = reference(model, federation, longer, weights, **settings)
    last = last_round(FedAdagrad(**settings), model, federation, longer, weights)
    slow.assert_close(last.state.weights, x)
    slow.assert_close(last.state.memory["first"], m)
    slow.assert_close(last.state.memory["second"], v)


def test_a_huge_tau_without_momentum_goes_a_share_of_the_way_to_the_mean(model, federation, weights, plan):
    """v is tau^2 up to rounding, so the step is server_lr / (2 tau) of the way: here 0.3 of it."""
    longer = replace(plan, rounds=3)
    far = last_round(FedAdagrad(server_lr=0.6e6, beta1=0, tau=1e6), model, federation, longer, weights)
    slow.assert_close(far.state.weights, last_round(Reptile(0.3), model, federation, longer, weights).state.weights)


def test_rounds_that_all_move_alike_make_steps_that_shrink_as_one_over_the_root(weights):
    """Every client always answers with weights 0.1 above the server's; tau is next to nothing."""

    class Rising:
        def mean(self, method, broadcast, weight):
            return {name: tensor + 0.1 for name, tensor in broadcast.items()}

    state = State(weights)
    for t in range(1, 10):
        after, _ = FedAdagrad(server_lr=0.03, tau=1e-9).step(state, Rising())
        for moved in tree.subtract(after.weights, state.weights).values():
            torch.testing.assert_close(moved, torch.full_like(moved, 0.03 / math.sqrt(t)))
        state = after
