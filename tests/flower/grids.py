"""Six nodes on the in-process grid, one of which may answer as a test likes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedstart.engines.flower import FlowerEngine, Nodes, Patience
from fedstart.engines.grid import InProcessGrid
from fedstart.engines.local import LocalEngine
from fedstart.engines.node import Site, serve
from fedstart.types import State

CLIENTS = 6
QUICK = Patience(nodes=CLIENTS, join_seconds=0.1, reply_seconds=0.1, largest=1000)
HOSTILE = 2
OTHERS = tuple(k for k in range(CLIENTS) if k != HOSTILE)


def node(client: int) -> int:
    """Node ids neither start at 0 nor follow the clients' order."""
    return 900 - 7 * client


def honest(federation, mods=()) -> ClientApp:
    app = ClientApp()
    serve(app, lambda context: Site(int(context.node_config["partition-id"]), federation), mods)
    return app


def make_grid(federation, change=None, when: Callable[[str], bool] = lambda kind: kind.startswith("train."), **config):
    """All nodes are honest, but `change(reply, message, context)` is what the hostile one says to some messages."""
    app = honest(federation)

    def answer(message: Message, context: Context) -> Message | None:
        reply = app(message, context)
        hostile = context.node_config["partition-id"] == HOSTILE and when(message.metadata.message_type)
        return change(reply, message, context) if change and hostile else reply

    return InProcessGrid(answer, {node(k): {"partition-id": k, **config} for k in range(CLIENTS)})


def start(grid, patience=QUICK) -> tuple[Nodes, FlowerEngine]:
    return Nodes("grid", grid, patience), FlowerEngine(grid, patience)


def local_round(method, model, federation, plan, weights, clients, number=1) -> State:
    """One round of the local engine with these clients only."""
    with LocalEngine(1) as engine:
        cohort = engine.cohort(model, federation, plan, number, clients)
        return method.step(State(weights), cohort)[0]


def forged(message: Message, form, arrays: Mapping[str, Array] | None = None, report: Message | None = None) -> Message:
    """A reply with any description and arrays, and an honest report."""
    text = form if isinstance(form, str) else json.dumps(form)
    content = RecordDict({"arrays": ArrayRecord(dict(arrays or {})), "form": ConfigRecord({"json": text})})
    if report is not None:
        content["report"] = report.content["report"]
    return Message(content, reply_to=message)


def edited(reply: Message, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Message:
    """The reply with one array changed."""
    arrays = reply.content.array_records["arrays"]
    arrays[name] = Array(change(arrays[name].numpy().copy()))
    return reply
