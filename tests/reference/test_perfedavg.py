"""Per-FedAvg against a literal loop of its Algorithm 1, its limits, and the exact Hessian."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedstart.algorithms.fedavg import FedAvg
from fedstart.algorithms.perfedavg import PerFedAvg
from reference import slow
from reference.engine import last_round


def hessian_product(model, federation, w, positions, v):
    """H(w) v on a minibatch, by differentiating twice."""
    leaves = {name: tensor.clone().requires_grad_(True) for name, tensor in w.items()}
    inputs, labels = federation.batch(positions, torch.float64)
    loss = cross_entropy(model.apply(leaves, inputs, training=True), labels)
    g = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    along = sum((one * v[name]).sum() for one, name in zip(g, leaves, strict=True))
    return dict(zip(leaves, torch.autograd.grad(along, list(leaves.values())), strict=True))


def reference(model, federation, plan, w, alpha, curvature):
    """`curvature(w, positions, v)` is what is taken for H v."""
    for t in range(1, plan.rounds + 1):
        members = slow.cohort(federation, plan, t)
        trained, total = {}, sum(len(federation.positions("train", k)) for k in members)
        for k in members:
            positions = federation.positions("train", k)
            inner, outer, third = (
                [positions[b] for b in slow.minibatches(plan, t, k, len(positions), draw)] for draw in (1, 0, 2)
            )

            def meta(step, here, inner=inner, outer=outer, third=third):
                _, g = slow.loss_and_gradient(model, federation, here, inner[step])
                adapted = {name: here[name] - alpha * g[name] for name in here}
                _, v = slow.loss_and_gradient(model, federation, adapted, outer[step])
                h = curvature(here, third[step], v)
                return {name: v[name] - alpha * h[name] for name in here}

            trained[k] = slow.local_training(model, federation, plan, t, k, w, positions, instead=meta)
        w = {name: sum(len(federation.positions("train", k)) / total * trained[k][name] for k in members) for name in w}
    return w


def test_first_order_equals_the_literal_loop(model, federation, weights, plan):
    plan = replace(plan, rounds=3)
    nothing = reference(model, federation, plan, weights, 0.3, lambda w, _, v: {name: 0 * t for name, t in w.items()})
    slow.assert_close(last_round(PerFedAvg(alpha=0.3), model, federation, plan, weights).state.weights, nothing)


def test_hessian_free_equals_the_literal_loop(model, federation, weights, plan):
    delta, plan = 0.02, replace(plan, rounds=3)

    def differences(w, positions, v):
        ahead, behind = (
            slow.loss_and_gradient(model, federation, {n: w[n] + sign * delta * v[n] for n in w}, positions)[1]
            for sign in (1, -1)
        )
        return {name: (ahead[name] - behind[name]) / (2 * delta) for name in w}

    expected = reference(model, federation, plan, weights, 0.3, differences)
    found = last_round(PerFedAvg(alpha=0.3, variant="HF", delta=delta), model, federation, plan, weights)
    slow.assert_close(found.state.weights, expected, relative=1e-8)


def test_hessian_free_approaches_the_exact_hessian(model, federation, weights, plan):
    expected = reference(
        model,
        federation,
        plan,
        weights,
        0.3,
        lambda w, positions, v: hessian_product(model, federation, w, positions, v),
    )
    found = last_round(PerFedAvg(alpha=0.3, variant="HF", delta=1e-4), model, federation, plan, weights)
    slow.assert_close(found.state.weights, expected, relative=1e-4)
    with pytest.raises(AssertionError):
        first_order = last_round(PerFedAvg(alpha=0.3), model, federation, plan, weights)
        slow.assert_close(first_order.state.weights, expected, relative=1e-3)


@pytest.mark.parametrize("variant", ["FO", "HF"])
def test_alpha_zero_is_fedavg(model, federation, weights, plan, variant):
    found = last_round(PerFedAvg(alpha=0.0, variant=variant), model, federation, plan, weights)
    plain = last_round(FedAvg(), model, federation, plan, weights)
    slow.assert_close(found.state.weights, plain.state.weights)
    assert found.cost.backward == {"FO": 2, "HF": 4}[variant] * plain.cost.backward
