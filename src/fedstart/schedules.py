"""Local-step schedules: tau of each round, from the first round's, and from what the last round showed."""

from __future__ import annotations

import math
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@plain_dataclass(frozen=True)
class Seen:
    """What the server saw in a round: its tau, and the share of filters that stagnate (NaN where it cannot be told).

    `best` is the lowest training loss of a round since tau last changed, `waited` the number of rounds since then.
    """

    tau: int
    stagnating: float
    best: float = math.nan
    waited: int = 0


def saw(before: Seen | None, tau: int, stagnating: float, loss: float) -> Seen:
    """What the server has seen after a round with this mean training loss of its clients; `before`, the round before.

    A loss is a new best where it is at least 2 % lower.
    """
    if before is None or before.tau != tau or not loss >= 0.98 * before.best:
        return Seen(tau, stagnating, loss, 0)
    return Seen(tau, stagnating, before.best, before.waited + 1)


@dataclass(frozen=True, config=STRICT)
class Step:
    """`first * factor^floor((t - 1) / every)` in round t, rounded down: factor < 1 decays, factor > 1 grows."""

    kind: Literal["step"] = "step"
    factor: Annotated[float, Field(gt=0, description="of tau, each time")] = 0.5
    every: Annotated[int, Field(ge=1, description="rounds between changes")] = 10
    least: Annotated[int, Field(ge=1, description="smallest tau")] = 1
    most: Annotated[int, Field(ge=1, description="largest tau")] = 1000

    def steps(self, first: int, number: int, seen: Seen | None) -> int:
        """tau of round `number` = 1, 2, ...; `first` is that of round 1."""
        # The exponent is bounded, as a power of many rounds would leave the range of a float.
        power = min((number - 1) // self.every, 1000)
        exact = math.log(first) + power * math.log(self.factor)
        return _within(self.least, math.floor(math.exp(min(exact, 50.0)) + 1e-9), self.most)


@dataclass(frozen=True, config=STRICT)
class Cosine:
    """From the first tau to `final` along half a cosine of `rounds` rounds, rounded; `final` from then on."""

    kind: Literal["cosine"] = "cosine"
    final: Annotated[int, Field(ge=1, description="tau in the end")] = 1
    rounds: Annotated[int, Field(ge=1, description="rounds until then")] = 50

    def steps(self, first: int, number: int, seen: Seen | None) -> int:
        """tau of round `number` = 1, 2, ...; `first` is that of round 1."""
        share = (1 + math.cos(math.pi * min(1.0, (number - 1) / self.rounds))) / 2
        return max(1, round(self.final + share * (first - self.final)))


@dataclass(frozen=True, config=STRICT)
class Adaptive:
    """tau is divided by `shrink` after a round in which filters stagnate, and multiplied by `grow` after any other.

    A filter stagnates where its updates agree too little across clients (`engines/agreement.py`); more than `limit` of
    them must. One step is gradient descent, where nobody can stand behind, so tau = 1 grows. *Ours*: the schedule of
    arXiv:2502.08024 is unknown. Where the server cannot tell (fewer than two clients) tau stays.
    """

    kind: Literal["adaptive"] = "adaptive"
    grow: Annotated[float, Field(ge=1, description="factor of tau where filters keep up")] = 3.0
    shrink: Annotated[float, Field(ge=1, description="divisor of tau where they stagnate")] = 3.0
    limit: Annotated[float, Field(ge=0, le=1, description="share of stagnating filters that is borne")] = 0.2
    least: Annotated[int, Field(ge=1, description="smallest tau")] = 1
    most: Annotated[int, Field(ge=1, description="largest tau")] = 200

    def steps(self, first: int, number: int, seen: Seen | None) -> int:
        """tau of round `number` = 1, 2, ...; `first` is that of round 1."""
        if seen is None or math.isnan(seen.stagnating):
            return _within(self.least, first if seen is None else seen.tau, self.most)
        stuck = seen.stagnating > self.limit and seen.tau > 1
        return _within(self.least, int(seen.tau / self.shrink if stuck else seen.tau * self.grow), self.most)


@dataclass(frozen=True, config=STRICT)
class Plateau:
    """tau is divided by `shrink` after `patience` rounds without a new best of the clients' training loss.

    Starts large and shrinks where a large tau has nothing more to give, which minibatch noise does not hide. *Ours*.
    The loss is the mean over the local steps, so only rounds of one tau are compared.
    """

    kind: Literal["plateau"] = "plateau"
    shrink: Annotated[float, Field(gt=1, description="divisor of tau")] = 2.0
    patience: Annotated[int, Field(ge=1, description="rounds without a new best that are borne")] = 3
    least: Annotated[int, Field(ge=1, description="smallest tau")] = 1

    def steps(self, first: int, number: int, seen: Seen | None) -> int:
        """tau of round `number` = 1, 2, ...; `first` is that of round 1."""
        if seen is None:
            return max(self.least, first)
        return max(self.least, int(seen.tau / self.shrink)) if seen.waited >= self.patience else seen.tau


Schedule = Annotated[Step | Cosine | Adaptive | Plateau, Field(discriminator="kind")]


def _within(least: int, value: int, most: int) -> int:
    return max(least, min(value, most))
