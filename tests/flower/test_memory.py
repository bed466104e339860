"""What clients remember on their nodes: exactly what counted, whatever is asked twice, lost, or started again."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

flwr = pytest.importorskip("flwr", reason="needs the extra fedstart[flower]")

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict  # noqa: E402
from grids import CLIENTS, HOSTILE, OTHERS, QUICK, make_grid, node, start  # noqa: E402
from hostile import put  # noqa: E402

from fedstart import tree  # noqa: E402
from fedstart.algorithms.fedavg import FedAvg  # noqa: E402
from fedstart.algorithms.scaffold import Scaffold  # noqa: E402
from fedstart.engines import memory, wire  # noqa: E402
from fedstart.engines import node as engine_node  # noqa: E402
from fedstart.engines.flower import FlowerEngine, Nodes  # noqa: E402
from fedstart.engines.grid import InProcessGrid  # noqa: E402
from fedstart.engines.local import LocalEngine  # noqa: E402
from fedstart.models import Model, load_architecture  # noqa: E402
from fedstart.training import train  # noqa: E402
from fedstart.types import State, Weights  # noqa: E402


@pytest.fixture
def plan(plan):
    return replace(plan, rounds=4, cohort=None)


def wanted_rounds(model, federation, plan, weights, cohorts):
    """SCAFFOLD on the local engine with these clients in each round."""
    state, memories, states = State(weights), {}, []
    with LocalEngine(1) as engine:
        for number, clients in enumerate(cohorts, 1):
            cohort = engine.cohort(model, federation, plan, number, clients, memories)
            state, _ = Scaffold().step(state, cohort)
            memories = cohort.memories
            states.append(tree.fingerprint(state.weights))
    return states


@pytest.mark.parametrize("folder", [False, True], ids=["context", "folder"])
def test_a_round_asked_twice_recalls_the_same(folder, model, federation, plan, weights, tmp_path):
    grid = make_grid(federation, **({"memory": str(tmp_path)} if folder else {}))
    nodes, engine = start(grid)
    rounds = list(train(Scaffold(), model, nodes, plan, weights, engine))
    for after in (rounds[2], rounds[2]):
        *_, again = train(Scaffold(), model, nodes, plan, weights, engine, after)
        assert tree.fingerprint(again.state.weights) == tree.fingerprint(rounds[-1].state.weights)
        assert tree.fingerprint(again.state.memory["control"]) == tree.fingerprint(rounds[-1].state.memory["control"])


@pytest.mark.parametrize("lost", ["refused", "silence"])
def test_what_was_remembered_in_a_round_that_did_not_count_is_forgotten(lost, model, federation, plan, weights):
    def change(reply, message, context):
        if message.metadata.group_id != "2":
            return reply
        return put(float("nan"))(reply, message, context) if lost == "refused" else None

    nodes, engine = start(make_grid(federation, change))
    rounds = list(train(Scaffold(), model, nodes, plan, weights, engine))
    everybody = tuple(range(CLIENTS))
    wanted = wanted_rounds(model, federation, plan, weights, [everybody, OTHERS, everybody, everybody])
    assert [tree.fingerprint(after.state.weights) for after in rounds] == wanted
    assert [set(after.missing) for after in rounds] == [set(), {HOSTILE}, set(), set()]


def test_a_node_started_anew_without_a_folder_says_so_and_is_left_out(model, federation, plan, weights):
    grid = make_grid(federation)
    nodes, engine = start(grid)
    rounds = train(Scaffold(), model, nodes, plan, weights, engine)
    next(rounds), next(rounds)
    grid.nodes[5] = grid.nodes.pop(node(HOSTILE))
    third = next(rounds)
    assert set(third.missing) == {HOSTILE}
    assert "client 2 does not know what it remembered in round 2" in third.missing[HOSTILE]
    everybody = tuple(range(CLIENTS))
    wanted = wanted_rounds(model, federation, plan, weights, [everybody, everybody, OTHERS])
    assert tree.fingerprint(third.state.weights) == wanted[-1]


def test_a_node_started_anew_with_a_folder_goes_on(model, federation, plan, weights, tmp_path):
    grid = make_grid(federation, memory=str(tmp_path))
    nodes, engine = start(grid)
    rounds = train(Scaffold(), model, nodes, plan, weights, engine)
    next(rounds), next(rounds)
    grid.nodes[5] = grid.nodes.pop(node(HOSTILE))
    third = next(rounds)
    wanted = wanted_rounds(model, federation, plan, weights, [tuple(range(CLIENTS))] * 3)
    assert not third.missing and tree.fingerprint(third.state.weights) == wanted[-1]


def test_two_trainings_share_a_folder_and_nothing_else(model, federation, plan, weights, tmp_path):
    other = {name: tensor * 0.5 for name, tensor in weights.items()}
    found = []
    for first_weights in (weights, other):
        nodes, engine = start(make_grid(federation, memory=str(tmp_path)))
        found.append(train(Scaffold(), model, nodes, plan, first_weights, engine))
    for _ in range(plan.rounds):
        ends = [next(rounds) for rounds in found]
    for first_weights, end in zip((weights, other), ends, strict=True):
        wanted = wanted_rounds(model, federation, plan, first_weights, [tuple(range(CLIENTS))] * plan.rounds)
        assert tree.fingerprint(end.state.weights) == wanted[-1] and not end.missing
    assert len(list(tmp_path.iterdir())) == 2 * CLIENTS
    assert all(len(list(folder.iterdir())) <= memory.KEPT for folder in tmp_path.iterdir())


def test_a_damaged_memory_costs_its_node(model, federation, plan, weights, tmp_path):
    nodes, engine = start(make_grid(federation, memory=str(tmp_path)))
    rounds = train(Scaffold(), model, nodes, plan, weights, engine)
    next(rounds)
    (file,) = tmp_path.glob(f"client-{HOSTILE}-*/*")
    file.write_bytes(b"nothing")
    after = next(rounds)
    assert set(after.missing) == {HOSTILE} and "damaged" in after.missing[HOSTILE]


def test_methods_that_remember_nothing_leave_nothing(model, federation, plan, weights, tmp_path):
    nodes, engine = start(make_grid(federation, memory=str(tmp_path)))
    *_, after = train(FedAvg(), model, nodes, plan, weights, engine)
    assert not after.memories and not list(tmp_path.iterdir())


def test_versions_forget_what_comes_later_and_what_is_old(tmp_path):
    in_context, in_folder = memory.InContext(RecordDict()), memory.InFolder(tmp_path)
    for number in range(1, 8):
        for versions in (in_context, in_folder):
            versions.save(number, number - 1, {"control": {"a": torch.full((2,), float(number), dtype=torch.bfloat16)}})
    assert [n for n in range(9) if in_context.load(n)] == [6, 7]
    assert [n for n in range(9) if in_folder.load(n)] == [4, 5, 6, 7]
    for versions in (in_context, in_folder):
        versions.save(7, 6, {"control": {"a": torch.zeros(2)}})
        versions.save(6, 4, {"control": {"a": torch.ones(2)}, "": {"b": torch.ones(1)}})
        assert versions.load(7) is None
        assert versions.load(6)["control"]["a"].tolist() == [1, 1] and versions.load(6)[""]["b"].tolist() == [1]
        assert memory.recall(versions, 0, 3) == {}
        with pytest.raises(ValueError, match="client 3 does not know what it remembered in round 7"):
            memory.recall(versions, 7, 3)


@dataclass(frozen=True)
class TwoNotes:
    """Remembers something in each of two exchanges; both names belong to exchanges that nodes serve."""

    def adapt(self, client, weights) -> Weights:
        trained = client.descend(weights)
        client.remember("step", tree.subtract(trained, weights))
        return tree.add(trained, client.recall("step") or {}, 0.1)

    def judge(self, client, weights) -> Weights:
        client.remember("seen", tree.add(weights, client.recall("seen") or {}, 0.5))
        return tree.add(tree.add(weights, client.recall("step") or {}, 0.1), client.recall("seen") or {}, 0.1)

    def step(self, state, cohort):
        return State(cohort.mean(self.judge, cohort.mean(self.adapt, state.weights))), {}


@pytest.mark.parametrize("folder", [False, True], ids=["context", "folder"])
def test_two_exchanges_of_a_round_remember_side_by_side(
    folder, model, federation, plan, weights, tmp_path, monkeypatch
):
    monkeypatch.setattr(engine_node, "_method", lambda name, settings, kind: getattr(TwoNotes(), kind.split(".")[1]))
    nodes, engine = start(make_grid(federation, **({"memory": str(tmp_path)} if folder else {})))
    far = list(train(TwoNotes(), model, nodes, plan, weights, engine))
    with LocalEngine(1) as local:
        near = list(train(TwoNotes(), model, federation, plan, weights, local))
    for left, right in zip(far, near, strict=True):
        assert tree.fingerprint(left.state.weights) == tree.fingerprint(right.state.weights) and not left.missing


def peak(work) -> int:
    """The most memory of this process during `work()`, in bytes above what it had before."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    work()
    return status("VmHWM") - before


def status(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's peak of resident memory")
def test_a_mean_holds_one_reply(plan):
    model = Model(load_architecture("mlp", {"hidden": [1000]}), (2000,), 10)
    weights = model.init(1)
    size = tree.nbytes(weights)

    def echo(message, context):
        if message.metadata.message_type == "query.hello":
            client = context.node_config["partition-id"]
            hello = {"client": client, "sizes": '{"train": 3}', "fingerprint": ""}
            return Message(RecordDict({"hello": ConfigRecord(hello)}), reply_to=message)
        (sent,) = wire.read(message.content)
        content = wire.write({name: tensor + 1 for name, tensor in sent.items()})
        client = context.node_config["partition-id"]
        content["report"] = MetricRecord(
            {"client": client, "examples": 3, "backward": 3, "loss-sum": 1.0, "loss-count": 3}
        )
        return Message(content, reply_to=message)

    def mean(clients):
        grid = InProcessGrid(echo, {k + 10: {"partition-id": k} for k in range(clients)})
        nodes = Nodes("grid", grid, replace(QUICK, nodes=clients))
        cohort = FlowerEngine(grid, QUICK).cohort(model, nodes, plan, 1, nodes.eligible.tolist(), {})
        moved = cohort.mean(FedAvg().learn, weights)
        assert not cohort.missing and torch.allclose(moved["fc.bias"], weights["fc.bias"] + 1)

    mean(2)
    held = peak(lambda: mean(40)) / size
    # About six: those sent, as records and as arrays, one reply in the same forms, the sum; and what malloc keeps.
    assert size > 8e6 and held < 20, f"{held:.1f} models in memory at 40 clients"
