"""CoPreFL against a literal loop written from Algorithm 1, its limits, and central differences of its meta-loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedstart import tree
from fedstart.algorithms.coprefl import CoPreFL
from fedstart.algorithms.fedavg import FedAvg
from fedstart.data.federation import Positions
from fedstart.engines.local import LocalEngine
from fedstart.training import draw, train
from fedstart.types import State
from reference import slow


def temporary_model(model, federation, plan, t, weights):
    members = slow.cohort(federation, plan, t)
    supports = {j: slow.support_and_query(federation, plan, t, j)[0] for j in members}
    total = sum(len(s) for s in supports.values())
    trained = {j: slow.local_training(model, federation, plan, t, j, weights, supports[j]) for j in members}
    return {name: sum(len(supports[j]) / total * trained[j][name] for j in members) for name in weights}


def meta_loss(model, federation, plan, t, weights, balance):
    """Equations (3) and (4): balance * sum_j L_j + (1 - balance) * population variance of L_j."""
    losses = []
    for j in slow.cohort(federation, plan, t):
        inputs, labels = federation.batch(slow.support_and_query(federation, plan, t, j)[1], torch.float64)
        losses.append(torch.nn.functional.cross_entropy(model.apply(weights, inputs, training=True), labels))
    stacked = torch.stack(losses)
    return balance * stacked.sum() + (1 - balance) * ((stacked - stacked.mean()) ** 2).mean()


def reference(model, federation, plan, weights, balance, meta_lr):
    for t in range(1, plan.rounds + 1):
        temporary = temporary_model(model, federation, plan, t, weights)
        leaves = {name: tensor.clone().requires_grad_(True) for name, tensor in temporary.items()}
        loss = meta_loss(model, federation, plan, t, leaves, balance)
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        weights = {name: temporary[name] - meta_lr * gradients[name] for name in temporary}
    return weights


def final(algorithm, model, federation, plan, weights):
    with LocalEngine() as engine:
        *_, last = train(algorithm, model, federation, plan, weights, engine)
    return last.state.weights


@pytest.mark.parametrize("balance", [0.0, 0.3, 1.0])
def test_equals_the_literal_loop(model, federation, weights, plan, balance):
    expected = reference(model, federation, plan, weights, balance, meta_lr=0.7)
    slow.assert_close(final(CoPreFL(balance, meta_lr=0.7), model, federation, plan, weights), expected)


def test_meta_step_is_the_central_difference_of_the_meta_loss(model, federation, weights, plan):
    """The step from the temporary model, divided by -meta_lr, along random directions."""
    balance, meta_lr, h = 0.3, 0.7, 1e-5
    temporary = temporary_model(model, federation, plan, 1, weights)
    with LocalEngine() as engine:
        cohort = engine.cohort(model, federation, plan, 1, draw(federation, plan, 1))
        state, _ = CoPreFL(balance, meta_lr).step(State(weights), cohort)
    gradient = tree.scale(tree.subtract(state.weights, temporary), -1 / meta_lr)
    draws = torch.Generator().manual_seed(5)
    for _ in range(5):
        v = {n: torch.randn(t.shape, generator=draws, dtype=t.dtype) for n, t in temporary.items()}
        up = meta_loss(model, federation, plan, 1, tree.add(temporary, v, h), balance)
        down = meta_loss(model, federation, plan, 1, tree.add(temporary, v, -h), balance)
        assert tree.dot(gradient, v) == pytest.approx(float(up - down) / (2 * h), rel=1e-5)


def test_meta_lr_zero_is_fedavg_on_the_support_sets(model, federation, weights, plan):
    once = replace(plan, rounds=1)
    support = Positions.from_owners(
        *_owners([slow.support_and_query(federation, plan, 1, k)[0] for k in range(federation.clients)]),
        federation.clients,
    )
    only_support = replace(federation, parts={"train": support})
    slow.assert_close(
        final(CoPreFL(0.4, meta_lr=0), model, federation, once, weights),
        final(FedAvg(), model, only_support, once, weights),
    )


def test_equal_query_losses_make_no_variance_step(model, federation, weights, plan):
    """balance = 0 and one client: the variance and its gradient are zero."""
    alone = replace(plan, cohort=1, rounds=1)
    slow.assert_close(
        final(CoPreFL(0.0, meta_lr=5.0), model, federation, alone, weights),
        final(CoPreFL(0.0, meta_lr=0.0), model, federation, alone, weights),
    )


def test_info_reports_the_meta_loss_at_the_temporary_model(model, federation, weights, plan):
    with LocalEngine() as engine:
        first = next(train(CoPreFL(0.3, 0.7), model, federation, plan, weights, engine))
    expected = meta_loss(model, federation, plan, 1, temporary_model(model, federation, plan, 1, weights), 0.3)
    assert first.info["meta_loss"] == pytest.approx(float(expected), rel=1e-9)
    assert first.cost.exchanges == 2


def _owners(runs):
    import numpy as np

    return np.repeat(np.arange(len(runs)), [len(run) for run in runs]), np.concatenate(runs)
