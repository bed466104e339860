"""FedMeta against a literal loop of its Algorithm 1 with MAML, its limits, and central differences of a round."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedstart import tree
from fedstart.algorithms.fedmeta import FedMeta
from fedstart.engines.local import LocalEngine
from fedstart.training import draw
from fedstart.types import State
from reference import slow
from reference.engine import final


def query_loss(model, federation, plan, t, j, w):
    inputs, labels = federation.batch(slow.support_and_query(federation, plan, t, j)[1], torch.float64)
    return cross_entropy(model.apply(w, inputs, training=True), labels)


def client_gradient(model, federation, plan, t, j, w, order):
    support = slow.support_and_query(federation, plan, t, j)[0]
    leaves = {name: tensor.clone().requires_grad_(True) for name, tensor in w.items()}
    if order == 2:
        adapted = slow.traced_training(model, federation, plan, t, j, leaves, support)
        found = torch.autograd.grad(query_loss(model, federation, plan, t, j, adapted), list(leaves.values()))
    else:
        adapted = slow.local_training(model, federation, plan, t, j, w, support)
        adapted = {name: tensor.requires_grad_(True) for name, tensor in adapted.items()}
        found = torch.autograd.grad(query_loss(model, federation, plan, t, j, adapted), list(adapted.values()))
    return dict(zip(w, found, strict=True))


def reference(model, federation, plan, w, meta_lr, order):
    for t in range(1, plan.rounds + 1):
        members = slow.cohort(federation, plan, t)
        g = [client_gradient(model, federation, plan, t, j, w, order) for j in members]
        w = {name: w[name] - meta_lr / len(members) * sum(one[name] for one in g) for name in w}
    return w


@pytest.mark.parametrize("order", [1, 2])
def test_equals_the_literal_loop(model, federation, weights, plan, order):
    plan = replace(plan, rounds=3)
    expected = reference(model, federation, plan, weights, 0.7, order)
    slow.assert_close(final(FedMeta(0.7, order), model, federation, plan, weights), expected)


def test_the_two_orders_differ(model, federation, weights, plan):
    with pytest.raises(AssertionError):
        slow.assert_close(
            *(final(FedMeta(0.7, order), model, federation, plan, weights) for order in (1, 2)), relative=1e-3
        )


def test_second_order_is_the_central_difference_of_the_whole_round(model, federation, weights, plan):
    """The server's step, divided by -meta_lr, along random directions."""
    meta_lr, h = 0.7, 1e-5
    with LocalEngine() as engine:
        cohort = engine.cohort(model, federation, plan, 1, draw(federation, plan, 1))
        state, _ = FedMeta(meta_lr, order=2).step(State(weights), cohort)
    gradient = tree.scale(tree.subtract(state.weights, weights), -1 / meta_lr)
    members = slow.cohort(federation, plan, 1)

    def mean_query_loss(w):
        adapted = {
            j: slow.local_training(model, federation, plan, 1, j, w, slow.support_and_query(federation, plan, 1, j)[0])
            for j in members
        }
        return sum(float(query_loss(model, federation, plan, 1, j, adapted[j])) for j in members) / len(members)

    draws = torch.Generator().manual_seed(5)
    for _ in range(3):
        v = {n: torch.randn(t.shape, generator=draws, dtype=t.dtype) for n, t in weights.items()}
        slope = (mean_query_loss(tree.add(weights, v, h)) - mean_query_loss(tree.add(weights, v, -h))) / (2 * h)
        assert tree.dot(gradient, v) == pytest.approx(slope, rel=1e-5)


def test_meta_lr_zero_stays_where_it_is(model, federation, weights, plan):
    slow.assert_close(final(FedMeta(0.0), model, federation, plan, weights), weights, relative=0)


def test_one_step_of_almost_no_rate_is_a_step_on_the_query_loss(model, federation, weights, plan):
    """Without adaptation both orders are gradient descent on the clients' query losses."""
    still = replace(plan, rounds=1, lr=1e-12)
    members = slow.cohort(federation, still, 1)
    gradients = [
        slow.loss_and_gradient(model, federation, weights, slow.support_and_query(federation, still, 1, j)[1])[1]
        for j in members
    ]
    expected = {n: weights[n] - 0.7 / len(members) * sum(g[n] for g in gradients) for n in weights}
    for order in (1, 2):
        slow.assert_close(final(FedMeta(0.7, order), model, federation, still, weights), expected)
