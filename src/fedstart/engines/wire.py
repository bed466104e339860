"""Values on the wire: weights, numbers and judgements as Flower records, and back, without pickle.

A record holds the tensors as arrays and a plain description of what they make up. Reading allocates no more than
arrived and checks everything, since whatever comes from a node may be wrong.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import typing
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedstart.types import Judgement, Weights

SPECIAL = {torch.bfloat16: torch.int16}
"""Types that numpy lacks, and those of the same width that carry their bits."""

TYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}
"""The types of tensors that can be sent, by name."""

STORED = "numpy.ndarray"
LONGEST = 300


def write(value: Any) -> RecordDict:
    """A record that holds `value`: None, a number, a string, weights, a judgement, or a tuple of such.

    Tensors are called `<tree>/<name>`, trees counted from 0, so that the weights that come back have the names of
    those that were sent first. Raises ValueError for anything else.
    """
    trees: list[Weights] = []
    form = _describe(value, trees)
    arrays = {f"{place}/{name}": _array(tensor) for place, tree in enumerate(trees) for name, tensor in tree.items()}
    return RecordDict({"arrays": ArrayRecord(arrays), "form": ConfigRecord({"json": json.dumps(form)})})


def read(record: RecordDict) -> Any:
    """What `write` wrote. Raises ValueError, in one line, for a record that is not whole."""
    try:
        form = json.loads(str(record.config_records["form"]["json"]))
        arrays = dict(record.array_records["arrays"].items())
        value = _restore(form, arrays, itertools.count())
    except ValueError as error:
        raise ValueError(f"not a readable value ({error})") from None
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a readable value ({type(error).__name__}: {error})") from None
    if arrays:
        raise ValueError(f"not a readable value (array {next(iter(arrays))!r} belongs to nothing)")
    return value


def nbytes(record: RecordDict) -> int:
    """Bytes of the arrays in a record."""
    return sum(len(array.data) for arrays in record.array_records.values() for array in arrays.values())


def expected(method: Callable[..., Any]) -> Any:
    """The type that a client method returns, from its annotation: Weights, Judgement or float."""
    returned = typing.get_type_hints(method).get("return")
    for kind in (Weights, Judgement, float):
        if returned == kind:
            return kind
    raise ValueError(f"{method.__qualname__}: a method for clients must return Weights, Judgement or float")


def pattern(value: Any) -> Any:
    """The value with every tensor as an empty one of its shape and type: what `check` holds an answer against."""
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="meta")
    if isinstance(value, Judgement):
        return Judgement(value.loss, pattern(value.gradient))
    return {name: pattern(tensor) for name, tensor in value.items()} if isinstance(value, dict) else value


def check(value: Any, like: Any) -> Any:
    """`value`, its tensors in the order of `like`; like it in kind, names, shapes and types, and all finite.

    `like` is a number, weights or a judgement. Raises ValueError, saying what is wrong, for anything else.
    """
    if isinstance(like, Judgement):
        if not isinstance(value, Judgement):
            raise ValueError(f"a {type(value).__name__} instead of a loss and a gradient")
        return Judgement(_check_number(value.loss), _check_weights(value.gradient, like.gradient))
    return _check_weights(value, like) if isinstance(like, dict) else _check_number(value)


def first_tree(broadcast: tuple[Any, ...]) -> Weights:
    """The first weights in what is sent; empty if there are none."""
    return next((value for value in broadcast if isinstance(value, dict)), {})


def one_line(text: object) -> str:
    """Text from elsewhere as one printable line of at most 300 characters."""
    words = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
    return words if len(words) <= LONGEST else f"{words[: LONGEST - 3]}..."


def _check_number(value: Any) -> float:
    if not isinstance(value, float) or not math.isfinite(value):
        raise ValueError(f"{value!r} instead of a finite number")
    return value


def _check_weights(value: Any, like: Weights) -> Weights:
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} instead of weights")
    if extra := [name for name in value if name not in like]:
        raise ValueError(f"tensor {extra[0]!r} is unknown")
    for name, wanted in like.items():
        if name not in value:
            raise ValueError(f"tensor {name!r} is missing")
        tensor = value[name]
        if tensor.shape != wanted.shape:
            raise ValueError(f"tensor {name!r} has shape {tuple(tensor.shape)} instead of {tuple(wanted.shape)}")
        if tensor.dtype != wanted.dtype:
            raise ValueError(f"tensor {name!r} is {tensor.dtype} instead of {wanted.dtype}")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"tensor {name!r} holds NaN or infinity")
    return {name: value[name] for name in like}


def _describe(value: Any, trees: list[Weights]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return {"plain": value}
    if isinstance(value, tuple):
        kind = "judgement" if isinstance(value, Judgement) else "tuple"
        return {kind: [_describe(item, trees) for item in value]}
    if isinstance(value, dict) and all(isinstance(item, Tensor) for item in value.values()):
        trees.append(value)
        return {"weights": {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in value.items()}}
    raise ValueError(f"a {type(value).__name__} cannot be sent (allowed: weights, judgements, numbers, tuples of them)")


def _restore(form: Any, arrays: dict[str, Array], places: Iterator[int]) -> Any:
    """The value of a form; takes what it uses out of `arrays`."""
    ((kind, content),) = form.items()
    if kind == "plain":
        if content is not None and not isinstance(content, bool | int | float | str):
            raise ValueError(f"a {type(content).__name__} is no plain value")
        return content
    if kind == "judgement":
        loss, gradient = (_restore(item, arrays, places) for item in content)
        return Judgement(loss, gradient)
    if kind == "tuple":
        return tuple(_restore(item, arrays, places) for item in content)
    if kind == "weights":
        place = next(places)
        return {name: _tensor(arrays.pop(f"{place}/{name}"), name, dtype) for name, dtype in content.items()}
    raise ValueError(f"unknown kind {kind!r}")


def _array(tensor: Tensor) -> Array:
    if tensor.dtype not in TYPES.values():
        raise ValueError(f"a tensor of {tensor.dtype} cannot be sent (allowed: {', '.join(TYPES)})")
    plain = tensor.detach().cpu().contiguous()
    return Array(plain.view(SPECIAL.get(plain.dtype, plain.dtype)).numpy())


def _tensor(array: Array, name: str, dtype: str) -> Tensor:
    """The tensor in an array's bytes, which are a header in NumPy's format and the values."""
    if dtype not in TYPES:
        raise ValueError(f"tensor {name!r} is of unknown type {dtype!r}")
    if array.stype != STORED:
        raise ValueError(f"tensor {name!r} is stored as {array.stype!r}")
    wanted = TYPES[dtype]
    plain = torch.empty(0, dtype=SPECIAL.get(wanted, wanted)).numpy().dtype
    stream = io.BytesIO(array.data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("unknown version")
        shape, by_columns, found = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:
        # The header is a Python literal from elsewhere; NumPy's reader fails in many ways on a wrong one.
        raise ValueError(f"tensor {name!r} is damaged: {error}") from None
    start = stream.tell()
    if found != plain:
        raise ValueError(f"tensor {name!r} holds {found} instead of {plain}")
    if min(shape, default=0) < 0 or len(array.data) - start != math.prod(shape) * plain.itemsize:
        raise ValueError(f"tensor {name!r} has {len(array.data) - start} bytes, which is not shape {shape}")
    values = np.ndarray(shape, plain, bytearray(memoryview(array.data)[start:]), order="F" if by_columns else "C")
    return torch.from_numpy(values).contiguous().view(wanted)
