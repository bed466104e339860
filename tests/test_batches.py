"""Which examples clients see: the same as a literal loop, for many clients at once as for one alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import unequal
from fedstart import keys
from fedstart.data.federation import Positions
from fedstart.engines.batches import minibatches, rows, size
from reference import slow

EVERYONE = np.arange(len(unequal.SIZES))
WORKS = [{"local_epochs": 3}, {"local_epochs": None, "local_steps": 1}, {"local_epochs": None, "local_steps": 9}]


def literal_minibatches(plan, number, client, examples):
    """Written for one client: shuffle, take what is left, shuffle again."""
    batches, repeat = [], 0
    steps = plan.local_steps or plan.local_epochs * -(-examples // plan.batch_size)
    while len(batches) < steps:
        order = keys.orders(plan.seed, "minibatches", number, np.array([client]), np.array([examples]), repeat)[0]
        batches += [order[i : i + plan.batch_size].tolist() for i in range(0, examples, plan.batch_size)]
        repeat += 1
    return batches[:steps]


def own(found, k):
    return found.positions[k, : found.sizes[k]].tolist()


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("batch_size", [1, 8, 9, 1000])
def test_minibatches_are_the_literal_loop(work, batch_size):
    plan, sizes = replace(unequal.PLAN, batch_size=batch_size, **work), np.array(unequal.SIZES)
    places, counts = minibatches(plan, 4, EVERYONE + 100, sizes)
    assert places.shape[:2] == counts.shape and places.shape[2] <= batch_size
    for k, examples in enumerate(unequal.SIZES):
        expected = literal_minibatches(plan, 4, 100 + k, examples)
        found = [row[:count].tolist() for row, count in zip(places[k], counts[k], strict=True) if count]
        assert found == expected
        assert not counts[k, len(expected) :].any()
    assert places.min() >= 0 and places.max() < max(unequal.SIZES)


def test_every_pass_sees_every_example_once():
    plan = replace(unequal.PLAN, local_epochs=3)
    places, counts = minibatches(plan, 1, EVERYONE, np.array(unequal.SIZES))
    for k, examples in enumerate(unequal.SIZES):
        seen = np.concatenate([row[:count] for row, count in zip(places[k], counts[k], strict=True)])
        for one in seen.reshape(3, examples):
            assert sorted(one) == list(range(examples))


def test_small_clients_are_not_shuffled_for_the_passes_of_large_ones(monkeypatch):
    """A client of one minibatch among clients of fifty would otherwise be shuffled, with all others, fifty times."""
    calls, orders = [], keys.orders
    monkeypatch.setattr(keys, "orders", lambda *given: calls.append(given) or orders(*given))
    minibatches(replace(unequal.PLAN, local_epochs=3), 1, np.arange(2), np.array([400, 8]))
    assert len(calls) == 3


def test_rows_are_the_parts_of_the_clients_in_the_order_asked_for():
    federation = unequal.federation()
    for clients in (EVERYONE, EVERYONE[::-1], np.array([6]), np.array([3, 0, 5])):
        found = rows(federation, unequal.PLAN, "train", 1, clients)
        assert found.positions.shape == (len(clients), max(unequal.SIZES[k] for k in clients))
        for place, k in enumerate(clients):
            assert own(found, place) == federation.positions("train", k).tolist()
        assert set(found.positions.ravel()) <= set(range(len(federation.examples)))


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5, 0.99])
def test_support_and_query_divide_train_as_the_literal_loop_does(fraction):
    federation, plan = unequal.federation(), replace(unequal.PLAN, query_fraction=fraction)
    support, query = (rows(federation, plan, part, 2, EVERYONE) for part in ("support", "query"))
    for k in EVERYONE:
        assert sorted(own(support, k) + own(query, k)) == sorted(federation.positions("train", k))
        assert own(support, k) and own(query, k)
        assert [len(own(support, k)), len(own(query, k))] == [
            size(federation, plan, part, 2, int(k)) for part in ("support", "query")
        ]
        expected = slow.support_and_query(federation, plan, 2, int(k))
        assert (own(support, k), own(query, k)) == (expected[0].tolist(), expected[1].tolist())


@pytest.mark.parametrize("part", ["support", "query"])
def test_shares_of_a_client_do_not_depend_on_the_others(part):
    together = rows(unequal.federation(), unequal.PLAN, part, 1, EVERYONE)
    for k in EVERYONE:
        alone = rows(unequal.federation(), unequal.PLAN, part, 1, np.array([k]))
        assert alone.positions[0].tolist() == own(together, k)
    other = rows(unequal.federation(), unequal.PLAN, part, 2, EVERYONE)
    assert own(other, 2) != own(together, 2)


def test_parts_that_the_data_has_are_not_redrawn():
    federation = unequal.federation()
    federation = replace(federation, parts={**federation.parts, "query": federation.parts["train"]})
    found = rows(federation, unequal.PLAN, "query", 1, EVERYONE)
    assert own(found, 2) == federation.positions("train", 2).tolist()


def test_clients_with_too_few_examples_are_named():
    train = Positions(np.array([0, 4, 5, 5, 9]), np.arange(9))
    federation = replace(unequal.federation(), parts={"train": train})
    with pytest.raises(ValueError, match=r"unequal: client 2 has no examples in 'train'"):
        rows(federation, unequal.PLAN, "train", 1, np.array([0, 2, 3]))
    with pytest.raises(ValueError, match=r"unequal: client 2 has no examples in 'train'"):
        rows(federation, unequal.PLAN, "train", 1, np.array([2]))
    for part in ("support", "query"):
        for few, clients in ((1, [0, 1, 3]), (2, [3, 2])):
            with pytest.raises(ValueError, match=f"client {few} has {2 - few} examples, too few .*at least 2"):
                rows(federation, unequal.PLAN, part, 1, np.array(clients))


@pytest.mark.parametrize(("part", "client", "message"), [("tests", 0, "no part 'tests'"), ("train", 8, "no client 8")])
def test_unknown_parts_and_clients(part, client, message):
    with pytest.raises(ValueError, match=message):
        rows(unequal.federation(), unequal.PLAN, part, 1, np.array([0, client]))
