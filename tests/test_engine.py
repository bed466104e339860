"""The local engine: local objectives, parts, evaluation, cost, errors, and a million-label federation."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import unequal
from fedstart import tree
from fedstart.algorithms.fedavg import FedAvg
from fedstart.data.federation import Examples, Federation, Positions
from fedstart.engines.batches import size
from fedstart.engines.client import LocalClient
from fedstart.engines.local import LocalEngine
from fedstart.engines.replica import Replica
from fedstart.models import Model, load_architecture
from fedstart.training import draw, train
from fedstart.types import Diverged, Plan


@pytest.fixture
def client(model, federation, plan):
    return LocalClient(2, federation, plan, 1, Replica(model, torch.float64))


def test_local_objective_adds_a_linear_and_a_proximal_term(model, federation, weights, plan):
    """One step on the whole part: w - lr * (g + linear); the proximal term is zero at the start, then pulls back."""
    one = replace(plan, local_epochs=None, local_steps=1, batch_size=100, momentum=0, weight_decay=0, clip=None)
    client = LocalClient(2, federation, one, 1, Replica(model, torch.float64))
    linear = {name: torch.full_like(tensor, 0.3) for name, tensor in weights.items()}
    plain, bent = client.descend(weights), client.descend(weights, linear=linear, proximal=9.0)
    for shift in tree.subtract(bent, plain).values():
        torch.testing.assert_close(shift, torch.full_like(shift, -one.lr * 0.3))
    two = replace(one, local_steps=2)
    client = LocalClient(2, federation, two, 1, Replica(model, torch.float64))
    pulled = tree.norm(tree.subtract(client.descend(weights, proximal=5.0), weights))
    assert pulled < tree.norm(tree.subtract(client.descend(weights), weights))


def test_gradient_is_the_exact_mean_over_the_part(client, model, federation, weights):
    judgement = client.gradient(weights, "train")
    leaves = {name: tensor.clone().requires_grad_(True) for name, tensor in weights.items()}
    inputs, labels = federation.batch(federation.positions("train", 2), torch.float64)
    loss = nn.functional.cross_entropy(model.apply(leaves, inputs), labels)
    loss.backward()
    assert judgement.loss == pytest.approx(loss.item(), rel=1e-12) == client.loss(weights)
    for name, leaf in leaves.items():
        torch.testing.assert_close(judgement.gradient[name], leaf.grad)


def test_support_and_query_are_disjoint_cover_train_and_are_redrawn(federation, model, plan):
    queries = []
    for number in (1, 2):
        client = LocalClient(2, federation, plan, number, Replica(model, torch.float64))
        support, query = client._positions("support"), client._positions("query")
        assert sorted([*support, *query]) == sorted(federation.positions("train", 2))
        assert (len(support), len(query)) == (client.size("support"), client.size("query"))
        queries.append(set(query))
    assert queries[0] != queries[1]


def test_images_with_the_channels_last_in_memory_give_the_same_batch():
    federation = unequal.federation("simple_cnn")
    inputs = federation.examples.inputs
    turned = replace(federation.examples, inputs=inputs.contiguous(memory_format=torch.channels_last))
    assert turned.inputs.stride() != inputs.stride()
    for last in (True, False):
        usual, labels = federation.batch(np.array([3, 0, 7]), channels_last=last)
        found, same = replace(federation, examples=turned).batch(np.array([3, 0, 7]), channels_last=last)
        torch.testing.assert_close(usual, (inputs[[3, 0, 7]].float() / 255 - 0.5) / 0.25)
        assert torch.equal(found, usual) and found.stride() == usual.stride() and torch.equal(same, labels)


def test_a_client_with_one_example_cannot_be_divided(federation, plan):
    lonely = replace(federation, parts={"train": Positions(np.array([0, 1]), np.array([4]))})
    with pytest.raises(ValueError, match="client 0 has 1 examples"):
        size(lonely, plan, "support", 1, 0)


def test_evaluation_counts_each_client_alone(model, federation, weights):
    with LocalEngine(2) as engine:
        counts = engine.evaluate(model, federation, weights, "test")
    for k in range(federation.clients):
        inputs, labels = federation.batch(federation.positions("test", k), torch.float64)
        logits = model.apply(weights, inputs)
        assert counts.correct[k] == (logits.argmax(1) == labels).sum() and counts.total[k] == len(labels)
        expected = nn.functional.cross_entropy(logits, labels, reduction="sum")
        assert counts.loss[k] == pytest.approx(float(expected), rel=1e-12)


def test_full_participation_and_partial_participation(federation, plan):
    assert draw(federation, replace(plan, cohort=None), 1) == tuple(range(6))
    drawn = [draw(federation, plan, number) for number in range(1, 30)]
    assert all(len(set(clients)) == 4 and list(clients) == sorted(clients) for clients in drawn)
    assert len(set(drawn)) > 5 and set().union(*drawn) == set(range(6))
    with pytest.raises(ValueError, match="cohort = 7, but only 6"):
        draw(federation, replace(plan, cohort=7), 1)


def test_diverging_training_names_the_round(model, federation, weights, plan):
    wild = replace(plan, lr=1e200, clip=None, momentum=0)
    with LocalEngine() as engine, pytest.raises(Diverged, match="round 1"):
        list(train(FedAvg(), model, federation, wild, weights, engine))


def test_an_error_on_a_client_ends_the_round_and_leaves_the_engine_usable(model, federation, weights, plan):
    def broken(client, _):
        raise ValueError(f"client {client.identity} fails")

    with LocalEngine(2) as engine:
        cohort = engine.cohort(model, federation, plan, 1, range(6))
        with pytest.raises(ValueError, match="client 0 fails"):
            cohort.map(broken, weights)
        assert engine.evaluate(model, federation, weights).total.sum() > 0


def test_dropout_is_refused(federation, plan):
    class Dropping:
        head = "1"

        def build(self, shape, classes):
            return nn.Sequential(nn.Dropout(0.1), nn.Linear(*shape, classes))

    with pytest.raises(ValueError, match=r"dropout p=0\.1"):
        Replica(Model(Dropping(), (4,), 3), torch.float32)


def test_batchnorm_buffers_travel_and_are_averaged(plan):
    draws = np.random.default_rng(0)
    inputs = torch.from_numpy(draws.integers(0, 256, (24, 3, 8, 8), dtype=np.uint8))
    examples = Examples("images", inputs, draws.integers(0, 2, 24), ("a", "b"), "images", (0.5,) * 3, (0.25,) * 3)
    federation = Federation("images", examples, {"train": Positions(np.array([0, 8, 24]), np.arange(24))}, (0, 1))
    model = Model(load_architecture("resnet18", {"norm": "batch", "width": 8}), (3, 8, 8), 2)
    plan = Plan(rounds=1, local_steps=2, batch_size=8, lr=0.01)
    start = model.init(0)
    with LocalEngine(2) as engine:
        cohort = engine.cohort(model, federation, plan, 1, (0, 1))
        alone = cohort.map(FedAvg().learn, start)
        mean = cohort.mean(FedAvg().learn, start)
    name = "bn1.running_mean"
    torch.testing.assert_close(mean[name], (8 * alone[0][name] + 16 * alone[1][name]) / 24)
    assert not torch.equal(mean[name], start[name])
    assert mean["bn1.num_batches_tracked"] == 2 and mean["bn1.num_batches_tracked"].dtype == torch.int64


def test_a_round_costs_the_cohort_not_the_federation():
    """100,000 clients against 1,000: the same cohort size takes about the same time."""
    model = Model(load_architecture("mlp", {"hidden": [8]}), (4,), 2)
    plan = Plan(rounds=6, cohort=20, local_epochs=1, batch_size=5, lr=0.1)
    seconds = {}
    for clients in (1_000, 100_000):
        count = 10 * clients
        labels = np.arange(count) % 2
        examples = Examples("many", torch.zeros(count, 4), labels, ("a", "b"), "many")
        parts = {"train": Positions(np.arange(0, count + 1, 10), np.arange(count))}
        federation = Federation("many", examples, parts, (0, 1))
        with LocalEngine(1) as engine:
            rounds = train(FedAvg(), model, federation, plan, model.init(0), engine)
            next(rounds)
            times = []
            for _ in range(5):
                start = time.perf_counter()
                next(rounds)
                times.append(time.perf_counter() - start)
        seconds[clients] = min(times)
    assert seconds[100_000] < 3 * seconds[1_000]
