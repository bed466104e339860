"""The same algorithm objects on Flower's in-process grid and on the local engine: the same bits."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import nn

flwr = pytest.importorskip("flwr", reason="needs the extra fedstart[flower]")

from flwr.app import Message  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402

from fedstart import names, tree  # noqa: E402
from fedstart.engines import wire  # noqa: E402
from fedstart.engines.flower import FlowerEngine, Nodes, Patience  # noqa: E402
from fedstart.engines.grid import InProcessGrid  # noqa: E402
from fedstart.engines.local import LocalEngine  # noqa: E402
from fedstart.engines.node import Site, serve  # noqa: E402
from fedstart.models import Model, load_architecture  # noqa: E402
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


def with_buffers(shape, classes):
    """A model with running statistics and a count of batches."""
    return nn.Sequential(OrderedDict(first=nn.Linear(shape[0], 5), norm=nn.BatchNorm1d(5), out=nn.Linear(5, classes)))


@pytest.fixture
def normalised(federation):
    architecture = load_architecture("custom", {"factory": "test_parity:with_buffers", "head": "out"})
    return Model(architecture, federation.examples.shape, 3)


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_same_bits_with_buffers(method, dtype, normalised, federation, plan):
    weights = {n: t.to(dtype) if t.is_floating_point() else t for n, t in normalised.init(2).items()}
    nodes = Nodes("grid", make_grid(federation), QUICK)
    plan = replace(plan, batch_size=8, local_epochs=None, local_steps=2)
    far = list(train(method, normalised, nodes, plan, weights, FlowerEngine(nodes.grid, QUICK)))
    with LocalEngine(1) as engine:
        near = list(train(method, normalised, federation, plan, weights, engine))
    for left, right in zip(far, near, strict=True):
        assert tree.fingerprint(left.state.weights) == tree.fingerprint(right.state.weights) and not left.missing
        assert left.cost == right.cost
    assert {name: tensor.dtype for name, tensor in far[-1].state.weights.items()} == {
        name: tensor.dtype for name, tensor in weights.items()
    }


def test_a_gradient_is_no_answer_where_weights_are_asked_for(normalised, federation, plan):
    """It has the names and shapes of all that training changes, and none of the buffers."""

    def gradient(app):
        def answer(message, context):
            reply = app(message, context)
            if message.metadata.message_type != "train.learn" or context.node_config["partition-id"] != 0:
                return reply
            content = wire.write({n: t for n, t in wire.read(reply.content).items() if n in normalised.parameters})
            content["report"] = reply.content["report"]
            return Message(content, reply_to=message)

        return answer

    nodes = Nodes("grid", make_grid(federation, gradient), QUICK)
    weights = normalised.init(2)
    plan = replace(plan, rounds=1, cohort=None, batch_size=8, local_epochs=None, local_steps=1)
    method = METHODS["fedavg"]()
    (after,) = train(method, normalised, nodes, plan, weights, FlowerEngine(nodes.grid, QUICK))
    assert after.missing == {0: "learn: tensor 'norm.running_mean' is missing"}
