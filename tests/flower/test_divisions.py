"""Support and query on Flower nodes: the same bits as locally; the sizes that only a node knows, and false ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

flwr = pytest.importorskip("flwr", reason="needs the extra fedstart[flower]")

from flwr.app import Message, MetricRecord  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402

from fedstart import tree  # noqa: E402
from fedstart.algorithms.coprefl import CoPreFL  # noqa: E402
from fedstart.algorithms.fedavg import FedAvg  # noqa: E402
from fedstart.engines.flower import FlowerEngine, Nodes, Patience  # noqa: E402
from fedstart.engines.grid import InProcessGrid  # noqa: E402
from fedstart.engines.local import LocalEngine  # noqa: E402
from fedstart.engines.node import Site, serve  # noqa: E402
from fedstart.training import train  # noqa: E402

QUICK = Patience(nodes=6, join_seconds=1, reply_seconds=1)
METHOD = CoPreFL(0.3, meta_lr=0.2)


def far(method, model, federation, plan, weights, changes=None):
    """The rounds on nodes, and what each reply reported; `changes` go into the report of client 2."""
    app, reports = ClientApp(), []
    serve(app, lambda context: Site(int(context.node_config["partition-id"]), federation))

    def answer(message: Message, context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type.startswith("train."):
            report = dict(reply.content.metric_records["report"])
            if changes and report["client"] == 2:
                report = {key: value for key, value in {**report, **changes}.items() if value is not None}
            reports.append(report)
            reply.content["report"] = MetricRecord(report)
        return reply

    grid = InProcessGrid(answer, {900 - 7 * k: {"partition-id": k} for k in range(6)})
    return list(train(method, model, Nodes("grid", grid, QUICK), plan, weights, FlowerEngine(grid, QUICK))), reports


@pytest.mark.parametrize("split", ["random", "stratified", "time", "classes"])
def test_same_bits_as_the_local_engine(split, model, federation, weights, plan):
    plan = replace(plan, query_split=split, cohort=None)
    rounds, reports = far(METHOD, model, federation, plan, weights)
    with LocalEngine(2) as engine:
        near = list(train(METHOD, model, federation, plan, weights, engine))
    for left, right in zip(rounds, near, strict=True):
        assert tree.fingerprint(left.state.weights) == tree.fingerprint(right.state.weights) and not left.missing
        assert left.cost == right.cost and left.info == right.info
    assert len(reports) == 24
    assert sum("size" in report for report in reports) == (12 if split == "classes" else 0)


def test_no_size_leaves_a_node_where_the_server_knows_it(model, federation, weights, plan):
    _, reports = far(FedAvg(), model, federation, replace(plan, query_split="classes"), weights)
    assert not any("size" in report for report in reports)


@pytest.mark.parametrize("size", [0, -3, 23, 10**18, 1.5, [1, 2], None])
def test_a_false_size_leaves_the_client_out(size, model, federation, weights, plan):
    """Client 2 has 23 examples, so at most 22 of them are its support."""
    plan = replace(plan, query_split="classes", cohort=None, rounds=1)
    ((after,), _) = far(METHOD, model, federation, plan, weights, {"size": size})
    assert set(after.missing) == {2} and "in the part are impossible (allowed: 1 to 22)" in after.missing[2]
