"""The Flower engine, on a node: calls an algorithm's client methods on this node's own examples.

The same local engine that simulates many clients runs the one client of this node, on one thread, so that the
results have the same bits.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedstart import names
from fedstart.data.federation import Federation
from fedstart.engines import wire
from fedstart.engines.local import LocalEngine
from fedstart.models import Model, load_architecture
from fedstart.types import Plan, Weights


class Site(NamedTuple):
    """What a node has: its identity, and a federation in which that client's examples are its own."""

    identity: int
    federation: Federation


def serve(app: ClientApp, site: Callable[[Context], Site]) -> None:
    """Registers on `app` every exchange that fedstart's algorithms know: `train.<method>`, hello and scores.

    `site` gives the node's data from its configuration; it is asked at every message, so it should remember.
    """

    def introduce(message: Message, context: Context) -> Message:
        return _introduce(message, site(context))

    def call(message: Message, context: Context) -> Message:
        return _call(message, context, site(context))

    def score(message: Message, context: Context) -> Message:
        return _score(message, site(context))

    app.query("hello")(introduce)
    app.evaluate("scores")(score)
    for name in sorted({name for cls in names.discover("fedstart.algorithms").values() for name in exchanges(cls)}):
        app.train(name)(call)


def exchanges(algorithm: type) -> list[str]:
    """The methods of an algorithm that run on clients, in the order they are written."""
    codes = {name: getattr(value, "__code__", None) for name, value in vars(algorithm).items()}
    return [name for name, code in codes.items() if code is not None and code.co_varnames[1:2] == ("client",)]


def _introduce(message: Message, site: Site) -> Message:
    sizes = {part: len(positions[site.identity]) for part, positions in site.federation.parts.items()}
    hello = ConfigRecord({"client": site.identity, "sizes": json.dumps(sizes)})
    return Message(RecordDict({"hello": hello}), reply_to=message)


def _call(message: Message, context: Context, site: Site) -> Message:
    task = message.content.config_records["task"]
    method = _method(str(task["algorithm"]), str(task["settings"]), message.metadata.message_type)
    model, plan, number = _model(str(task["model"])), Plan(**json.loads(str(task["plan"]))), int(str(task["round"]))
    broadcast = wire.read(message.content)
    memory = _remembered(context.state, number)
    with LocalEngine(1) as engine:
        cohort = engine.cohort(model, site.federation, plan, number, (site.identity,), {site.identity: memory})
        (result,) = cohort.map(method, *broadcast)
    if cohort.memories[site.identity] is not memory:
        _keep(context.state, number, cohort.memories[site.identity])
    content = wire.write(result)
    content["report"] = MetricRecord(
        {"examples": cohort.cost.examples, "loss-sum": cohort.loss_sum, "loss-count": cohort.loss_count}
    )
    return Message(content, reply_to=message)


def _score(message: Message, site: Site) -> Message:
    weights, part = wire.read(message.content)
    model = _model(str(message.content.config_records["task"]["model"]))
    with LocalEngine(1) as engine:
        counts = engine.evaluate(model, site.federation, weights, part)
    correct, total, loss = (values[site.identity].item() for values in counts)
    scores = MetricRecord({"correct": correct, "total": total, "loss": loss})
    return Message(RecordDict({"scores": scores}), reply_to=message)


@functools.lru_cache(maxsize=4)
def _model(described: str) -> Model:
    values = json.loads(described)
    architecture = load_architecture(values["name"], values["settings"])
    return Model(architecture, tuple(values["shape"]), values["classes"])


def _method(algorithm: str, settings: str, message_type: str) -> Callable[..., Any]:
    cls = names.find("method", algorithm, names.discover("fedstart.algorithms"))
    action = message_type.partition(".")[2]
    if action not in exchanges(cls):
        raise ValueError(f"{algorithm} has no exchange {action!r} (allowed: {', '.join(exchanges(cls))})")
    return getattr(names.build(cls, json.loads(settings), algorithm), action)


def _remembered(state: RecordDict, number: int) -> dict[str, Weights]:
    """What this client remembered before round `number`: a round that is asked for again recalls the same."""
    return _load(state, "memory" if _written(state) < number else "before")


def _keep(state: RecordDict, number: int, memory: Mapping[str, Weights]) -> None:
    """Keeps what the client remembers, and beside it what it remembered before this round."""
    if _written(state) < number:
        _store(state, "before", _load(state, "memory"))
    _store(state, "memory", {**_load(state, "memory"), **memory})
    state["memory-round"] = ConfigRecord({"number": number})


def _written(state: RecordDict) -> int:
    return int(str(state.config_records["memory-round"]["number"])) if "memory-round" in state else 0


def _load(state: RecordDict, place: str) -> dict[str, Weights]:
    if f"{place}-form" not in state:
        return {}
    stored = RecordDict({"arrays": state[f"{place}-arrays"], "form": state[f"{place}-form"]})
    memory: dict[str, Weights] = {}
    for path, tensor in wire.read(stored).items():
        key, _, name = path.partition("/")
        memory.setdefault(key, {})[name] = tensor
    return memory


def _store(state: RecordDict, place: str, memory: Mapping[str, Weights]) -> None:
    content = wire.write({f"{key}/{name}": t for key, tree in memory.items() for name, t in tree.items()})
    state[f"{place}-arrays"], state[f"{place}-form"] = content["arrays"], content["form"]


assert torch
