"""Values go over the wire and come back bit for bit, and nothing else does."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

flwr = pytest.importorskip("flwr", reason="needs the extra fedstart[flower]")

from flwr.app import ConfigRecord, RecordDict  # noqa: E402

from fedstart import names, tree  # noqa: E402
from fedstart.engines import wire  # noqa: E402
from fedstart.engines.node import exchanges  # noqa: E402
from fedstart.engines.rehearsal import rehearse  # noqa: E402
from fedstart.types import Judgement, Weights  # noqa: E402

types = st.sampled_from(sorted(wire.TYPES.values(), key=str))
shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)
labels = st.text("abc./:0 é", min_size=1, max_size=6)


@st.composite
def tensors(draw):
    dtype, shape = draw(types), draw(shapes)
    width = torch.empty(0, dtype=dtype).element_size()
    count = math.prod(shape) * width
    data = bytearray(draw(st.binary(min_size=count, max_size=count)))
    if dtype == torch.bool:
        data = bytearray(byte & 1 for byte in data)
    flat = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return flat.view(dtype).reshape(shape)


trees = st.dictionaries(labels, tensors(), max_size=4)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
judgements = st.builds(Judgement, st.floats(allow_nan=False), trees)
values = st.recursive(plain | trees | judgements, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)


def same(left, right) -> bool:
    """Equal in type, and tensors in every bit (NaN included)."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and tree.fingerprint(left) == tree.fingerprint(right)
    if isinstance(left, tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return left == right


@settings(max_examples=80, deadline=None)
@given(values)
def test_a_value_comes_back_bit_for_bit(value):
    record = wire.write(value)
    assert same(wire.read(record), value)
    assert len(record.array_records) == len(record.config_records) == 1
    assert json.loads(record.config_records["form"]["json"])


def test_bfloat16_and_odd_layouts_come_back():
    numbers = torch.tensor([1.0, -2.5, float("nan"), float("inf"), 3e38], dtype=torch.bfloat16)
    image = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
    sent = {
        "bfloat16": numbers,
        "channels last": image.contiguous(memory_format=torch.channels_last),
        "transposed": image[0, 0].T,
        "every second": image[..., ::2],
        "with gradient": torch.ones(3, requires_grad=True),
        "one": torch.tensor(7),
    }
    back = wire.read(wire.write(sent))
    assert tree.fingerprint(back) == tree.fingerprint(sent)
    assert all(back[name].dtype == sent[name].dtype and back[name].is_contiguous() for name in sent)
    back["one"].add_(1)
    assert sent["one"] == 7 and wire.nbytes(wire.write(sent)) < tree.nbytes(sent) + 128 * (len(sent) + 1)


def test_columns_first_are_read_as_rows():
    import numpy as np
    from flwr.app import Array

    record = wire.write({"a": torch.arange(6.0).reshape(2, 3)})
    record.array_records["arrays"]["0/a"] = Array(np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)))
    assert wire.read(record)["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("value", [[1.0], {1, 2}, {"a": 1.0}, object(), b"bytes", {"a": torch.zeros(1).to_sparse()}])
def test_other_values_are_not_sent(value):
    with pytest.raises((ValueError, RuntimeError, NotImplementedError)):
        wire.write(value)


def test_complex_tensors_are_not_sent():
    with pytest.raises(ValueError, match="a tensor of torch.complex64 cannot be sent"):
        wire.write({"a": torch.zeros(1, dtype=torch.complex64)})


@settings(max_examples=80, deadline=None)
@given(
    st.recursive(
        plain | st.just(float("nan")),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["plain", "tuple", "judgement", "weights", "a"]),
                inner | st.dictionaries(labels, st.sampled_from(["float32", "float99", "view", "int64"])),
                max_size=2,
            )
        ),
        max_leaves=12,
    ),
    st.booleans(),
)
def test_any_description_is_read_or_refused_in_words(form, kept):
    record = wire.write({"a": torch.ones(2), "b": torch.ones(1, dtype=torch.int64)})
    arrays = record.array_records["arrays"]
    if not kept:
        arrays.clear()
    record = RecordDict({"arrays": arrays, "form": ConfigRecord({"json": json.dumps(form)})})
    try:
        wire.read(record)
    except ValueError as error:
        assert str(error).startswith("not a readable value (")


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_changed_byte_is_read_or_refused_in_words(data):
    record = wire.write({"a": torch.arange(4.0)})
    array = record.array_records["arrays"]["0/a"]
    place = data.draw(st.integers(0, len(array.data) - 1))
    changed = bytearray(array.data)
    changed[place] ^= data.draw(st.integers(1, 255))
    array.data = bytes(changed)
    try:
        assert wire.read(record)["a"].numel() == 4
    except ValueError as error:
        assert str(error).startswith("not a readable value (")


def test_expected_names_what_a_method_returns_and_refuses_the_rest():
    class Method:
        def weights(self, client) -> Weights: ...

        def list(self, client) -> list[float]: ...

        def none(self, client): ...

    assert wire.expected(Method().weights) is Weights
    for method in (Method().list, Method().none):
        with pytest.raises(ValueError, match="must return Weights, Judgement or float"):
            wire.expected(method)


@pytest.mark.parametrize("name", sorted(names.discover("fedstart.algorithms")))
def test_every_exchange_can_be_rehearsed_and_fits_its_annotation(name, model, weights):
    cls = names.discover("fedstart.algorithms")[name]
    for exchange in exchanges(cls):
        method = getattr(cls(), exchange)
        codes = method.__func__.__code__
        value = rehearse(method, model, (weights,) * (codes.co_argcount - 2)).value
        kind = wire.expected(method)
        assert type(value) is (dict if kind is Weights else kind)
        assert wire.check(value, wire.pattern(value)) is not None


def test_text_from_elsewhere_becomes_one_line():
    assert wire.one_line("a\n\x1b[31mb\tc \u202e d") == "a [31mb c d"
    assert len(wire.one_line("x" * 10**6)) == 300
