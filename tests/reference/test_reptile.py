"""Batched Reptile against a literal loop, and its limits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedstart import tree
from fedstart.algorithms.fedavg import FedAvg
from fedstart.algorithms.reptile import Reptile
from fedstart.data.federation import Positions
from fedstart.engines.local import LocalEngine
from fedstart.training import train
from reference import slow
from reference.engine import final


def reference(model, federation, plan, phi, step_size):
    for t in range(1, plan.rounds + 1):
        tasks = slow.cohort(federation, plan, t)
        w = [slow.local_training(model, federation, plan, t, k, phi, federation.positions("train", k)) for k in tasks]
        phi = {name: phi[name] + step_size / len(w) * sum(one[name] - phi[name] for one in w) for name in phi}
    return phi


def test_equals_the_literal_loop(model, federation, weights, plan):
    longer = replace(plan, rounds=4)
    for step_size in (0.3, 1.4):
        expected = reference(model, federation, longer, weights, step_size)
        slow.assert_close(final(Reptile(step_size), model, federation, longer, weights), expected)


def test_a_whole_step_is_the_plain_mean_of_the_trained_weights(model, federation, weights, plan):
    with LocalEngine() as engine:
        first = next(train(Reptile(1.0), model, federation, plan, weights, engine))
        cohort = engine.cohort(model, federation, plan, 1, first.clients)
        mean = cohort.mean(FedAvg().learn, weights, weight=None)
    assert tree.fingerprint(first.state.weights) == tree.fingerprint(mean)


def test_a_whole_step_is_fedavg_where_clients_are_of_equal_size(model, federation, weights, plan):
    every = federation.parts["train"].values
    equal = replace(federation, parts={"train": Positions.from_owners(np.repeat(np.arange(6), 13), every, 6)})
    slow.assert_close(
        final(Reptile(1.0), model, equal, plan, weights), final(FedAvg(), model, equal, plan, weights), relative=1e-12
    )
