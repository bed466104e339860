"""FedYogi against a literal loop of Algorithm 2, and its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedstart import tree
from fedstart.algorithms.fedyogi import FedYogi
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
            v[name] = v[name] - (1 - beta2) * d * d * torch.sign(v[name] - d * d)
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
