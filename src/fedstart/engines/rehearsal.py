"""What a client method will answer, found out without any client: its kind, names, shapes and types."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from fedstart import tree
from fedstart.models import Model
from fedstart.types import Direction, Judgement, Weights


class Rehearsed(NamedTuple):
    """What a method returns when training changes nothing, and whether it remembers something."""

    value: Any
    remembers: bool


@dataclass
class Understudy:
    """A client without examples, on which training changes nothing. Implements `fedstart.types.Client`."""

    model: Model
    remembers: bool = False

    @property
    def lr(self) -> float:
        """One."""
        return 1.0

    def size(self, part: str = "train") -> int:
        """Two, so that a part can be divided."""
        return 2

    def descend(
        self,
        weights: Weights,
        part: str = "train",
        *,
        linear: Weights | None = None,
        proximal: float = 0.0,
        direction: Direction | None = None,
    ) -> Weights:
        """The weights as they are."""
        return tree.clone(weights)

    def pullback(self, weights: Weights, cotangent: Weights, part: str = "train") -> Weights:
        """The cotangent as it is."""
        return {name: cotangent[name].clone() for name in self.model.parameters}

    def loss(self, weights: Weights, part: str = "train") -> float:
        """Zero."""
        return 0.0

    def gradient(self, weights: Weights, part: str = "train") -> Judgement:
        """A loss of zero, and a gradient of zeros."""
        return Judgement(0.0, tree.zeros_like({name: weights[name] for name in self.model.parameters}))

    def total_rate(self, part: str = "train") -> float:
        """One."""
        return 1.0

    def recall(self, name: str) -> Weights | None:
        """Nothing."""
        return None

    def remember(self, name: str, weights: Weights) -> None:
        """Notes that there was something to remember."""
        self.remembers = True


def rehearse(method: Callable[..., Any], model: Model, broadcast: tuple[Any, ...]) -> Rehearsed:
    """Calls a client method on the understudy.

    What a method returns must have the same names, shapes and types on every client and in every round.
    """
    understudy = Understudy(model)
    return Rehearsed(method(understudy, *broadcast), understudy.remembers)
