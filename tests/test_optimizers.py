"""Local optimisers against torch's own, and the exact pull-back through each of them against autograd."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from fedstart import tree
from fedstart.algorithms.fedavg import FedAvg
from fedstart.algorithms.scaffold import Scaffold
from fedstart.engines import descent, pullback
from fedstart.engines.client import LocalClient
from fedstart.engines.execution import Execution
from fedstart.engines.local import LocalEngine
from fedstart.engines.replica import Replica
from fedstart.models import Model, load_architecture
from fedstart.training import train
from fedstart.types import Plan
from reference import slow

OPTIMIZERS = {
    "sgd": ({"momentum": 0.0}, lambda w, p: torch.optim.SGD(w, p.lr, weight_decay=p.weight_decay)),
    "momentum": ({"momentum": 0.6}, lambda w, p: torch.optim.SGD(w, p.lr, 0.6, weight_decay=p.weight_decay)),
    "nesterov": (
        {"optimizer": "nesterov", "momentum": 0.6},
        lambda w, p: torch.optim.SGD(w, p.lr, 0.6, weight_decay=p.weight_decay, nesterov=True),
    ),
    "adam": (
        {"optimizer": "adam", "momentum": 0.0},
        lambda w, p: torch.optim.Adam(w, p.lr, weight_decay=p.weight_decay),
    ),
}
every_optimizer = pytest.mark.parametrize("name", list(OPTIMIZERS))


def a_client(model, federation, plan, execution=None):
    replica = Replica(model, torch.float64, execution or Execution())
    return LocalClient(2, federation, plan, 1, replica)


def by_torch(model, federation, plan, weights, optimizer):
    positions = federation.positions("train", 2)
    leaves = {name: tensor.clone().requires_grad_(True) for name, tensor in weights.items()}
    stepper = optimizer(list(leaves.values()), plan)
    for batch in slow.minibatches(plan, 1, 2, len(positions)):
        stepper.zero_grad()
        inputs, labels = federation.batch(positions[batch], torch.float64)
        cross_entropy(model.apply(leaves, inputs, training=True), labels).backward()
        stepper.step()
    return {name: tensor.detach() for name, tensor in leaves.items()}


@every_optimizer
def test_local_steps_are_those_of_torch(model, federation, weights, plan, name):
    settings, optimizer = OPTIMIZERS[name]
    plan = replace(plan, clip=None, **settings)
    expected = by_torch(model, federation, plan, weights, optimizer)
    slow.assert_close(a_client(model, federation, plan).descend(weights), expected)


@every_optimizer
def test_stacked_clients_take_the_same_steps(model, federation, weights, plan, name):
    plan = replace(plan, **OPTIMIZERS[name][0])
    with LocalEngine() as singly, LocalEngine(execution=Execution(together=3)) as stacked:
        ends = [list(train(FedAvg(), model, federation, plan, weights, e))[-1] for e in (singly, stacked)]
    slow.assert_close(ends[0].state.weights, ends[1].state.weights)
    assert ends[0].cost == ends[1].cost


@every_optimizer
@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("kept", [1 << 30, 4000, 0])
def test_pull_back_is_the_derivative_along_any_direction(
    model, federation, weights, plan, name, clip, kept, monkeypatch
):
    """However few states are kept: all, some, or the fewest."""
    monkeypatch.setattr(pullback, "KEPT_BYTES", kept)
    plan = replace(plan, clip=clip, **OPTIMIZERS[name][0])
    # Another draw may meet a corner of ReLU within h, where training itself jumps.
    draws, client, h = torch.Generator().manual_seed(3), a_client(model, federation, plan), 1e-6
    cotangent, v = (
        {n: torch.randn(t.shape, generator=draws, dtype=t.dtype) for n, t in weights.items()} for _ in range(2)
    )
    found = client.pullback(weights, cotangent)
    ahead, behind = (tree.dot(cotangent, client.descend(tree.add(weights, v, sign * h))) for sign in (1, -1))
    assert tree.dot(found, v) == pytest.approx((ahead - behind) / (2 * h), rel=1e-5)


def test_pull_back_keeps_about_the_square_root_of_the_states(model, federation, weights, plan, monkeypatch):
    monkeypatch.setattr(pullback, "KEPT_BYTES", 0)
    client = a_client(model, federation, replace(plan, local_epochs=None, local_steps=100))
    client.replica.load(weights)
    path = pullback.Path(client.replica, client.plan, client._minibatches("train"), client._slope, client._pass)
    assert path._stride([]) == 10


def test_pull_back_of_nothing_is_nothing_and_costs_three_passes_back(model, federation, weights, plan):
    client = a_client(model, federation, plan)
    found = client.pullback(weights, tree.zeros_like(weights))
    assert tree.norm(found) == 0
    # 23 examples in minibatches of 4; the last step is not taken again.
    walked = plan.local_epochs * client.size() - 3
    assert (client.examples, client.backward) == (walked + walked + 3, walked + 3 * (walked + 3))


@pytest.mark.parametrize("linear", ["torch", "onednn"])
def test_pull_back_through_convolutions_in_float32(linear):
    """Images, pooling, ReLU, group normalisation; oneDNN's products stand aside."""
    rng = np.random.default_rng(0)
    from fedstart.data.federation import Examples, Federation, Positions

    images = torch.from_numpy(rng.integers(0, 256, (12, 3, 8, 8), dtype=np.uint8))
    examples = Examples("images", images, rng.integers(0, 3, 12), ("a", "b", "c"), "pictures", (0.5,) * 3, (0.25,) * 3)
    federation = Federation("images", examples, {"train": Positions(np.array([0, 12]), np.arange(12))}, (0, 1, 2))
    model = Model(load_architecture("cnn3x3", {"channels": [4, 6], "hidden": 8}), (3, 8, 8), 3)
    plan = Plan(rounds=1, local_epochs=3, batch_size=5, lr=0.1, momentum=0.5)
    weights, cotangent = model.init(1), model.init(2)
    single = LocalClient(0, federation, plan, 1, Replica(model, torch.float32, Execution(linear=linear)))
    double = LocalClient(0, federation, plan, 1, Replica(model, torch.float64))
    wide = [{name: tensor.double() for name, tensor in each.items()} for each in (weights, cotangent)]
    expected, found = double.pullback(*wide), single.pullback(weights, cotangent)
    error = tree.subtract({name: tensor.double() for name, tensor in found.items()}, expected)
    assert tree.norm(error) < 1e-4 * tree.norm(expected)


def test_a_method_that_needs_a_rate_refuses_adam(model, federation, weights, plan):
    plan = replace(plan, optimizer="adam", momentum=0.0)
    with LocalEngine() as engine, pytest.raises(ValueError, match="no total rate"):
        next(train(Scaffold(), model, federation, plan, weights, engine))


@pytest.mark.parametrize("settings", [{"optimizer": "adam", "momentum": 0.5}, {"optimizer": "nesterov"}])
def test_settings_that_contradict_each_other_are_refused(settings):
    with pytest.raises(ValueError, match="momentum"):
        Plan(local_steps=1, **settings)


def test_adam_does_not_divide_by_zero_where_no_gradient_ever_was():
    weight = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    plan = Plan(local_steps=1, optimizer="adam", lr=0.1)
    moved, _ = descent.stepped([weight], [weight * 0], descent.begin([weight], plan), plan, 1)
    (slope,) = torch.autograd.grad(moved[0].sum(), weight)
    assert torch.equal(slope, torch.ones(2, dtype=torch.float64))
