"""Three SuperNodes and a SuperLink as processes of their own: the same bits as the local engine, and nodes that die.

pytest -m deployment tests/flower/deployment
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

flwr = pytest.importorskip("flwr", reason="needs the extra fedstart[flower]")

import processes  # noqa: E402
from certificates import certificates, node_key  # noqa: E402
from cluster import HERE, wait  # noqa: E402

sys.path.insert(0, str(HERE / "app"))

from recipe import MODEL, WEIGHTS, federation, plan  # noqa: E402

from fedstart import names, tree  # noqa: E402
from fedstart.data.federation import Positions  # noqa: E402
from fedstart.engines.local import LocalEngine  # noqa: E402
from fedstart.runs import RunDirectory  # noqa: E402
from fedstart.training import train  # noqa: E402
from fedstart.types import Cost, Round, State  # noqa: E402

pytestmark = pytest.mark.deployment

METHODS = names.discover("fedstart.algorithms")
APP = HERE / "app"


def without(client: int):
    """The federation of the app when one client has no training examples."""
    whole = federation()
    train = whole.parts["train"]
    owners = np.repeat(np.arange(whole.clients), train.sizes)
    kept = Positions.from_owners(np.where(owners == client, -1, owners), train.values, whole.clients)
    return replace(whole, parts={**whole.parts, "train": kept})


def local(algorithm, shared, rounds, weights=WEIGHTS, after=None):
    """The rounds of the local engine."""
    with LocalEngine(2) as engine:
        return list(train(algorithm, MODEL, shared, plan(rounds), weights, engine, after))


def weights_of(out: Path) -> str:
    """Fingerprint of the weights in a run directory's checkpoint."""
    last = RunDirectory(out).load_checkpoint()
    assert last is not None
    return tree.fingerprint(last.state.weights)


@pytest.mark.parametrize("method", ["fedavg", "coprefl", "scaffold"])
def test_same_bits_as_the_local_engine(cluster, tmp_path, measured, method):
    started = time.monotonic()
    run = cluster.start_run(APP, {"method": method, "out": str(tmp_path / "run")})
    assert cluster.wait_finished(run, 240) == "finished:completed"
    rounds = RunDirectory(tmp_path / "run").rounds()
    near = local(METHODS[method](), federation(), 2)
    assert weights_of(tmp_path / "run") == tree.fingerprint(near[-1].state.weights)
    for far, round in zip(rounds, near, strict=True):
        assert far["info"] == round.info and far["clients"] == [0, 1, 2] and "missing" not in far
        assert far["loss"] == pytest.approx(round.loss, rel=1e-12)
        assert Cost(**far["cost"]) == round.cost
    seconds = json.loads((tmp_path / "run" / "timing.json").read_text())["seconds"]
    measured.append(
        f"{method}: {time.monotonic() - started:.0f} s in all, rounds {seconds} s, bit-identical to the local engine"
    )


def test_a_node_killed_in_the_middle_of_a_round_and_back_in_the_third(cluster, tmp_path, measured):
    hold = Hold(tmp_path)
    hold.at("1 train.learn 1")
    hold.at("0 train.learn 2")
    config = {"method": "fedavg", "out": str(tmp_path / "run"), "rounds": 3, "hold": str(tmp_path)}
    run = cluster.start_run(APP, config)
    hold.wait("1 train.learn 1")
    cluster.kill("node-1")
    killed = time.monotonic()
    hold.wait("0 train.learn 2")
    noticed = time.monotonic() - killed
    cluster.start_node(1)
    cluster.wait_online(3)
    hold.release("0 train.learn 2")
    assert cluster.wait_finished(run, 240) == "finished:completed"

    rounds = RunDirectory(tmp_path / "run").rounds()
    assert [line["clients"] for line in rounds] == [[0, 1, 2], [0, 2], [0, 1, 2]]
    assert list(rounds[0]["missing"]) == ["1"] and rounds[0]["missing"]["1"].startswith("learn: ")
    assert all("missing" not in line for line in rounds[1:])
    fedavg = METHODS["fedavg"]()
    alone = local(fedavg, without(1), 2)
    together = local(fedavg, federation(), 3, after=alone[-1])
    assert weights_of(tmp_path / "run") == tree.fingerprint(together[-1].state.weights)
    measured.append(
        f"fedavg, node killed in mid-round: the next round began after {noticed:.0f} s; "
        f"reported as {rounds[0]['missing']['1']!r}; restarted, it took part again in round 3"
    )


def test_a_node_killed_between_the_two_exchanges_of_coprefl(cluster, tmp_path, measured):
    hold = Hold(tmp_path)
    hold.at("2 train.adapt 1")
    before = cluster.log("node-1").count("Sent successfully")
    config = {"method": "coprefl", "out": str(tmp_path / "run"), "hold": str(tmp_path)}
    run = cluster.start_run(APP, config)
    hold.wait("2 train.adapt 1")
    # Its introduction and its answer to `adapt`: client 1 is done with the first exchange, and client 2 holds it open.
    wait("the answer of client 1", 60, lambda: cluster.log("node-1").count("Sent successfully") == before + 2)
    cluster.kill("node-1")
    killed = time.monotonic()
    hold.release("2 train.adapt 1")
    assert cluster.wait_finished(run, 240) == "finished:completed"
    seconds = time.monotonic() - killed
    cluster.start_node(1)
    cluster.wait_online(3)

    rounds = RunDirectory(tmp_path / "run").rounds()
    assert [line["clients"] for line in rounds] == [[0, 1, 2], [0, 2]]
    assert list(rounds[0]["missing"]) == ["1"] and rounds[0]["missing"]["1"].startswith("judge: ")
    coprefl = METHODS["coprefl"]()
    with LocalEngine(2) as engine:
        state, info = coprefl.step(State(WEIGHTS), Leaving(engine, gone=1))
    first = Round(1, state, info, Cost(), (0, 2), 0.0)
    second = local(coprefl, without(1), 2, after=first)
    assert rounds[0]["info"] == info
    assert weights_of(tmp_path / "run") == tree.fingerprint(second[-1].state.weights)
    measured.append(
        f"coprefl, node killed between its exchanges: the run ended {seconds:.0f} s later; "
        f"reported as {rounds[0]['missing']['1']!r}"
    )


def test_a_node_whose_key_is_not_registered_is_refused(cluster):
    node_key(cluster.work, 9)
    cluster.start_node(9)
    refused = cluster.processes["node-9"]
    try:
        assert refused.wait(60) != 0
        assert "Failed to activate SuperNode" in cluster.log("node-9")
    finally:
        cluster.kill("node-9")


def test_a_client_that_does_not_know_the_authority_is_refused(cluster, tmp_path):
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(cluster.address, ssl.create_default_context())
    certificates(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(cluster.address, ssl.create_default_context(cafile=str(tmp_path / "ca.crt")))
    ask(cluster.address, ssl.create_default_context(cafile=str(cluster.work / "ca.crt")))


def test_everything_listens_on_loopback_only(cluster):
    found = processes.listening(processes.owned(cluster.work))
    assert len(found) >= 4, found
    assert all(address.startswith("127.0.0.1:") for address in found), found


def ask(address: str, context: ssl.SSLContext) -> None:
    """One TLS handshake."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), 10) as plain:
        context.wrap_socket(plain, server_hostname=host).close()


@dataclass
class Leaving:
    """Round 1 on the local engine, in which a client takes part in `mean` and not in the `map` that follows."""

    engine: LocalEngine
    gone: int
    clients: tuple[int, ...] = (0, 1, 2)
    population: int = 3

    def mean(self, method, *broadcast, weight="train"):
        answer = self._cohort().mean(method, *broadcast, weight=weight)
        self.clients = tuple(client for client in self.clients if client != self.gone)
        return answer

    def map(self, method, *broadcast):
        return self._cohort().map(method, *broadcast)

    def _cohort(self):
        return self.engine.cohort(MODEL, federation(), plan(2), 1, self.clients)


@dataclass
class Hold:
    """Places at which the app's nodes wait: files `<client> <message type> <round>` (see app/client_app.py)."""

    folder: Path

    def at(self, place: str) -> None:
        (self.folder / place).touch()

    def wait(self, place: str) -> None:
        wait(f"{place!r} to be held", 120, lambda: (self.folder / place).read_text())

    def release(self, place: str) -> None:
        (self.folder / place).unlink()
