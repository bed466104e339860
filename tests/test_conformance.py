"""What every method must do, found by discovery: deterministic, pure, order-invariant, thread-invariant, resumable."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedstart import names, tree
from fedstart.data.federation import Federation, Positions
from fedstart.engines.local import LocalEngine
from fedstart.training import draw, train
from fedstart.types import State

METHODS = names.discover("fedstart.algorithms")
every_method = pytest.mark.parametrize("method", [pytest.param(cls(), id=name) for name, cls in METHODS.items()])


def rounds(method, model, federation, plan, weights, threads=2, after=None):
    with LocalEngine(threads) as engine:
        return list(train(method, model, federation, plan, weights, engine, after))


def same(left, right):
    return tree.fingerprint(left) == tree.fingerprint(right)


def test_both_methods_of_the_spine_are_found():
    assert {"fedavg", "coprefl"} <= set(METHODS)


@every_method
def test_same_seed_gives_the_same_bits_on_any_number_of_threads(method, model, federation, plan, weights):
    first = rounds(method, model, federation, plan, weights, threads=1)
    second = rounds(method, model, federation, plan, weights, threads=3)
    assert same(first[-1].state.weights, second[-1].state.weights)
    assert [r.info for r in first] == [r.info for r in second]
    assert [r.cost for r in first] == [r.cost for r in second]


@every_method
def test_another_seed_gives_other_weights(method, model, federation, plan, weights):
    first = rounds(method, model, federation, plan, weights)
    second = rounds(method, model, federation, replace(plan, seed=plan.seed + 1), weights)
    assert not same(first[-1].state.weights, second[-1].state.weights)


@every_method
def test_learns(method, model, federation, plan, weights):
    long = replace(plan, rounds=15, cohort=None)
    last = rounds(method, model, federation, long, weights)[-1].state.weights
    with LocalEngine() as engine:
        before, after = (engine.evaluate(model, federation, w, "train") for w in (weights, last))
    assert after.loss.sum() < 0.8 * before.loss.sum()
    assert after.correct.sum() > before.correct.sum()


@every_method
def test_touches_neither_its_inputs_nor_a_global_generator(method, model, federation, plan, weights):
    before, data = tree.fingerprint(weights), federation.examples.inputs.clone()
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    state = State(weights, {})
    with LocalEngine() as engine:
        method.step(state, engine.cohort(model, federation, plan, 1, draw(federation, plan, 1)))
    assert tree.fingerprint(weights) == before and not state.memory
    assert torch.equal(federation.examples.inputs, data)
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


@every_method
def test_the_order_in_which_clients_are_listed_changes_nothing(method, model, federation, plan, weights):
    with LocalEngine() as engine:
        states = [
            method.step(State(weights), engine.cohort(model, federation, plan, 1, order))[0]
            for order in ((0, 2, 3, 5), (5, 3, 0, 2))
        ]
    assert same(states[0].weights, states[1].weights)


@every_method
def test_clients_that_are_not_drawn_change_nothing(method, model, federation, plan, weights):
    """The others have other examples, and one more client has none. How many could be drawn is part of some methods."""
    held = [federation.positions("train", k)[0 if k in (1, 4) else 2 :] for k in range(federation.clients)]
    offsets = np.cumsum([0, *map(len, held), 0])
    padded = replace(federation, parts={"train": Positions(offsets, np.concatenate(held))})
    assert len(padded.eligible) == federation.clients == padded.clients - 1
    with LocalEngine() as engine:
        states = [
            method.step(State(weights), engine.cohort(model, data, plan, 1, (1, 4)))[0] for data in (federation, padded)
        ]
    assert same(states[0].weights, states[1].weights)


@every_method
def test_resumes_behind_any_round_with_the_same_bits(method, model, federation, plan, weights):
    whole = rounds(method, model, federation, replace(plan, rounds=3), weights)
    rest = rounds(method, model, federation, replace(plan, rounds=3), weights, after=whole[0])
    assert [r.number for r in rest] == [2, 3]
    assert same(whole[-1].state.weights, rest[-1].state.weights)
    assert all(same(whole[-1].state.memory[key], rest[-1].state.memory[key]) for key in whole[-1].state.memory)


@every_method
def test_settings_are_frozen_described_and_survive_a_copy(method):
    assert dataclasses.is_dataclass(method) and all(s.description for s in names.describe(type(method)))
    for field in dataclasses.fields(method):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, field.name, None)
    assert pickle.loads(pickle.dumps(method)) == copy.copy(method) == method


@every_method
def test_counts_its_cost(method, model, federation, plan, weights):
    first = rounds(method, model, federation, plan, weights)[0]
    model_bytes = tree.nbytes(weights)
    assert first.cost.exchanges >= 1
    assert first.cost.bytes_down >= len(first.clients) * model_bytes
    assert first.cost.bytes_up >= len(first.clients) * model_bytes
    assert first.cost.examples > 0


@every_method
def test_works_in_float32(method, model, federation: Federation, plan, weights):
    single = {name: tensor.float() for name, tensor in weights.items()}
    double = rounds(method, model, federation, plan, weights)[-1].state.weights
    last = rounds(method, model, federation, plan, single)[-1].state.weights
    for name in weights:
        assert last[name].dtype == torch.float32
        torch.testing.assert_close(last[name].double(), double[name], rtol=1e-3, atol=1e-4)
