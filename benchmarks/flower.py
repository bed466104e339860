"""What an exchange costs on Flower: seconds per round and bytes on the wire, with a method that trains nothing.

    python benchmarks/flower.py [--nodes 3 10] [--rounds 4] [--fork]

Seconds: the median round (one exchange of a 5,000-parameter model, all nodes) on the in-process grid, and on a
SuperLink and SuperNodes as processes of this machine (plain HTTP on 127.0.0.1). `--fork` forks the processes that
Flower starts for each message from one that has everything imported, as the deployment tests do: what is left is
polling and HTTP. Bytes: three nodes whose connections go through a counting proxy and a model of 1.1 million
parameters; the difference between a run of one round and of three is two exchanges, to which their share of heartbeats
and polls is added. Beside it `tree.nbytes`, what fedstart reports as cost.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import statistics
import sys
import tempfile
import threading
from pathlib import Path

HERE = Path(__file__).resolve().parent
APP = HERE / "flower_app"
sys.path[:0] = [str(HERE.parent / "tests" / "flower" / "deployment"), str(APP)]

from cluster import Cluster  # noqa: E402
from common import federation, model, rounds  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402

from fedstart import tree  # noqa: E402
from fedstart.engines.grid import InProcessGrid  # noqa: E402
from fedstart.engines.node import Site, serve  # noqa: E402

SMALL, LARGE = 16, 1000


class CountingProxy:
    """Passes TCP connections on to an address, and counts the bytes each way."""

    def __init__(self, target: str) -> None:
        self.up = self.down = 0
        self._target = target
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        host, port = self._target.split(":")
        while True:
            near, _ = self._listener.accept()
            far = socket.create_connection((host, int(port)))
            threading.Thread(target=self._pump, args=(near, far, "up"), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, "down"), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        try:
            while block := source.recv(1 << 16):
                with self._lock:
                    setattr(self, way, getattr(self, way) + len(block))
                sink.sendall(block)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                end.close()


def in_process(nodes: int, number: int) -> list[float]:
    """Seconds of each round on the grid in this process."""
    app, shared = ClientApp(), federation(nodes)
    serve(app, lambda context: Site(int(context.node_config["partition-id"]), shared))
    return rounds(InProcessGrid(app, {7 + k: {"partition-id": k} for k in range(nodes)}), nodes, number, SMALL)


def deployed(cluster: Cluster, number: int, hidden: int, limit: float) -> list[float]:
    """Seconds of each round on a cluster."""
    out = cluster.work / "seconds.json"
    config = {"clients": cluster.nodes, "rounds": number, "hidden": hidden, "out": str(out)}
    ended = cluster.wait_finished(cluster.start_run(APP, config), limit)
    if ended != "finished:completed":
        raise RuntimeError(ended)
    return json.loads(out.read_text())


def show(engine: str, nodes: int, seconds: list[float]) -> None:
    """One line: the median round, and all of them."""
    listed = " ".join(f"{second:.3g}" for second in seconds)
    print(f"{engine:28} {nodes:4} nodes  {statistics.median(seconds):8.3g} s per round  ({listed})", flush=True)


def count_bytes(fork: bool) -> None:
    """Prints bytes per node and exchange through the proxy, and what the tensors alone are."""
    with tempfile.TemporaryDirectory(prefix="fedstart-benchmark-") as work:
        cluster = Cluster(Path(work), 0, secure=False, fork=fork)
        with cluster:
            proxy = CountingProxy(cluster.address)
            cluster.nodes = 3
            for node in range(3):
                cluster.start_node(node, via=proxy.address)
            cluster.wait_online(3)
            passed = []
            for number in (1, 3):
                before = proxy.up, proxy.down
                deployed(cluster, number, LARGE, 300)
                passed.append((proxy.up - before[0], proxy.down - before[1]))
    theory = tree.nbytes(model(LARGE).init(0))
    for way, place in (("up", 0), ("down", 1)):
        measured = (passed[1][place] - passed[0][place]) / (3 * 2)
        print(f"bytes {way:4} per node and exchange: {measured:12,.0f}  tensors {theory:12,}  ", end="")
        print(f"ratio {measured / theory:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="*", default=[3, 10])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--fork", action="store_true")
    given = parser.parse_args()
    # So that a `timeout` around it also ends the cluster's processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    for nodes in given.nodes:
        show("in-process grid", nodes, in_process(nodes, given.rounds))
    for nodes in given.nodes:
        with (
            tempfile.TemporaryDirectory(prefix="fedstart-benchmark-") as work,
            Cluster(Path(work), nodes, secure=False, fork=given.fork) as cluster,
        ):
            name = "deployment, forked" if given.fork else "deployment"
            show(name, nodes, deployed(cluster, given.rounds, SMALL, 100 * given.rounds))
    count_bytes(given.fork)


if __name__ == "__main__":
    main()
