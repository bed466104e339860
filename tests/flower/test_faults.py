"""Nodes that lie, fail, die, or come late: none changes the weights, and each is named with the reason."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

flwr = pytest.importorskip("flwr", reason="needs the extra fedstart[flower]")

from flwr.app import Message, MetricRecord, RecordDict  # noqa: E402
from grids import CLIENTS, HOSTILE, OTHERS, QUICK, honest, local_round, make_grid, node, start  # noqa: E402
from hostile import HOSTILE_JUDGEMENTS, HOSTILE_WEIGHTS, put  # noqa: E402

from fedstart import tree  # noqa: E402
from fedstart.algorithms.coprefl import CoPreFL  # noqa: E402
from fedstart.algorithms.fedavg import FedAvg  # noqa: E402
from fedstart.algorithms.scaffold import Scaffold  # noqa: E402
from fedstart.engines.flower import FlowerEngine, Nodes  # noqa: E402
from fedstart.engines.grid import InProcessGrid  # noqa: E402
from fedstart.engines.local import LocalEngine  # noqa: E402
from fedstart.training import train  # noqa: E402
from fedstart.types import State  # noqa: E402


@pytest.mark.parametrize("name", HOSTILE_WEIGHTS)
def test_a_hostile_answer_costs_its_node_and_nothing_else(name, model, federation, plan, weights):
    change, reason = HOSTILE_WEIGHTS[name]
    nodes, engine = start(make_grid(federation, change))
    (after,) = train(FedAvg(), model, nodes, replace(plan, rounds=1, cohort=None), weights, engine)
    wanted = local_round(FedAvg(), model, federation, plan, weights, OTHERS)
    assert tree.fingerprint(after.state.weights) == tree.fingerprint(wanted.weights)
    assert set(after.missing) == {HOSTILE} and reason in after.missing[HOSTILE]
    assert len(after.missing[HOSTILE]) <= 300 and after.missing[HOSTILE].isprintable()
    assert np.isfinite(after.loss)


@pytest.mark.parametrize("name", HOSTILE_JUDGEMENTS)
def test_a_hostile_judgement_costs_its_node_that_exchange(name, model, federation, plan, weights):
    change, reason = HOSTILE_JUDGEMENTS[name]
    nodes, engine = start(make_grid(federation, change, lambda kind: kind == "train.judge"))
    method = CoPreFL(balance=0.3, meta_lr=0.1)
    (after,) = train(method, model, nodes, replace(plan, rounds=1, cohort=None), weights, engine)
    wanted = judged_by_others(method, model, federation, plan, weights)
    assert tree.fingerprint(after.state.weights) == tree.fingerprint(wanted.weights)
    assert set(after.missing) == {HOSTILE} and after.missing[HOSTILE].startswith("judge: ")
    assert reason in after.missing[HOSTILE]


def judged_by_others(method, model, federation, plan, weights) -> State:
    """CoPreFL where everybody adapts and all but the hostile client judge, on the local engine."""
    with LocalEngine(1) as engine:

        class Dropping:
            def mean(self, method, *broadcast, weight):
                return engine.cohort(model, federation, plan, 1, range(CLIENTS)).mean(method, *broadcast, weight=weight)

            def map(self, method, *broadcast):
                return engine.cohort(model, federation, plan, 1, OTHERS).map(method, *broadcast)

        return method.step(State(weights), Dropping())[0]


@pytest.mark.parametrize("method", [CoPreFL(), Scaffold()], ids=["coprefl", "scaffold"])
def test_a_node_that_fails_all_along_was_never_there(method, model, federation, plan, weights):
    plan = replace(plan, rounds=3, cohort=None)
    nodes, engine = start(make_grid(federation, put(np.nan)))
    *_, after = train(method, model, nodes, plan, weights, engine)
    state, memories = State(weights), {}
    with LocalEngine(1) as local:
        for number in range(1, 4):
            cohort = local.cohort(model, federation, plan, number, OTHERS, memories)
            state, _ = method.step(state, cohort)
            memories = cohort.memories
    assert tree.fingerprint(after.state.weights) == tree.fingerprint(state.weights)
    assert HOSTILE in after.missing


def test_silence_costs_no_more_than_the_time_for_replies(model, federation, plan, weights):
    patience = replace(QUICK, reply_seconds=0.5)
    app = honest(federation)

    def answer(message, context):
        hello = message.metadata.message_type == "query.hello"
        return app(message, context) if hello or context.node_config["partition-id"] > 2 else None

    grid = InProcessGrid(answer, {node(k): {"partition-id": k} for k in range(CLIENTS)})
    cohort = FlowerEngine(grid, patience).cohort(model, found(grid), plan, 1, range(CLIENTS), {})
    began = time.monotonic()
    FedAvg().step(State(weights), cohort)
    assert 0.5 <= time.monotonic() - began < 2
    assert set(cohort.missing) == {0, 1, 2} and "no answer in 0.5 seconds" in cohort.missing[0]


def found(grid, patience=QUICK) -> Nodes:
    nodes = Nodes("grid", grid, patience)
    assert len(nodes.eligible)
    return nodes


def test_a_node_dies_between_two_exchanges(model, federation, plan, weights):
    app = honest(federation)

    def answer(message, context):
        reply = app(message, context)
        if message.metadata.message_type == "train.adapt" and context.node_config["partition-id"] == CLIENTS - 1:
            grid.nodes.pop(node(HOSTILE), None)
        return reply

    grid = InProcessGrid(answer, {node(k): {"partition-id": k} for k in range(CLIENTS)})
    method = CoPreFL(balance=0.3, meta_lr=0.1)
    rounds = train(method, model, Nodes("grid", grid, QUICK), replace(plan, cohort=None), weights, engine(grid))
    after = next(rounds)
    wanted = judged_by_others(method, model, federation, plan, weights)
    assert tree.fingerprint(after.state.weights) == tree.fingerprint(wanted.weights)
    assert after.missing == {HOSTILE: after.missing[HOSTILE]} and "could not be sent" in after.missing[HOSTILE]
    after = next(rounds)
    assert after.clients == OTHERS and not after.missing


def engine(grid, patience=QUICK) -> FlowerEngine:
    return FlowerEngine(grid, patience)


def test_a_node_dies_with_the_message_in_its_hands(model, federation, plan, weights):
    app = honest(federation)

    def answer(message, context):
        if message.metadata.message_type == "train.learn":
            grid.nodes.pop(node(HOSTILE), None)
        return app(message, context)

    grid = InProcessGrid(answer, {node(k): {"partition-id": k} for k in range(CLIENTS)})
    rounds = train(FedAvg(), model, Nodes("grid", grid, QUICK), replace(plan, cohort=None), weights, engine(grid))
    after = next(rounds)
    wanted = local_round(FedAvg(), model, federation, plan, weights, OTHERS)
    assert tree.fingerprint(after.state.weights) == tree.fingerprint(wanted.weights)
    assert "no answer" in after.missing[HOSTILE]


def test_a_client_whose_weight_in_the_mean_cannot_be_told_is_left_out(model, federation, plan, weights):
    grid = make_grid(federation)
    nodes = found(grid)
    nodes.members[HOSTILE] = replace(nodes.members[HOSTILE], sizes={"train": 1, "test": 3})
    nodes.members[3] = replace(nodes.members[3], sizes={"train": 0, "other": 99})
    cohort = engine(grid).cohort(model, nodes, plan, 1, range(CLIENTS), {})
    cohort.mean(CoPreFL().adapt, weights, weight="support")
    assert "too few to divide" in cohort.missing[HOSTILE] and 3 in cohort.missing
    cohort = engine(grid).cohort(model, nodes, plan, 1, OTHERS, {})
    cohort.mean(FedAvg().learn, weights)
    assert set(cohort.missing) == {3}


def test_an_answer_that_cannot_be_unpacked_and_a_message_too_large(model, federation, plan, weights):
    class Broken(InProcessGrid):
        hostile, full = "", False

        def push_messages(self, messages):
            messages = list(messages)
            if self.full:
                return []
            identifiers = list(super().push_messages(messages))
            for message, identifier in zip(messages, identifiers, strict=True):
                if message.metadata.dst_node_id == node(HOSTILE) and message.metadata.message_type != "query.hello":
                    self.hostile = identifier
            return identifiers

        def pull_messages(self, message_ids):
            if self.hostile in list(message_ids):
                raise KeyError("no such child")
            return super().pull_messages(message_ids)

    grid = Broken(honest(federation), {node(k): {"partition-id": k} for k in range(CLIENTS)})
    nodes = found(grid)
    cohort = engine(grid).cohort(model, nodes, plan, 1, range(CLIENTS), {})
    mean = cohort.mean(FedAvg().learn, weights)
    wanted = local_round(FedAvg(), model, federation, plan, weights, OTHERS)
    assert tree.fingerprint(mean) == tree.fingerprint(wanted.weights)
    assert "cannot be unpacked (KeyError" in cohort.missing[HOSTILE]
    grid.full = True
    with pytest.raises(ValueError, match="0 clients answered, 3 are needed.*too large"):
        engine(grid).cohort(model, nodes, plan, 1, range(CLIENTS), {}).mean(FedAvg().learn, weights)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ({"correct": 99, "total": 99, "loss": 1.0}, "impossible"),
        ({"correct": -1, "total": 5, "loss": 1.0}, "impossible"),
        ({"correct": 1, "total": 5, "loss": float("nan")}, "test loss is nan"),
        ({"total": 5, "loss": 1.0}, "impossible"),
    ],
)
def test_scores_that_cannot_be_are_left_out_and_reported(scores, reason, model, federation, weights):
    def change(reply, message, context):
        size = reply.content.metric_records["scores"]["total"]
        given = {**scores, "total": size if scores["total"] == 5 else 99}
        return Message(RecordDict({"scores": MetricRecord(given)}), reply_to=message)

    grid = make_grid(federation, change, lambda kind: kind == "evaluate.scores")
    far = engine(grid)
    counts = far.evaluate(model, found(grid), weights)
    assert set(far.unscored) == {HOSTILE} and reason in far.unscored[HOSTILE]
    with LocalEngine(1) as local:
        wanted = local.evaluate(model, federation, weights)
    assert counts.total[HOSTILE] == counts.correct[HOSTILE] == counts.loss[HOSTILE] == 0
    assert all(counts.correct[k] == wanted.correct[k] and counts.total[k] == wanted.total[k] for k in OTHERS)
    grid.nodes = {node(HOSTILE): {"partition-id": HOSTILE}}
    with pytest.raises(ValueError, match=f"no node gave scores on 'test'.*client {HOSTILE}: scores: "):
        far.evaluate(model, found(grid, replace(QUICK, nodes=1)), weights)
