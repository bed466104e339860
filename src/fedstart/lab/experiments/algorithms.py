"""Open question 3 of the paper: what FedProx, SCAFFOLD and FedDyn do to misaligned filters."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedstart.algorithms.fedavg import FedAvg
from fedstart.algorithms.feddyn import FedDyn
from fedstart.algorithms.fedprox import FedProx
from fedstart.algorithms.scaffold import Scaffold
from fedstart.lab.experiments import _grid as grid
from fedstart.lab.findings import Claim, Findings, Row, above, difference, shown, tested, verdict, where
from fedstart.lab.runs import Training, statistics
from fedstart.lab.starts import Pretraining
from fedstart.lab.world import World
from fedstart.types import STRICT

Place = tuple[float | None, float]
"""Cosine of pre-training (None = random start) and h."""
Found = dict[tuple[str, Place, int], grid.Columns]


@dataclass(frozen=True, config=STRICT)
class Algorithms:
    """The library's own classes, in exact dynamics, on random and pre-trained starts."""

    world: World = World()
    seeds: grid.Seeds = 20
    hs: grid.Balances = (0.0, 1.0)
    taus: grid.Taus = (10, 100)
    cosine: Annotated[float, Field(ge=-1, le=1, description="of the pre-trained start")] = 0.5
    mus: Annotated[tuple[float, ...], Field(description="strengths of FedProx")] = (0.01, 0.1)
    alphas: Annotated[tuple[float, ...], Field(description="strengths of FedDyn")] = (0.01, 0.1)
    pretraining: Pretraining = Pretraining()
    eta: grid.Eta = 0.1
    steps: grid.Steps = 1000
    draws: grid.Draws = 2000

    def run(self, progress: grid.Progress) -> Findings:
        """Trains every seed by every method from every start at every h and tau."""
        methods = self._methods()
        progress.total(len(methods) * len(self.taus))
        seeds = range(self.seeds)
        starts = grid.starts(self.world, seeds, (self.cosine,), self.pretraining)
        places: list[Place] = [(cosine, h) for cosine in starts for h in self.hs]
        conditions = [grid.geometry(self.world, seeds, starts[cosine], h) for cosine, h in places]
        found: Found = {}
        for name, method in methods.items():
            training = Training(method, self.eta, self.steps, self.draws)
            about = f"algorithms, {name}"
            for tau, columns in grid.swept(progress, about, conditions, training, self.taus, self.world.sigma_p):
                found |= {(name, place, tau): column for place, column in zip(places, columns, strict=True)}
        rows = [_row(name, place, tau, columns) for (name, place, tau), columns in found.items()]
        title = "What methods against drift do to misaligned filters"
        question = "Do FedProx, SCAFFOLD and FedDyn raise the signal learning of misaligned filters?"
        hardest = (None, min(self.hs))
        claims = [_raises(found, name, hardest, self.taus) for name in methods if name != "FedAvg"]
        claims += [_matters(found, (self.cosine, min(self.hs)), max(self.taus))]
        return Findings(title, question, rows, claims=claims)

    def _methods(self) -> dict[str, Any]:
        return (
            {"FedAvg": FedAvg()}
            | {f"FedProx, mu = {mu:g}": FedProx(mu) for mu in self.mus}
            | {"SCAFFOLD": Scaffold()}
            | {f"FedDyn, alpha = {alpha:g}": FedDyn(alpha) for alpha in self.alphas}
        )


def _row(name: str, place: Place, tau: int, columns: grid.Columns) -> Row:
    names = ("signal_aligned", "signal_misaligned", "factor", "noise", "error")
    about = {"algorithm": name, "start": grid.start_name(place[0]), "cosine": place[0], "h": place[1], "tau": tau}
    return about | statistics({key: columns[key] for key in names})


def _raises(found: Found, name: str, place: Place, taus: tuple[int, ...]) -> Claim:
    factors = {
        tau: difference(found[name, place, tau]["factor"], found["FedAvg", place, tau]["factor"]) for tau in taus
    }
    errors = {tau: difference(found[name, place, tau]["error"], found["FedAvg", place, tau]["error"]) for tau in taus}
    return Claim(
        f"{name} raises Gamma of misaligned over aligned filters above FedAvg's (random start, h = {place[1]:g})",
        "open question 3",
        "ours",
        verdict(above(f) for f in factors.values()),
        "Gamma misaligned / aligned, less that of FedAvg: "
        + "; ".join(f"tau = {tau}: {shown(f)} (test error {shown(errors[tau], 4)})" for tau, f in factors.items()),
        where({f"tau = {tau}": above(f) for tau, f in factors.items()}),
    )


def _matters(found: Found, place: Place, tau: int) -> Claim:
    names = [name for name, where, steps in found if where == place and steps == tau and name != "FedAvg"]
    return tested(
        f"from a start pre-trained at cosine {place[0]:g} no such method improves on FedAvg (h = {place[1]:g})",
        "open question 3",
        "ours",
        {name: difference(found["FedAvg", place, tau]["error"], found[name, place, tau]["error"]) for name in names},
        lambda contrast: not above(contrast),
        f"test error of FedAvg less the method's, tau = {tau}: ",
        digits=4,
    )
