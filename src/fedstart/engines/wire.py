"""Values on the wire: weights, numbers and judgements as Flower records, and back, without pickle.

A record holds the tensors as arrays and a plain description of what they make up. Reading checks everything against
what was expected, since whatever comes from a node may be wrong.
"""

from __future__ import annotations

import json
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedstart.types import Judgement, Weights

SPECIAL = {torch.bfloat16: torch.int16}
"""Types that numpy lacks, and those of the same width that carry their bits."""

Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and type of every tensor of a model, by name."""


def write(value: Any) -> RecordDict:
    """A record that holds `value`: None, a number, a string, weights, a judgement, or a tuple of such.

    Raises ValueError for anything else.
    """
    tensors: dict[str, Tensor] = {}
    form = _describe(value, tensors, "")
    arrays = ArrayRecord({path: _array(tensor) for path, tensor in tensors.items()})
    return RecordDict({"arrays": arrays, "form": ConfigRecord({"json": json.dumps(form)})})


def read(record: RecordDict) -> Any:
    """What `write` wrote. Raises ValueError for a record that is not whole."""
    try:
        form = json.loads(str(record.config_records["form"]["json"]))
        return _restore(form, record.array_records["arrays"], "")
    except ValueError as error:
        raise ValueError(f"not a readable value ({error})") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a readable value ({type(error).__name__}: {error})") from None


def nbytes(record: RecordDict) -> int:
    """Bytes of the arrays in a record."""
    return sum(len(array.data) for arrays in record.array_records.values() for array in arrays.values())


def expected(method: Callable[..., Any]) -> Any:
    """The type that a client method returns, from its annotation: Weights, Judgement or float."""
    returned = typing.get_type_hints(method).get("return")
    if returned not in (Weights, Judgement, float):
        raise ValueError(f"{method.__qualname__}: a method for clients must return Weights, Judgement or float")
    return returned


def check(value: Any, kind: Any, shapes: Shapes, trainable: frozenset[str]) -> None:
    """Raises ValueError, saying what is wrong, unless `value` is a `kind` that fits the model.

    Weights have all of the model's tensors, or all that training changes, each with its shape and type and finite;
    joined weights (`tree.join`) are several such.
    """
    if kind is float:
        _check_number(value)
    elif kind is Judgement:
        if not isinstance(value, Judgement):
            raise ValueError(f"a {type(value).__name__} instead of a loss and a gradient")
        _check_number(value.loss)
        _check_weights(value.gradient, shapes, (trainable,))
    else:
        floating = frozenset(name for name, (_, dtype) in shapes.items() if dtype.is_floating_point)
        allowed = (frozenset(shapes), trainable, floating)
        for tree in _parts(value):
            _check_weights(tree, shapes, allowed)


def _parts(value: Any) -> list[Any]:
    """The trees of joined weights, or the one tree."""
    if not isinstance(value, dict) or not value:
        raise ValueError("no tensors at all" if value == {} else f"a {type(value).__name__} instead of weights")
    if not all(name.partition("/")[0].isdecimal() for name in value):
        return [value]
    trees: dict[str, Weights] = {}
    for path, tensor in value.items():
        place, _, name = path.partition("/")
        trees.setdefault(place, {})[name] = tensor
    return list(trees.values())


def _check_number(value: Any) -> None:
    if not isinstance(value, float) or not math.isfinite(value):
        raise ValueError(f"{value!r} instead of a finite number")


def _check_weights(tree: Any, shapes: Shapes, allowed: tuple[frozenset[str], ...]) -> None:
    if not isinstance(tree, dict):
        raise ValueError(f"a {type(tree).__name__} instead of weights")
    if frozenset(tree) not in allowed:
        missing = [name for name in allowed[0] if name not in tree]
        extra = [name for name in tree if name not in shapes]
        raise ValueError(f"tensor {extra[0]!r} is unknown" if extra else f"tensor {missing[0]!r} is missing")
    for name, tensor in tree.items():
        shape, dtype = shapes[name]
        if tuple(tensor.shape) != shape:
            raise ValueError(f"tensor {name!r} has shape {tuple(tensor.shape)} instead of {shape}")
        if tensor.dtype != dtype:
            raise ValueError(f"tensor {name!r} is {tensor.dtype} instead of {dtype}")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"tensor {name!r} holds NaN or infinity")


def _describe(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return {"plain": value}
    if isinstance(value, Judgement):
        return {"judgement": [_describe(item, tensors, f"{path}.{place}") for place, item in enumerate(value)]}
    if isinstance(value, tuple):
        return {"tuple": [_describe(item, tensors, f"{path}.{place}") for place, item in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(item, Tensor) for item in value.values()):
        tensors.update({f"{path}:{name}": tensor for name, tensor in value.items()})
        return {"weights": {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in value.items()}}
    raise ValueError(f"a {type(value).__name__} cannot be sent (allowed: weights, judgements, numbers, tuples of them)")


def _restore(form: Any, arrays: ArrayRecord, path: str) -> Any:
    ((kind, content),) = form.items()
    if kind == "plain":
        return content
    if kind == "judgement":
        loss, gradient = (_restore(item, arrays, f"{path}.{place}") for place, item in enumerate(content))
        return Judgement(loss, gradient)
    if kind == "tuple":
        return tuple(_restore(item, arrays, f"{path}.{place}") for place, item in enumerate(content))
    if kind == "weights":
        return {name: _tensor(arrays[f"{path}:{name}"], dtype) for name, dtype in content.items()}
    raise ValueError(f"unknown kind {kind!r}")


def _array(tensor: Tensor) -> Array:
    plain = tensor.detach().cpu().contiguous()
    return Array(plain.view(SPECIAL.get(plain.dtype, plain.dtype)).numpy())


def _tensor(array: Array, dtype: str) -> Tensor:
    wanted = getattr(torch, dtype, None)
    if not isinstance(wanted, torch.dtype):
        raise ValueError(f"unknown type {dtype!r}")
    values = torch.from_numpy(array.numpy())
    if values.dtype != SPECIAL.get(wanted, wanted):
        raise ValueError(f"an array of {values.dtype} is not {dtype}")
    return values.view(wanted)
