"""CoPreFL against a literal loop written from Algorithm 1, its limits, and central differences of its meta-loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedstart import keys, tree
from fedstart.algorithms.coprefl import CoPreFL
from fedstart.algorithms.fedavg import FedAvg
from fedstart.data.federation import Positions
from fedstart.engines.local import LocalEngine
from fedstart.training import draw, train
from fedstart.types import State
from reference import slow
from reference.engine import final


def with_server(federation):
    """The same clients, and a server with 17 of their examples."""
    return replace(federation, server=np.sort(federation.parts["train"].values)[::4][:17])


def support(federation, plan, t, j, scenario):
    both = slow.support_and_query(federation, plan, t, j)
    return both[0] if scenario == "I" else federation.positions("train", j)


def queries(federation, plan, t, scenario):
    """The query sets: the clients', or m random parts of the server's examples, as keyed draws name them."""
    members = slow.cohort(federation, plan, t)
    if scenario == "I":
        return [slow.support_and_query(federation, plan, t, j)[1] for j in members]
    seed, n, m = keys.number(plan.seed, "server"), round(plan.server_share * len(federation.server)), len(members)
    used = federation.server[keys.generator(seed, "server-share").permutation(len(federation.server))[:n]]
    order = keys.generator(seed, "server-pieces", t).permutation(n)
    return [used[order[n * j // m : n * (j + 1) // m]] for j in range(m)]


def temporary_model(model, federation, plan, t, weights, scenario="I", training=slow.local_training):
    members = slow.cohort(federation, plan, t)
    supports = {j: support(federation, plan, t, j, scenario) for j in members}
    total = sum(len(s) for s in supports.values())
    trained = {j: training(model, federation, plan, t, j, weights, supports[j]) for j in members}
    return {name: sum(len(supports[j]) / total * trained[j][name] for j in members) for name in weights}


def meta_loss(model, federation, plan, t, weights, balance, scenario="I", reduction="sum"):
    """Equations (3) and (4): balance * sum_j L_j + (1 - balance) * population variance of L_j."""
    losses = []
    for positions in queries(federation, plan, t, scenario):
        inputs, labels = federation.batch(positions, torch.float64)
        losses.append(torch.nn.functional.cross_entropy(model.apply(weights, inputs, training=True), labels))
    stacked = torch.stack(losses)
    reduced = stacked.sum() if reduction == "sum" else stacked.mean()
    return balance * reduced + (1 - balance) * ((stacked - stacked.mean()) ** 2).mean()


def reference(model, federation, plan, weights, algorithm):
    a = algorithm
    for t in range(1, plan.rounds + 1):
        temporary = temporary_model(model, federation, plan, t, weights, a.scenario)
        if a.order == 1:
            leaves = {name: tensor.clone().requires_grad_(True) for name, tensor in temporary.items()}
            loss = meta_loss(model, federation, plan, t, leaves, a.balance, a.scenario, a.reduction)
        else:
            leaves = {name: tensor.clone().requires_grad_(True) for name, tensor in weights.items()}
            traced = temporary_model(model, federation, plan, t, leaves, a.scenario, slow.traced_training)
            loss = meta_loss(model, federation, plan, t, traced, a.balance, a.scenario, a.reduction)
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        weights = {name: temporary[name] - a.meta_lr * gradients[name] for name in temporary}
    return weights


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("scenario", ["I", "II"])
def test_every_form_equals_the_literal_loop(model, federation, weights, plan, scenario, reduction, order):
    federation, plan = with_server(federation), replace(plan, rounds=3, server_share=0.8)
    algorithm = CoPreFL(0.3, 0.7, scenario, reduction, order)
    expected = reference(model, federation, plan, weights, algorithm)
    slow.assert_close(final(algorithm, model, federation, plan, weights), expected)


@pytest.mark.parametrize("scenario", ["I", "II"])
def test_second_order_is_the_central_difference_of_the_whole_round(model, federation, weights, plan, scenario):
    """Equation (5): the step from the temporary model, divided by -meta_lr, along random directions."""
    federation, algorithm, h = with_server(federation), CoPreFL(0.3, 0.7, scenario, order=2), 1e-5
    with LocalEngine() as engine:
        cohort = engine.cohort(model, federation, plan, 1, draw(federation, plan, 1))
        state, _ = algorithm.step(State(weights), cohort)
    temporary = temporary_model(model, federation, plan, 1, weights, scenario)
    gradient = tree.scale(tree.subtract(state.weights, temporary), -1 / algorithm.meta_lr)

    def whole_round(w):
        reached = temporary_model(model, federation, plan, 1, w, scenario)
        return float(meta_loss(model, federation, plan, 1, reached, algorithm.balance, scenario))

    draws = torch.Generator().manual_seed(5)
    for _ in range(3):
        v = {n: torch.randn(t.shape, generator=draws, dtype=t.dtype) for n, t in weights.items()}
        slope = (whole_round(tree.add(weights, v, h)) - whole_round(tree.add(weights, v, -h))) / (2 * h)
        assert tree.dot(gradient, v) == pytest.approx(slope, rel=1e-5)


def test_with_balance_one_the_sum_is_the_mean_at_m_times_the_rate(model, federation, weights, plan):
    summed = final(CoPreFL(1.0, 0.1), model, federation, plan, weights)
    mean = final(CoPreFL(1.0, 0.1 * plan.cohort, reduction="mean"), model, federation, plan, weights)
    slow.assert_close(summed, mean)


def test_scenario_two_without_examples_at_the_server_is_an_error(model, federation, weights, plan):
    with pytest.raises(ValueError, match="the server has 0 examples"):
        final(CoPreFL(scenario="II"), model, federation, plan, weights)


def test_the_server_s_work_is_no_exchange_but_counts_its_examples(model, federation, weights, plan):
    federation = with_server(federation)
    with LocalEngine() as engine:
        costs = [next(train(CoPreFL(scenario=s), model, federation, plan, weights, engine)).cost for s in ("I", "II")]
    assert [cost.exchanges for cost in costs] == [2, 1]
    members = slow.cohort(federation, plan, 1)
    trained = plan.local_epochs * sum(len(federation.positions("train", j)) for j in members)
    assert costs[1].examples == costs[1].backward == trained + 17


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_the_ends_of_balance_equal_the_literal_loop(model, federation, weights, plan, balance):
    algorithm = CoPreFL(balance, meta_lr=0.7)
    expected = reference(model, federation, plan, weights, algorithm)
    slow.assert_close(final(algorithm, model, federation, plan, weights), expected)


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
    return np.repeat(np.arange(len(runs)), [len(run) for run in runs]), np.concatenate(runs)
