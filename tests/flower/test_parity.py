"""The same algorithm objects on Flower's in-process grid and on the local engine: the same bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

flwr = pytest.importorskip("flwr", reason="needs the extra fedstart[flower]")

from flwr.clientapp import ClientApp  # noqa: E402

from fedstart import names, tree  # noqa: E402
from fedstart.engines.flower import FlowerEngine, Nodes, Patience  # noqa: E402
from fedstart.engines.grid import InProcessGrid  # noqa: E402
from fedstart.engines.local import LocalEngine  # noqa: E402
from fedstart.engines.node import Site, serve  # noqa: E402
from fedstart.training import train  # noqa: E402

METHODS = names.discover("fedstart.algorithms")
every_method = pytest.mark.parametrize("method", [pytest.param(cls(), id=name) for name, cls in METHODS.items()])
QUICK = Patience(nodes=6, join_seconds=1, reply_seconds=1)


def make_grid(federation, answer=None):
    app = ClientApp()
    serve(app, lambda context: Site(int(context.node_config["partition-id"]), federation))
    # Node ids neither start at 0 nor follow the clients' order.
    return InProcessGrid(answer(app) if answer else app, {900 - 7 * k: {"partition-id": k} for k in range(6)})


@every_method
def test_same_bits_as_the_local_engine(method, model, federation, plan, weights):
    plan = replace(plan, rounds=3)
    nodes = Nodes("grid", make_grid(federation), QUICK)
    far = list(train(method, model, nodes, plan, weights, FlowerEngine(nodes.grid, QUICK)))
    with LocalEngine(2) as engine:
        near = list(train(method, model, federation, plan, weights, engine))
        counts = engine.evaluate(model, federation, near[-1].state.weights)
    for left, right in zip(far, near, strict=True):
        assert tree.fingerprint(left.state.weights) == tree.fingerprint(right.state.weights)
        assert left.info == right.info and left.clients == right.clients and left.cost == right.cost
        assert left.loss == pytest.approx(right.loss, rel=1e-12) and not left.missing
    scored = FlowerEngine(nodes.grid, QUICK).evaluate(model, nodes, far[-1].state.weights)
    assert (scored.correct == counts.correct).all() and (scored.total == counts.total).all()
    assert torch.allclose(torch.tensor(scored.loss), torch.tensor(counts.loss))
