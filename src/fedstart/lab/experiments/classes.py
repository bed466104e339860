"""Open question 2 of the paper: more than two classes, one signal and one set of filters for each."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedstart.algorithms.fedavg import FedAvg
from fedstart.lab import predictions
from fedstart.lab.experiments import _grid as grid
from fedstart.lab.findings import (
    Claim,
    Findings,
    Row,
    above,
    below,
    difference,
    fit,
    relative,
    shown,
    tested,
    verdict,
    where,
)
from fedstart.lab.runs import Training, statistics
from fedstart.lab.starts import Pretraining
from fedstart.lab.world import World
from fedstart.types import STRICT

Place = tuple[int, float | None, float]
"""Number of classes, cosine of pre-training (None = random start), h."""
Found = dict[tuple[Place, int], grid.Columns]


@dataclass(frozen=True, config=STRICT)
class Classes:
    """The same experiment with C classes. A filter is misaligned where its product with its class's signal is negative.

    That definition, signals at the corners of a simplex (or at right angles), the measure h and the balance of clients
    are ours. There is one client for each class and `size` examples of each, so that classes are no rarer than in two.
    """

    world: World = World()
    numbers: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(description="of classes")] = (2, 3, 4)
    seeds: grid.Seeds = 20
    hs: grid.Balances = (0.0, 1.0)
    taus: grid.Taus = (1, 10, 100)
    cosine: Annotated[float, Field(ge=-1, le=1, description="of the pre-trained start")] = 0.9
    pretraining: Pretraining = Pretraining()
    size: Annotated[int, Field(ge=1, description="training examples of each class")] = 12
    eta: grid.Eta = 0.1
    steps: grid.Steps = 1000
    draws: grid.Draws = 1000

    def run(self, progress: grid.Progress) -> Findings:
        """Trains every seed with every number of classes, from either start, at every h and tau."""
        progress.total(len(self.numbers) * len(self.taus))
        training = Training(FedAvg(), self.eta, self.steps, self.draws)
        found: Found = {}
        for number in self.numbers:
            world = replace(self.world, classes=number, K=number, N=self.size)
            places, conditions = self._conditions(world)
            about = f"{number} classes"
            for tau, measured in grid.swept(progress, about, conditions, training, self.taus, world.sigma_p):
                found |= {(place, tau): columns for place, columns in zip(places, measured, strict=True)}
        rows = [_row(place, tau, columns) for (place, tau), columns in found.items()]
        scratch = [row for row in rows if row["start"] == "random"]
        about = ("half of the filters", "1/2", "symmetry", "inferred")
        fits = fit([row | {"half": predictions.random_share()} for row in scratch], "half", "misaligned", about)
        question = "Does the mechanism carry over to more than two classes?"
        claims = [_falls(found, self.numbers, self.hs, self.taus), self._fewer(found)]
        return Findings("More than two classes", question, rows, predictions=fits, claims=claims)

    def _conditions(self, world: World) -> tuple[list[Place], list]:
        seeds = range(self.seeds)
        starts = grid.starts(world, seeds, (self.cosine,), self.pretraining)
        places: list[Place] = [(world.classes, cosine, h) for cosine in starts for h in self.hs]
        return places, [grid.geometry(world, seeds, starts[cosine], h) for _, cosine, h in places]

    def _fewer(self, found: Found) -> Claim:
        worst, longest = min(self.hs), max(self.taus)
        share = {}
        rise = {}
        for number in self.numbers:
            ready, scratch = ((number, cosine, worst) for cosine in (self.cosine, None))
            share[number] = difference(found[scratch, longest]["misaligned"], found[ready, longest]["misaligned"])
            grown = (found[p, longest]["error"] - found[p, min(self.taus)]["error"] for p in (scratch, ready))
            rise[number] = difference(*grown)
        return Claim(
            f"pre-training at cosine {self.cosine:g} leaves fewer misaligned filters, and tau = {longest} hurts less",
            "open question 2",
            "ours",
            verdict(above(share[n]) and above(rise[n]) for n in self.numbers if len(self.taus) > 1),
            "random less pre-trained: "
            + "; ".join(
                f"{n} classes: share {shown(share[n])}, rise of test error {shown(rise[n], 4)}" for n in self.numbers
            ),
            where({f"{n} classes": above(share[n]) and above(rise[n]) for n in self.numbers}),
        )


def _row(place: Place, tau: int, columns: grid.Columns) -> Row:
    number, cosine, h = place
    names = ("misaligned", "signal_aligned", "signal_misaligned", "factor", "noise", "error")
    about = {"classes": number, "start": grid.start_name(cosine), "cosine": cosine, "h": h, "tau": tau}
    return about | statistics({name: columns[name] for name in names})


def _falls(found: Found, numbers: tuple[int, ...], hs: tuple[float, ...], taus: tuple[int, ...]) -> Claim:
    longest = max(taus)
    factors = {
        number: relative(
            found[(number, None, min(hs)), longest]["factor"], found[(number, None, max(hs)), longest]["factor"]
        )
        for number in numbers
    }
    return tested(
        f"heterogeneity lowers Gamma of misaligned filters more than that of aligned ones (tau = {longest})",
        "open question 2",
        "ours",
        {f"{number} classes": factor for number, factor in factors.items()} if len(hs) > 1 else {},
        below,
        f"Gamma misaligned / aligned, change from h = {max(hs):g} to h = {min(hs):g}: ",
        percent=True,
    )
