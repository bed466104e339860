"""What the experiments share: settings, and grids of runs that are trained together and told apart again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Protocol

from pydantic import Field
from torch import Tensor

from fedstart.algorithms.fedavg import FedAvg
from fedstart.lab.geometry import Geometry
from fedstart.lab.heterogeneity import allocate
from fedstart.lab.runs import Training, outcomes
from fedstart.lab.starts import Pretraining, pretrained, random, turned
from fedstart.lab.world import World, samples

Seeds = Annotated[int, Field(ge=1, description="seeds 0, 1, ...: data, noise and initial filters are drawn anew")]
Eta = Annotated[float, Field(gt=0, description="eta: rate of full-batch gradient descent")]
Steps = Annotated[int, Field(ge=1, description="local steps in all, R tau")]
Draws = Annotated[int, Field(ge=1, description="fresh noise patches that a test error is simulated on, for each class")]
Tau = Annotated[int, Field(ge=1)]
Taus = Annotated[tuple[Tau, ...], Field(min_length=1, description="local steps per round")]
Balance = Annotated[float, Field(ge=0, le=1)]
Balances = Annotated[
    tuple[Balance, ...], Field(min_length=1, description="h, scaled to 0 (one class per client) ... 1 (balanced)")
]
Cosine = Annotated[float, Field(ge=-1, le=1)]
Cosines = Annotated[tuple[Cosine, ...], Field(description="between the signal and that of pre-training")]

Columns = dict[str, Tensor]
"""Quantities by name, each of shape (seeds,)."""


class Progress(Protocol):
    """A bar that counts pieces of work."""

    def total(self, n: int) -> None: ...

    def advance(self, text: str) -> None: ...


def geometry(world: World, seeds: Sequence[int], starts: Sequence[Tensor], h: float) -> Geometry:
    """One run for each seed, from that seed's filters (F, d), on its own examples shared out with this h."""
    runs = []
    for seed, start in zip(seeds, starts, strict=True):
        drawn = samples(world, seed)
        runs.append(Geometry.of(start, drawn, allocate(drawn.labels, world.K, h)))
    return Geometry.stack(runs)


def pretrained_starts(
    world: World, seeds: Sequence[int], cosines: Sequence[float], settings: Pretraining
) -> dict[float, list[Tensor]]:
    """Filters (F, d) pre-trained by FedAvg (one client: centralised) for each cosine and seed."""
    found = pretrained(world, seeds, settings, FedAvg())
    return {cosine: [turned(start, world, cosine) for start in found] for cosine in cosines}


def measured(conditions: Sequence[Geometry], training: Training, tau: int, sigma_p: float) -> list[Columns]:
    """What training makes of several conditions, in one go; in their order."""
    return told_apart(conditions, outcomes(Geometry.stack(conditions), training, tau, sigma_p))


def told_apart(conditions: Sequence[Geometry], found: Columns) -> list[Columns]:
    """Quantities of all runs, shape (runs,), as those of each condition, shape (seeds,)."""
    pieces = {name: values.split([len(condition) for condition in conditions]) for name, values in found.items()}
    return [{name: values[place] for name, values in pieces.items()} for place in range(len(conditions))]


def starts(
    world: World, seeds: Sequence[int], cosines: Sequence[float], settings: Pretraining
) -> dict[float | None, list[Tensor]]:
    """Filters (F, d) of each seed: at random (None), and pre-trained at each cosine."""
    scratch: dict[float | None, list[Tensor]] = {None: [random(world, seed) for seed in seeds]}
    return scratch | pretrained_starts(world, seeds, cosines, settings)


def start_name(cosine: float | None) -> str:
    """`random` or `pre-trained`."""
    return "random" if cosine is None else "pre-trained"


def swept(
    progress: Progress,
    name: str,
    conditions: Sequence[Geometry],
    training: Training,
    taus: Sequence[int],
    sigma_p: float,
) -> Iterator[tuple[int, list[Columns]]]:
    """What training makes of the conditions at each tau, counted on the bar."""
    for tau in taus:
        yield tau, measured(conditions, training, tau, sigma_p)
        progress.advance(f"{name}, tau = {tau}")
