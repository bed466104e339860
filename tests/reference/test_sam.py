"""FedSAM against a literal loop of SAM's Algorithm 1 on clients, and its limit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedstart.algorithms.fedavg import FedAvg
from fedstart.algorithms.sam import SAM
from reference import slow
from reference.engine import last_round


def reference(model, federation, plan, w, rho):
    for t in range(1, plan.rounds + 1):
        members = slow.cohort(federation, plan, t)
        trained, total = {}, sum(len(federation.positions("train", k)) for k in members)
        for k in members:
            positions = federation.positions("train", k)
            batches = slow.minibatches(plan, t, k, len(positions))

            def uphill(step, here, positions=positions, batches=batches):
                _, g = slow.loss_and_gradient(model, federation, here, positions[batches[step]])
                length = sum(float((tensor**2).sum()) for tensor in g.values()) ** 0.5
                above = {name: here[name] + rho * g[name] / (length + 1e-12) for name in here}
                return slow.loss_and_gradient(model, federation, above, positions[batches[step]])[1]

            trained[k] = slow.local_training(model, federation, plan, t, k, w, positions, instead=uphill)
        w = {name: sum(len(federation.positions("train", k)) / total * trained[k][name] for k in members) for name in w}
    return w


def test_equals_the_literal_loop(model, federation, weights, plan):
    plan = replace(plan, rounds=3)
    expected = reference(model, federation, plan, weights, rho=0.4)
    slow.assert_close(last_round(SAM(rho=0.4), model, federation, plan, weights).state.weights, expected)


def test_rho_zero_is_fedavg_bit_for_bit(model, federation, weights, plan):
    flat, plain = (last_round(method, model, federation, plan, weights) for method in (SAM(rho=0.0), FedAvg()))
    assert all((flat.state.weights[name] == plain.state.weights[name]).all() for name in weights)
    assert flat.loss == plain.loss
    assert flat.cost.backward == 2 * plain.cost.backward


def test_a_larger_rho_ends_elsewhere(model, federation, weights, plan):
    small, large = (last_round(SAM(rho=rho), model, federation, plan, weights).state.weights for rho in (0.1, 0.5))
    with pytest.raises(AssertionError):
        slow.assert_close(small, large, relative=1e-3)
