"""What an algorithm does on clients, read from its class: the methods it calls there and what they give back."""

from __future__ import annotations

import inspect
import typing
from typing import NamedTuple

from fedstart.types import Judgement, Weights

RETURNS = {Weights: "weights", Judgement: "loss and gradient", float: "a number"}
"""What may leave a client, by the return annotation of the method."""


class Exchange(NamedTuple):
    """A method that runs on clients: its name, what each client gives back, and what it is for."""

    name: str
    returns: str
    about: str


def exchanges(algorithm: type) -> list[str]:
    """The methods of an algorithm that run on clients, in the order they are written."""
    codes = {name: getattr(value, "__code__", None) for name, value in vars(algorithm).items()}
    return [name for name, code in codes.items() if code is not None and code.co_varnames[1:2] == ("client",)]


def leaving(algorithm: type) -> list[Exchange]:
    """What leaves a client in each exchange of an algorithm."""
    found = []
    for name in exchanges(algorithm):
        method = getattr(algorithm, name)
        returned = typing.get_type_hints(method).get("return")
        about = (inspect.getdoc(method) or "").partition("\n\n")[0]
        found.append(Exchange(name, RETURNS.get(returned, str(returned)), " ".join(about.split())))
    return found
