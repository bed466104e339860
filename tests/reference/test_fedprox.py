"""FedProx against a literal loop, and its limits."""

from __future__ import annotations

from dataclasses import replace

from fedstart import tree
from fedstart.algorithms.fedavg import FedAvg
from fedstart.algorithms.fedprox import FedProx
from reference import slow
from reference.engine import final


def reference(model, federation, plan, weights, mu):
    for t in range(1, plan.rounds + 1):
        members = slow.cohort(federation, plan, t)
        n = sum(len(federation.positions("train", k)) for k in members)
        trained = {}
        for k in members:

            def proximal(w, server=weights):
                return {name: mu * (w[name] - server[name]) for name in w}

            positions = federation.positions("train", k)
            trained[k] = slow.local_training(model, federation, plan, t, k, weights, positions, proximal)
        share = {k: len(federation.positions("train", k)) / n for k in members}
        weights = {name: sum(share[k] * trained[k][name] for k in members) for name in weights}
    return weights


def test_equals_the_literal_loop(model, federation, weights, plan):
    expected = reference(model, federation, plan, weights, mu=0.7)
    slow.assert_close(final(FedProx(0.7), model, federation, plan, weights), expected)


def test_mu_zero_is_fedavg(model, federation, weights, plan):
    left, right = (final(algorithm, model, federation, plan, weights) for algorithm in (FedProx(0.0), FedAvg()))
    assert tree.fingerprint(left) == tree.fingerprint(right)


def test_a_larger_mu_moves_less(model, federation, weights, plan):
    gentle = replace(plan, lr=0.01, clip=None, momentum=0, weight_decay=0, local_epochs=20)
    moved = [
        tree.norm(tree.subtract(final(FedProx(mu), model, federation, gentle, weights), weights)) for mu in (0, 1, 50)
    ]
    assert moved[0] > moved[1] > moved[2]
