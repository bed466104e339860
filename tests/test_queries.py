"""Support and query: the four values of `Plan.query_split`, against a literal division and by their properties."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import unequal
from fedstart import keys, tree
from fedstart.algorithms.coprefl import CoPreFL
from fedstart.data.federation import Examples, Federation, Positions
from fedstart.data.partitions import Dirichlet
from fedstart.data.synthetic import Synthetic, synthetic
from fedstart.data.tasks import federate
from fedstart.engines.batches import rows, size, sizes
from fedstart.engines.execution import Execution
from fedstart.engines.local import LocalEngine
from fedstart.training import train
from reference import slow

SPLITS = ("random", "stratified", "time", "classes")
every_split = pytest.mark.parametrize("split", SPLITS)
COUNTS = ((1, 1), (2, 0, 0), (9, 0, 1, 1), (40, 1, 1, 1, 1, 1, 1, 1), (3, 4, 5, 6), (0, 7), (1, 2, 30), (5, 5, 5, 5, 5))
"""Examples of each class, for each client: single classes, rare classes, equal ones."""
EVERYONE = np.arange(len(COUNTS))


def made(counts=COUNTS):
    """Clients with these numbers of each class; the source's labels are 2, 3, ... and the positions in no order."""
    labels = np.concatenate([np.repeat(np.arange(len(held)), held) for held in counts]) + 2
    owners = np.repeat(np.arange(len(counts)), [sum(held) for held in counts])
    order, classes = keys.generator(1, "test-queries").permutation(len(labels)), int(labels.max()) + 1
    examples = Examples("made", torch.zeros(len(labels), 1), labels, tuple(map(str, range(classes))), "made")
    parts = {"train": Positions.from_owners(owners[order], order, len(counts))}
    return Federation("made", examples, parts, tuple(range(2, classes))[::-1])


def plan_of(split, fraction=0.3, **more):
    return replace(unequal.PLAN, query_split=split, query_fraction=fraction, **more)


def divided(federation, plan, number, client):
    """Support and query of one client, as lists of positions."""
    return tuple(
        rows(federation, plan, part, number, np.array([client])).positions[0].tolist() for part in ("support", "query")
    )


def draw(plan, number, client, n, repeat=0):
    return keys.orders(plan.seed, "query", number, np.array([client]), np.array([n]), repeat)[0].tolist()


def literal(federation, plan, number, client):
    """Written for one client with lists, one example after the other."""
    own = federation.positions("train", client).tolist()
    n = len(own)
    q = min(max(1, round(plan.query_fraction * n)), n - 1)
    if plan.query_split == "time":
        return own[: n - q], own[n - q :]
    shuffled = [own[place] for place in draw(plan, number, client, n)]
    held = {}
    for position in shuffled:
        held.setdefault(int(federation.examples.labels[position]), []).append(position)
    names = sorted(held)
    if plan.query_split == "random" or (plan.query_split == "classes" and len(names) == 1):
        return shuffled[q:], shuffled[:q]
    if plan.query_split == "stratified":
        query, full = set(), draw(plan, number, client, n, 1)[0]
        for position in [position for name in names for position in held[name]]:
            full += q
            if full >= n:
                full -= n
                query.add(position)
        return [p for p in shuffled if p not in query], [p for p in shuffled if p in query]
    apart, count = set(), 0
    for place in draw(plan, number, client, len(names), 1)[:-1]:
        if count < q:
            apart.add(names[place])
            count += len(held[names[place]])
    label = federation.examples.labels
    return [p for p in shuffled if label[p] not in apart], [p for p in shuffled if label[p] in apart][:q]


@every_split
@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5, 0.99])
def test_equals_the_literal_division(split, fraction):
    federation, plan = made(), plan_of(split, fraction)
    for number in (1, 2):
        for client in EVERYONE.tolist():
            assert divided(federation, plan, number, client) == literal(federation, plan, number, client)


@every_split
def test_many_clients_at_once_have_what_each_has_alone(split):
    federation, plan = made(), plan_of(split)
    for clients in (EVERYONE, EVERYONE[::-1], np.array([6, 3])):
        for place, part in enumerate(("support", "query")):
            found = rows(federation, plan, part, 4, clients)
            assert (found.sizes == sizes(federation, plan, part, 4, clients)).all()
            assert found.positions.shape == (len(clients), found.sizes.max())
            for row, held, client in zip(*found, clients.tolist(), strict=True):
                alone = divided(federation, plan, 4, client)[place]
                assert row[:held].tolist() == alone and set(row) <= set(federation.positions("train", client))
                assert size(federation, plan, part, 4, client) == len(alone) == held


@every_split
def test_parts_are_disjoint_not_empty_and_of_the_promised_size(split):
    federation = made()
    for fraction in (0.05, 0.2, 0.6, 0.95):
        for number in range(6):
            for client in EVERYONE.tolist():
                support, query = divided(federation, plan_of(split, fraction), number, client)
                own = federation.positions("train", client).tolist()
                wanted = min(max(1, round(fraction * len(own))), len(own) - 1)
                assert support and query and len({*support, *query}) == len(support) + len(query)
                assert {*support, *query} <= set(own)
                assert len(query) == wanted or (split == "classes" and len(query) < wanted)
                assert split == "classes" or len(support) == len(own) - wanted


def test_random_is_what_it_was_before_there_were_others():
    """The literal division of the reference implementation, which knows no other."""
    federation = made()
    for client in EVERYONE.tolist():
        expected = slow.support_and_query(federation, unequal.PLAN, 3, client)
        assert divided(federation, unequal.PLAN, 3, client) == tuple(part.tolist() for part in expected)


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.4, 0.5, 0.8])
def test_stratified_has_of_each_class_its_share_rounded_down_or_up(fraction):
    federation, plan = made(), plan_of("stratified", fraction)
    for number in range(40):
        for client in EVERYONE.tolist():
            query = divided(federation, plan, number, client)[1]
            held = np.bincount(federation.examples.labels[federation.positions("train", client)])
            found = np.bincount(federation.examples.labels[query], minlength=len(held))
            exact = held * (len(query) / held.sum())
            assert (found >= np.floor(exact + 1e-9)).all() and (found <= np.ceil(exact - 1e-9)).all()


def test_stratified_asks_for_every_example_alike_also_for_those_of_rare_classes():
    """Client 3: one class of 40 and seven single examples, each in a fifth of the queries."""
    federation, plan, rounds = made(), plan_of("stratified", 0.2), 2000
    own = federation.positions("train", 3)
    asked = np.zeros(len(federation.examples))
    for number in range(rounds):
        asked[divided(federation, plan, number, 3)[1]] += 1
    chance = round(0.2 * len(own)) / len(own)
    assert np.abs(asked[own] / rounds - chance).max() < 5 * np.sqrt(chance * (1 - chance) / rounds)


def test_time_asks_for_the_last_rows_of_the_source_in_every_round():
    federation = federate(
        synthetic(Synthetic(classes=4, examples=300)),
        classes=range(4),
        partition=Dirichlet(alpha=1.0),
        clients=5,
        seed=3,
        name="timed",
        withheld=0.1,
    )
    for client in range(5):
        support, query = divided(federation, plan_of("time"), 1, client)
        assert max(support) < min(query) and len(query) == round(0.3 * (len(support) + len(query)))
        assert (support, query) == divided(federation, plan_of("time", seed=5), 2, client)


@pytest.mark.parametrize("split", ["random", "stratified", "classes"])
def test_the_others_are_redrawn_by_round_seed_and_client(split):
    federation = made([(6, 6, 6, 6)] * 4)
    own = [federation.positions("train", client).tolist() for client in range(4)]
    draws = {
        tuple(own[client].index(position) for position in divided(federation, plan_of(split, seed=seed), n, client)[1])
        for seed in range(4)
        for n in range(4)
        for client in range(4)
    }
    assert len(draws) == 64


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.6, 0.95])
def test_classes_are_in_one_part_only_and_enough_are_set_apart(fraction):
    federation, plan, label = made(), plan_of("classes", fraction), made().examples.labels
    for number in range(20):
        for client in (0, 2, 3, 4, 6, 7):
            support, query = divided(federation, plan, number, client)
            own = federation.positions("train", client).tolist()
            kept, apart = set(label[support]), set(label[own]) - set(label[support])
            assert kept and set(label[query]) <= apart
            assert sorted(support) == sorted(position for position in own if label[position] in kept)
            wanted = min(max(1, round(fraction * len(own))), len(own) - 1)
            available = sum(label[position] in apart for position in own)
            assert len(query) == min(wanted, available)
            if available < wanted:
                assert len(kept) == 1
            assert available - max(np.bincount(label[own])[list(apart)]) < wanted


def test_every_class_is_asked_for_as_often_as_any_other_of_its_size():
    federation, asked = made([(5, 5, 5, 5)]), np.zeros(4)
    for number in range(1000):
        query = divided(federation, plan_of("classes", 0.25), number, 0)[1]
        (found,) = set(federation.examples.labels[query])
        asked[found - 2] += 1
    assert np.abs(asked / 1000 - 0.25).max() < 0.07


def test_a_client_with_one_class_is_divided_at_random():
    for client in (1, 5):
        for number in range(5):
            found = divided(made(), plan_of("classes"), number, client)
            assert found == divided(made(), plan_of("random"), number, client)


@every_split
def test_parts_that_the_data_has_win(split):
    federation, plan = made(), plan_of(split)
    federation = replace(federation, parts={**federation.parts, "query": federation.parts["train"]})
    for client in EVERYONE.tolist():
        support, query = divided(federation, plan, 1, client)
        assert query == federation.positions("train", client).tolist()
        assert support == divided(made(), plan, 1, client)[0]
        assert size(federation, plan, "query", 1, client) == len(query)


@every_split
@pytest.mark.parametrize("call", [rows, sizes])
@pytest.mark.parametrize("part", ["support", "query"])
def test_clients_with_too_few_examples_are_named(split, call, part):
    federation, plan = made([(2, 2), (1, 0), (0, 0), (3, 1)]), plan_of(split)
    for few, clients in ((1, [0, 1, 3]), (2, [3, 2]), (2, [0, 1, 2])):
        with pytest.raises(ValueError, match=f"made: client {few} has {2 - few} examples, too few .*at least 2"):
            call(federation, plan, part, 1, np.array(clients))
    with pytest.raises(ValueError, match="made: no client 4 "):
        call(federation, plan, part, 1, np.array([0, 4]))


def trained(plan, together=1):
    with LocalEngine(2, Execution(together=together)) as engine:
        run = train(CoPreFL(0.3, meta_lr=0.2), unequal.model(), unequal.federation(), plan, unequal.start(), engine)
        return list(run)


@every_split
def test_coprefl_trains_with_it_singly_and_together(split):
    plan = plan_of(split)
    alone, stacked = trained(plan), trained(plan, 8)
    assert [r.cost for r in alone] == [r.cost for r in stacked] and alone[-1].clients == stacked[-1].clients
    slow.assert_close(stacked[-1].state.weights, alone[-1].state.weights)
    assert stacked[-1].info["meta_loss"] == pytest.approx(alone[-1].info["meta_loss"], rel=1e-9)
    moved = tree.norm(tree.subtract(alone[-1].state.weights, trained(plan_of("random"))[-1].state.weights))
    assert (moved == 0) == (split == "random")


@every_split
def test_coprefl_equals_the_literal_loop(split):
    """Weighted by the sizes of the supports, which with "classes" follow from the labels."""
    plan, federation, model = replace(plan_of(split), rounds=1), unequal.federation(), unequal.model()
    members = slow.cohort(federation, plan, 1)
    parts = {j: [np.array(part) for part in literal(federation, plan, 1, j)] for j in members}
    local = {j: slow.local_training(model, federation, plan, 1, j, unequal.start(), parts[j][0]) for j in members}
    total = sum(len(support) for support, _ in parts.values())
    temporary = {n: sum(len(parts[j][0]) / total * local[j][n] for j in members) for n in unequal.start()}
    judged = [slow.loss_and_gradient(model, federation, temporary, parts[j][1]) for j in members]
    mean = sum(loss for loss, _ in judged) / len(judged)
    factors = [0.3 + 0.7 * 2 / len(judged) * (loss - mean) for loss, _ in judged]
    expected = {
        name: tensor - 0.2 * sum(factor * gradient[name] for factor, (_, gradient) in zip(factors, judged, strict=True))
        for name, tensor in temporary.items()
    }
    slow.assert_close(trained(plan)[-1].state.weights, expected)
