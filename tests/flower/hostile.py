"""What a hostile node may answer: each a change of an honest reply, and words that the reason must have."""

from __future__ import annotations

import io

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from grids import edited, forged, node

from fedstart import tree
from fedstart.engines import wire
from fedstart.types import Judgement


def first(reply):
    return next(iter(reply.content.array_records["arrays"]))


def put(value):
    def change(array):
        array.flat[0] = value
        return array

    return lambda reply, message, context: edited(reply, first(reply), change)


def swapped(change):
    return lambda reply, message, context: edited(reply, first(reply), change)


def without_tensor(reply, message, context):
    del reply.content.array_records["arrays"][first(reply)]
    return reply


def value(make):
    """A well-formed reply that holds another value than was asked for, with an honest report."""

    def change(reply, message, context):
        content = wire.write(make(wire.read(reply.content)))
        content["report"] = reply.content["report"]
        return Message(content, reply_to=message)

    return change


def raw(**fields):
    """The first array with some of its stored fields replaced."""

    def change(reply, message, context):
        arrays = reply.content.array_records["arrays"]
        old = arrays[first(reply)]
        kept = {"dtype": old.dtype, "shape": old.shape, "stype": old.stype, "data": old.data}
        made = {name: (new(old.data) if callable(new) else new) for name, new in fields.items()}
        arrays[first(reply)] = Array(**{**kept, **made})
        return reply

    return change


def npy(header: bytes, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def pickled(data):
    stream = io.BytesIO()
    np.save(stream, np.array([{"object": 1}], dtype=object), allow_pickle=True)
    return stream.getvalue()


def form(text):
    return lambda reply, message, context: forged(
        message, text, reply.content.array_records["arrays"], None if text is None else reply
    )


def report(**numbers):
    def change(reply, message, context):
        held = reply.content.metric_records["report"]
        reply.content["report"] = MetricRecord({**held, **numbers})
        return reply

    return change


def no_report(reply, message, context):
    del reply.content["report"]
    return reply


def fails(reply, message, context):
    raise RuntimeError("no\nspace left \x1b[31m" + "x" * 5000)


def other_sender(reply, message, context):
    reply.metadata.__dict__["_src_node_id"] = node(0)
    return reply


def other_question(reply, message, context):
    reply.metadata.__dict__["_reply_to_message_id"] = "another"
    return reply


HOSTILE_WEIGHTS = {
    "nan": (put(np.nan), "NaN"),
    "infinity": (put(-np.inf), "infinity"),
    "wrong shape": (swapped(lambda a: a[:-1]), "shape"),
    "transposed": (swapped(lambda a: a.T.copy()), "shape"),
    "scalar": (swapped(lambda a: a.sum()[...]), "shape"),
    "too large": (swapped(lambda a: np.zeros((1000, *a.shape))), "shape"),
    "wrong type": (swapped(lambda a: a.astype(np.float32)), "float32"),
    "all of another type": (value(lambda w: {name: tensor.float() for name, tensor in w.items()}), "float32"),
    "complex": (swapped(lambda a: a.astype(np.complex128)), "complex128"),
    "big endian": (swapped(lambda a: a.astype(">f8")), ">f8"),
    "integers": (swapped(lambda a: a.astype(np.int64)), "int64"),
    "missing array": (without_tensor, "KeyError"),
    "missing tensor": (value(lambda w: dict(list(w.items())[1:])), "missing"),
    "extra tensor": (value(lambda w: {**w, "more": torch.zeros(3)}), "'more' is unknown"),
    "no tensors": (value(lambda w: {}), "missing"),
    "joined weights": (value(lambda w: tree.join(w, w)), "unknown"),
    "judgement": (value(lambda w: Judgement(1.0, w)), "a Judgement instead of weights"),
    "number": (value(lambda w: 1.0), "a float instead of weights"),
    "nothing": (value(lambda w: None), "a NoneType instead of weights"),
    "tuple": (value(lambda w: (w, w)), "a tuple instead of weights"),
    "bytes cut off": (raw(data=lambda data: data[:-3]), "bytes"),
    "bytes too many": (raw(data=lambda data: data + b"0123456789"), "bytes"),
    "no bytes": (raw(data=b""), "damaged"),
    "garbage bytes": (raw(data=b"\x00\xff" * 99), "damaged"),
    "pickle": (raw(data=pickled), "object"),
    "other storage": (raw(stype="pickle"), "pickle"),
    "huge header": (
        raw(data=npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }\n")),
        "which is not shape",
    ),
    "negative header": (raw(data=npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 8), }\n")), "shape"),
    "header code": (raw(data=npy(b"__import__('os').abort()\n")), "damaged"),
    "header nest": (raw(data=npy(b"(" * 9000)), "damaged"),
    "form no json": (form("{weights"), "not a readable value"),
    "form a list": (form("[1]"), "not a readable value"),
    "form empty": (form("{}"), "not a readable value"),
    "form deep": (form('{"tuple":[' * 100000), "not a readable value"),
    "form unknown": (form('{"code": "x"}'), "unknown kind"),
    "form nested plain": (form('{"plain": {"a": 1}}'), "no plain value"),
    "form strings": (form('{"plain": "1.0"}'), "belongs to nothing"),
    "form type": (form('{"weights": {"fc.bias": "__class__"}}'), "not a readable value"),
    "form type number": (form('{"weights": {"fc.bias": 64}}'), "not a readable value"),
    "no report": (no_report, "client None"),
    "loss nan": (report(**{"loss-sum": float("nan")}), "training loss is nan"),
    "loss huge": (report(**{"loss-sum": 1.7e308}), "training loss"),
    "loss of nobody": (report(**{"loss-sum": 1.0, "loss-count": 0}), "training loss"),
    "count negative": (report(**{"loss-count": -5}), "no count"),
    "count huge": (report(examples=10**18, **{"loss-count": 10**18}), "more than the client has"),
    "count not whole": (report(examples=12.5), "no count"),
    "count a list": (report(examples=[1, 2]), "no count"),
    "backward too many": (report(backward=10**6), "backward passes"),
    "backward negative": (report(backward=-1), "backward passes"),
    "backward a list": (report(backward=[3]), "backward passes"),
    "wrong identity": (report(client=0), "the answer is client 0's"),
    "wrong sender": (other_sender, "another message"),
    "wrong question": (other_question, "another message"),
    "empty": (lambda reply, message, context: Message(RecordDict(), reply_to=message), "client None"),
    "strings": (
        lambda reply, message, context: Message(
            RecordDict({"report": ConfigRecord({"examples": "12"}), "arrays": ArrayRecord()}), reply_to=message
        ),
        "client None",
    ),
    "error": (lambda reply, message, context: Message(Error(7, "out of\nmemory"), reply_to=message), "memory"),
    "error without words": (lambda reply, message, context: Message(Error(5), reply_to=message), "code 5"),
    "raises": (fails, "error: space left"),
    "silence": (lambda reply, message, context: None, "no answer in 0.1 seconds"),
}
HOSTILE_JUDGEMENTS = {
    "nan loss": (value(lambda j: Judgement(float("nan"), j.gradient)), "nan"),
    "infinite loss": (value(lambda j: Judgement(float("inf"), j.gradient)), "inf"),
    "text for loss": (value(lambda j: Judgement("0.1", j.gradient)), "'0.1'"),
    "whole number for loss": (value(lambda j: Judgement(True, j.gradient)), "True"),
    "no loss": (value(lambda j: j.gradient), "a dict instead of a loss and a gradient"),
    "no gradient": (value(lambda j: Judgement(j.loss, None)), "NoneType"),
    "three of them": (form('{"judgement": [{"plain": 1.0}, {"plain": 1.0}, {"plain": 1.0}]}'), "not a readable"),
    "nan gradient": (put(np.nan), "NaN"),
    "short gradient": (value(lambda j: Judgement(j.loss, dict(list(j.gradient.items())[1:]))), "missing"),
    "silence": (lambda reply, message, context: None, "no answer"),
    "raises": (fails, "error"),
}
