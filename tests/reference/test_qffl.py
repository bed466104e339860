"""q-FedAvg against a literal loop of its Algorithm 2, and its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedstart import tree
from fedstart.algorithms.fedavg import FedAvg
from fedstart.algorithms.qffl import QFFL
from fedstart.engines.local import LocalEngine
from fedstart.training import draw, train
from fedstart.types import State
from reference import slow
from reference.engine import final


def reference(model, federation, plan, w, q):
    lipschitz = 1 / plan.lr
    for t in range(1, plan.rounds + 1):
        delta, h = {}, {}
        for k in slow.cohort(federation, plan, t):
            positions = federation.positions("train", k)
            loss = slow.loss_and_gradient(model, federation, w, positions)[0] + 1e-10
            trained = slow.local_training(model, federation, plan, t, k, w, positions)
            moved = {name: lipschitz * (w[name] - trained[name]) for name in w}
            square = sum(float((tensor**2).sum()) for tensor in moved.values())
            delta[k] = {name: loss**q * moved[name] for name in w}
            h[k] = q * loss ** (q - 1) * square + lipschitz * loss**q
        w = {name: w[name] - sum(d[name] for d in delta.values()) / sum(h.values()) for name in w}
    return w


@pytest.mark.parametrize("q", [0.0, 0.4, 2.0, 5.0])
def test_equals_the_literal_loop(model, federation, weights, plan, q):
    longer = replace(plan, rounds=4)
    expected = reference(model, federation, longer, weights, q)
    slow.assert_close(final(QFFL(q), model, federation, longer, weights), expected)


def test_q_zero_is_the_plain_mean_of_the_trained_weights(model, federation, weights, plan):
    with LocalEngine() as engine:
        cohort = engine.cohort(model, federation, plan, 1, draw(federation, plan, 1))
        state, _ = QFFL(0.0).step(State(weights), cohort)
        slow.assert_close(state.weights, cohort.mean(FedAvg().learn, weights, weight=None))


def test_a_larger_q_turns_the_step_towards_the_client_with_the_largest_loss(model, federation, weights, plan):
    with LocalEngine() as engine:
        cohort = engine.cohort(model, federation, plan, 1, range(6))
        losses = cohort.map(lambda client, w: client.loss(w), weights)
        trained = cohort.map(FedAvg().learn, weights)
        worst = tree.subtract(trained[losses.index(max(losses))], weights)
        cosines = []
        for q in (0, 1, 5, 200):
            moved = tree.subtract(QFFL(q).step(State(weights), cohort)[0].weights, weights)
            cosines.append(tree.dot(moved, worst) / tree.norm(moved) / tree.norm(worst))
    assert cosines == sorted(cosines)
    assert cosines[-1] > 0.999 > 0.99 > cosines[0]


def test_a_loss_of_zero_is_no_division_by_zero(model, federation, weights, plan):
    """A model that is sure and right of everything: labels are all the class of a huge bias."""
    examples = replace(federation.examples, labels=federation.examples.labels * 0)
    certain = {**tree.scale(weights, 0), "fc.bias": torch.tensor([1e4, 0.0, 0.0], dtype=torch.float64)}
    calm = replace(plan, weight_decay=0)
    for q in (0.0, 0.3, 1.0, 3.0):
        found = final(QFFL(q), model, replace(federation, examples=examples), calm, certain)
        slow.assert_close(found, certain, relative=0)


def test_weights_stay_where_every_h_is_too_small_for_their_type(model, federation, weights, plan):
    """A loss of about 0.55 to the power of 2000 is no float32 above 0."""
    examples = replace(federation.examples, labels=federation.examples.labels * 0)
    sure = {**tree.scale(weights, 0), "fc.bias": torch.tensor([1.0, 0.0, 0.0])}
    sure = {name: tensor.float() for name, tensor in sure.items()}
    with LocalEngine() as engine:
        cohort = engine.cohort(model, replace(federation, examples=examples), plan, 1, range(6))
        state, info = QFFL(2000.0).step(State(sure), cohort)
    assert info == {"h": 0.0} and tree.fingerprint(state.weights) == tree.fingerprint(sure)


def test_reads_every_training_example_once_more(model, federation, weights, plan):
    with LocalEngine() as engine:
        costs = [next(train(method, model, federation, plan, weights, engine)).cost for method in (QFFL(), FedAvg())]
    drawn = sum(len(federation.positions("train", k)) for k in slow.cohort(federation, plan, 1))
    assert costs[0].examples == costs[1].examples + drawn
    assert costs[0].bytes_up == costs[1].bytes_up + 8 * plan.cohort
    assert (costs[0].exchanges, costs[0].bytes_down) == (costs[1].exchanges, costs[1].bytes_down)
