"""The Flower engine, on a node: calls an algorithm's client methods on this node's own examples.

The same local engine that simulates many clients runs the one client of this node, on one thread, so that the
results have the same bits.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from fedstart import names
from fedstart.data.federation import Federation
from fedstart.engines import memory, wire
from fedstart.engines.batches import size
from fedstart.engines.exchanges import exchanges
from fedstart.engines.local import LocalEngine
from fedstart.engines.privacy import refuse_unless_means
from fedstart.models import Model, load_architecture
from fedstart.types import Plan

MEMORY = "memory"
"""A node's configuration may name a folder here: what its client remembers then outlives the Flower run."""


class Site(NamedTuple):
    """What a node has: its identity, and a federation in which that client's examples are its own."""

    identity: int
    federation: Federation


def serve(app: ClientApp, site: Callable[[Context], Site], mods: Sequence[Mod] = ()) -> None:
    """Registers on `app` every exchange that fedstart's algorithms know: `train.<method>`, hello and scores.

    `site` gives the node's data from its configuration; it is asked at every message, so it should remember.
    `mods` are Flower's client mods for privacy (`flwr.clientapp.mod`): each answer passes through them, and the node
    refuses algorithms with an exchange that they do not protect. Mods of the app itself would meet every message.
    """

    def introduce(message: Message, context: Context) -> Message:
        return _introduce(message, site(context))

    def call(message: Message, context: Context) -> Message:
        return _call(message, context, site(context))

    def score(message: Message, context: Context) -> Message:
        return _score(message, site(context))

    def guard(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
        _refuse_unprotected(message)
        return call_next(message, context)

    app.query("hello")(introduce)
    app.evaluate("scores")(score)
    for name in sorted({name for cls in names.discover("fedstart.algorithms").values() for name in exchanges(cls)}):
        app.train(name, mods=[guard, *mods] if mods else [])(call)


def _introduce(message: Message, site: Site) -> Message:
    sizes = {part: len(positions[site.identity]) for part, positions in site.federation.parts.items()}
    hello = {"client": site.identity, "sizes": json.dumps(sizes), "fingerprint": site.federation.fingerprint}
    return Message(RecordDict({"hello": ConfigRecord(hello)}), reply_to=message)


def _call(message: Message, context: Context, site: Site) -> Message:
    task = message.content.config_records["form"]
    method = _method(str(task["algorithm"]), str(task["settings"]), message.metadata.message_type)
    model, plan = _model(str(task["model"])), Plan(**json.loads(str(task["plan"])))
    number, counted = int(str(task["round"])), int(str(task["counted"]))
    broadcast = wire.read(message.content)
    versions = _versions(context, site, str(task["run"]))
    held = memory.recall(versions, counted, site.identity)
    with LocalEngine(1) as engine:
        cohort = engine.cohort(model, site.federation, plan, number, (site.identity,), {site.identity: held})
        (result,) = cohort.map(method, *broadcast)
    after = cohort.memories[site.identity]
    if after is not held:
        news = {name: weights for name, weights in after.items() if held.get(name) is not weights}
        versions.save(number, counted, {**held, **(versions.load(number) or {}), **news})
    content = wire.write(result)
    report = {
        "client": site.identity,
        "examples": cohort.cost.examples,
        "backward": cohort.cost.backward,
        "loss-sum": cohort.loss_sum,
        "loss-count": cohort.loss_count,
    }
    if "sized" in task:
        report["size"] = size(site.federation, plan, str(task["sized"]), number, site.identity)
    content["report"] = MetricRecord(report)
    return Message(content, reply_to=message)


def _score(message: Message, site: Site) -> Message:
    weights, part = wire.read(message.content)
    model = _model(str(message.content.config_records["form"]["model"]))
    with LocalEngine(1) as engine:
        counts = engine.evaluate(model, site.federation, weights, part)
    correct, total, loss = (values[site.identity].item() for values in counts)
    scores = MetricRecord({"correct": correct, "total": total, "loss": loss})
    return Message(RecordDict({"scores": scores}), reply_to=message)


def _refuse_unprotected(message: Message) -> None:
    task = message.content.config_records["form"]
    method = _method(str(task["algorithm"]), str(task["settings"]), message.metadata.message_type)
    algorithm = getattr(method, "__self__", None)
    refuse_unless_means(algorithm, exchanges(type(algorithm)), "the privacy mod of this node")
    for name, array in message.content.array_records["arrays"].items():
        if array.dtype not in ("float32", "float64") and array.shape:
            raise ValueError(f"Flower's privacy mods cannot clip {name.partition('/')[2]!r} of {array.dtype}")


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


def _versions(context: Context, site: Site, run: str) -> memory.Versions:
    folder: Mapping[str, Any] = context.node_config
    if MEMORY not in folder:
        return memory.InContext(context.state)
    if run and not run.isalnum():
        raise ValueError(f"{run!r} is no name for a training")
    return memory.InFolder(Path(str(folder[MEMORY])) / f"client-{site.identity}-{run or 'none'}")


assert torch  # the records of flwr convert tensors only once torch is there
