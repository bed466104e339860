"""Nodes that come, go, are refused, or are too few; and runs that go on afterwards."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

flwr = pytest.importorskip("flwr", reason="needs the extra fedstart[flower]")

from flwr.app import ConfigRecord, Error, Message, RecordDict  # noqa: E402
from grids import CLIENTS, HOSTILE, OTHERS, QUICK, honest, local_round, make_grid, node, start  # noqa: E402
from hostile import put  # noqa: E402

from fedstart import tree  # noqa: E402
from fedstart.algorithms.fedavg import FedAvg  # noqa: E402
from fedstart.algorithms.scaffold import Scaffold  # noqa: E402
from fedstart.engines import members  # noqa: E402
from fedstart.engines.flower import FlowerEngine, Nodes  # noqa: E402
from fedstart.engines.grid import InProcessGrid  # noqa: E402
from fedstart.engines.local import LocalEngine  # noqa: E402
from fedstart.runs import RunDirectory, execute  # noqa: E402
from fedstart.training import train  # noqa: E402

HELLO = "query.hello"


def hello(**fields):
    def change(reply, message, context):
        held = reply.content.config_records["hello"]
        return Message(RecordDict({"hello": ConfigRecord({**held, **fields})}), reply_to=message)

    return change


INTRODUCTIONS = {
    "negative identity": (hello(client=-1), "client -1 is not an identity"),
    "huge identity": (hello(client=10**12), "not an identity"),
    "text for identity": (hello(client="2"), "client '2' is not an identity"),
    "true": (hello(client=True), "client True is not an identity"),
    "negative count": (hello(sizes='{"train": -4}'), "sizes {'train': -4} are not counts"),
    "huge count": (
        hello(sizes='{"train": 1000000000000}'),
        "1000000000000 examples in 'train' (allowed: at most 1000)",
    ),
    "count not whole": (hello(sizes='{"train": 4.5}'), "are not counts"),
    "text for count": (hello(sizes='{"train": "4"}'), "are not counts"),
    "sizes a list": (hello(sizes="[4]"), "are not counts"),
    "sizes no json": (hello(sizes="{"), "Expecting"),
    "sizes deep": (hello(sizes="[" * 100000), "not whole (RecursionError"),
    "empty": (lambda reply, message, context: Message(RecordDict(), reply_to=message), "not whole (KeyError"),
    "error": (lambda reply, message, context: Message(Error(2, "no such file"), reply_to=message), "no such file"),
    "silence": (lambda reply, message, context: None, "not said yet who it is"),
    "other's identity": (hello(client=0), "client 0 is there already, from node 900"),
}


@pytest.mark.parametrize("name", INTRODUCTIONS)
def test_a_node_that_introduces_itself_wrongly_takes_no_part(name, model, federation, plan, weights):
    change, reason = INTRODUCTIONS[name]
    nodes, engine = start(make_grid(federation, change, lambda kind: kind == HELLO), replace(QUICK, nodes=5))
    if name == "other's identity":
        # Who comes first has it.
        late = nodes.grid.nodes.pop(node(HOSTILE))
        assert len(nodes.eligible) == 5
        nodes.grid.nodes[node(HOSTILE)] = late
    (after,) = train(FedAvg(), model, nodes, replace(plan, rounds=1, cohort=None), weights, engine)
    assert after.clients == OTHERS and not after.missing
    assert set(nodes.refused) == {node(HOSTILE)} and reason in nodes.refused[node(HOSTILE)]
    wanted = local_round(FedAvg(), model, federation, plan, weights, OTHERS)
    assert tree.fingerprint(after.state.weights) == tree.fingerprint(wanted.weights)


def test_too_few_nodes_is_one_line_that_says_why(federation):
    grid = make_grid(federation, hello(client=-1), lambda kind: kind == HELLO)
    nodes = Nodes("hospital", grid, replace(QUICK, nodes=7))
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"^hospital: 5 of 7 nodes came in 0.1 seconds; node 886: client -1 is not"):
        _ = nodes.eligible
    assert time.monotonic() - began < 1.5


def test_a_silent_node_is_waited_for_once(federation):
    grid = make_grid(federation, lambda reply, message, context: None, lambda kind: kind == HELLO)
    nodes = Nodes("grid", grid, replace(QUICK, nodes=5, join_seconds=5, reply_seconds=0.4))
    times = []
    for _ in range(2):
        began = time.monotonic()
        assert nodes.eligible.tolist() == list(OTHERS)
        times.append(time.monotonic() - began)
    assert times[0] >= 0.4 and times[1] < 0.2


def test_a_node_that_joins_later_is_used(model, federation, plan, weights):
    grid = make_grid(federation)
    late = grid.nodes.pop(node(HOSTILE))
    nodes, engine = start(grid, replace(QUICK, nodes=5))
    rounds = train(FedAvg(), model, nodes, replace(plan, rounds=3, cohort=None), weights, engine)
    first = next(rounds)
    grid.nodes[node(HOSTILE)] = late
    second = next(rounds)
    assert first.clients == OTHERS and second.clients == tuple(range(CLIENTS)) and not second.missing
    wanted = local_round(FedAvg(), model, federation, plan, first.state.weights, range(CLIENTS), 2)
    assert tree.fingerprint(second.state.weights) == tree.fingerprint(wanted.weights)


def test_a_node_started_again_takes_over_when_the_old_one_is_given_up(federation):
    grid = make_grid(federation)
    nodes, _ = start(grid)
    assert len(nodes.eligible) == CLIENTS
    grid.nodes[5] = {"partition-id": HOSTILE}
    assert len(nodes.eligible) == CLIENTS and nodes.members[HOSTILE].node == node(HOSTILE)
    assert nodes.refused == {5: f"client {HOSTILE} is there already, from node {node(HOSTILE)}"}
    del grid.nodes[node(HOSTILE)]
    assert len(nodes.eligible) == CLIENTS and nodes.members[HOSTILE].node == 5 and not nodes.refused


def test_a_node_in_trouble_is_asked_again(federation, monkeypatch):
    trouble, asked = [True], []

    def change(reply, message, context):
        asked.append(1)
        return Message(Error(2, "disk is away"), reply_to=message) if trouble[0] else reply

    nodes, _ = start(make_grid(federation, change, lambda kind: kind == HELLO), replace(QUICK, nodes=5))
    for _ in range(2):
        assert nodes.eligible.tolist() == list(OTHERS)
    assert len(asked) == 1
    trouble[0] = False
    monkeypatch.setattr(members, "AGAIN_SECONDS", -1.0)
    nodes._again = dict.fromkeys(nodes._again, 0.0)
    assert len(nodes.eligible) == CLIENTS and not nodes.refused


def test_later_rounds_go_on_with_the_share_that_is_left_and_no_fewer(model, federation, plan, weights):
    grid = make_grid(federation)
    nodes, engine = start(grid)
    rounds = train(FedAvg(), model, nodes, replace(plan, rounds=3, cohort=None), weights, engine)
    next(rounds)
    for client in (0, 2, 4):
        del grid.nodes[node(client)]
    assert next(rounds).clients == (1, 3, 5)
    del grid.nodes[node(1)]
    with pytest.raises(ValueError, match="grid: 2 of 3 nodes came in 0.1 seconds"):
        next(rounds)


def test_nodes_without_training_examples_are_not_of_the_population(model, federation, plan, weights):
    def empty(reply, message, context):
        return hello(sizes='{"train": 0, "test": 2}')(reply, message, context)

    nodes, engine = start(make_grid(federation, empty, lambda kind: kind == HELLO), replace(QUICK, nodes=5))
    assert nodes.eligible.tolist() == list(OTHERS) and len(nodes.members) == CLIENTS
    assert engine.cohort(model, nodes, plan, 1, OTHERS, {}).population == 5


def test_a_run_with_too_few_answers_keeps_its_last_good_round_and_goes_on(model, federation, plan, weights, tmp_path):
    plan, trouble = replace(plan, rounds=4, cohort=None), [False]

    def answer(message, context):
        if message.metadata.message_type == "evaluate.scores" and context.node_config["partition-id"] == HOSTILE:
            return None
        broken = trouble[0] and message.metadata.message_type.startswith("train.") and message.metadata.group_id == "3"
        reply = app(message, context)
        return (
            put(float("nan"))(reply, message, context) if broken and context.node_config["partition-id"] < 4 else reply
        )

    def run():
        # Each time another Flower run: other node numbers, and nothing in the nodes' contexts.
        numbers.append(len(numbers) * 100)
        config = {k: {"partition-id": k, "memory": str(tmp_path / "memory")} for k in range(CLIENTS)}
        grid = InProcessGrid(answer, {numbers[-1] + node(k): config[k] for k in range(CLIENTS)})
        directory = RunDirectory(tmp_path / "run")
        directory.open({"method": "any"})
        engine = FlowerEngine(grid, QUICK)
        return execute(
            directory, Scaffold(), model, Nodes("grid", grid, QUICK), plan, weights, engine, evaluate="test", every=0
        )

    app, numbers = honest(federation), []
    trouble[0] = True
    with pytest.raises(ValueError, match=r"^round 3: 2 clients answered, 3 are needed \(client 0: learn: .* client 3"):
        run()
    assert RunDirectory(tmp_path / "run").load_checkpoint().number == 2
    trouble[0] = False
    outcome = run()
    with LocalEngine(1) as engine:
        *_, wanted = train(Scaffold(), model, federation, plan, weights, engine)
    assert tree.fingerprint(outcome.weights) == tree.fingerprint(wanted.state.weights)
    lines = RunDirectory(tmp_path / "run").rounds()
    assert [line["unscored"] for line in lines] == [{str(HOSTILE): "scores: no answer in 0.1 seconds"}] * 4
    assert all(line["accuracy"] > 0 and "missing" not in line for line in lines) and len(lines) == 4
