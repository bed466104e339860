"""FedDyn against a literal loop of its Algorithm 1, and its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedstart import tree
from fedstart.algorithms.feddyn import FedDyn
from fedstart.algorithms.fedprox import FedProx
from fedstart.algorithms.reptile import Reptile
from fedstart.engines.local import LocalEngine
from fedstart.models import Model, load_architecture
from fedstart.training import train
from fedstart.types import Plan
from reference import slow


def reference(model, federation, plan, server, alpha):
    everyone = range(federation.clients)
    zero = {name: torch.zeros_like(tensor) for name, tensor in server.items()}
    h, dual = dict(zero), {k: dict(zero) for k in everyone}
    for t in range(1, plan.rounds + 1):
        sampled, w = slow.cohort(federation, plan, t), {}
        for k in sampled:

            def bent(now, k=k, server=server):
                return {name: -dual[k][name] + alpha * (now[name] - server[name]) for name in now}

            w[k] = slow.local_training(model, federation, plan, t, k, server, federation.positions("train", k), bent)
        for k in sampled:
            dual[k] = {name: dual[k][name] - alpha * (w[k][name] - server[name]) for name in server}
        for name in h:
            h[name] = h[name] - alpha / len(everyone) * sum(w[k][name] - server[name] for k in sampled)
        server = {name: sum(w[k][name] for k in sampled) / len(sampled) - h[name] / alpha for name in server}
    return server, h, dual


def rounds(algorithm, model, federation, plan, weights):
    with LocalEngine() as engine:
        return list(train(algorithm, model, federation, plan, weights, engine))


@pytest.mark.parametrize("work", [{"local_epochs": 2}, {"local_epochs": None, "local_steps": 5}])
def test_equals_the_literal_loop(model, federation, weights, plan, work):
    longer = replace(plan, rounds=4, **work)
    expected, h, dual = reference(model, federation, longer, weights, alpha=0.3)
    last = rounds(FedDyn(alpha=0.3), model, federation, longer, weights)[-1]
    slow.assert_close(last.state.weights, expected)
    slow.assert_close(last.state.memory["h"], h)
    assert len(last.memories) > plan.cohort
    for k, memory in last.memories.items():
        slow.assert_close(memory["dual"], dual[k])


def test_the_first_round_with_all_clients_goes_twice_as_far_as_their_mean(model, federation, weights, plan):
    once = replace(plan, rounds=1, cohort=None)
    (first,) = rounds(FedDyn(alpha=0.3), model, federation, once, weights)
    with LocalEngine() as engine:
        mean = engine.cohort(model, federation, once, 1, range(6)).mean(FedProx(0.3).learn, weights, weight=None)
    slow.assert_close(first.state.weights, tree.add(mean, tree.subtract(mean, weights)))


def test_one_client_of_six_alone_goes_a_sixth_further(model, federation, weights, plan):
    """By hand: h = -alpha/6 (w_k - w), so the server's weights are w_k + (w_k - w)/6."""
    alone = replace(plan, rounds=1, cohort=1)
    (first,) = rounds(FedDyn(alpha=0.3), model, federation, alone, weights)
    with LocalEngine() as engine:
        (trained,) = engine.cohort(model, federation, alone, 1, first.clients).map(FedProx(0.3).learn, weights)
    slow.assert_close(first.state.weights, tree.add(trained, tree.subtract(trained, weights), scale=1 / 6))


def test_h_is_the_mean_of_the_duals_of_all_clients(model, federation, weights, plan):
    last = rounds(FedDyn(alpha=0.3), model, federation, replace(plan, rounds=5), weights)[-1]
    duals = [memory["dual"] for memory in last.memories.values()]
    slow.assert_close(last.state.memory["h"], tree.combine(duals, [1 / federation.clients] * len(duals)))


def test_comes_to_rest_where_the_mean_loss_does_however_long_clients_train(federation):
    """Logistic regression with weight decay, whole batches, four local steps: a plain mean stays off it."""
    convex = Model(load_architecture("mlp", {"hidden": []}), (4,), 3)
    weights = {name: tensor.double() for name, tensor in convex.init(3).items()}
    plan = Plan(rounds=150, local_steps=4, batch_size=1000, lr=0.3, weight_decay=0.1)
    slopes = {}
    for method in (FedDyn(alpha=0.3), Reptile()):
        last = rounds(method, convex, federation, plan, weights)[-1].state.weights
        gradients = [
            slow.loss_and_gradient(convex, federation, last, federation.positions("train", k))[1] for k in range(6)
        ]
        total = tree.combine(gradients, [1 / 6] * 6)
        slopes[type(method)] = tree.norm(tree.add(total, last, scale=plan.weight_decay))
    assert slopes[FedDyn] < 1e-9
    assert slopes[Reptile] > 1e-3
