"""The phase diagram: test error over heterogeneity h, local steps tau and the start."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from fedstart.algorithms.fedavg import FedAvg
from fedstart.lab.experiments import _grid as grid
from fedstart.lab.findings import Claim, Findings, Row, alike, relative, verdict
from fedstart.lab.runs import Training, statistics
from fedstart.lab.starts import Pretraining
from fedstart.lab.world import World
from fedstart.types import STRICT

Place = tuple[float | None, float]
"""Cosine of pre-training (None = random start) and h."""


@dataclass(frozen=True, config=STRICT)
class Phase:
    """Where more local steps cost accuracy, and where they do not."""

    world: World = World()
    seeds: grid.Seeds = 10
    hs: grid.Balances = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)
    taus: grid.Taus = (1, 5, 20, 50, 100, 200)
    cosines: grid.Cosines = (0.1, 0.3, 0.9)
    pretraining: Pretraining = Pretraining()
    eta: grid.Eta = 0.1
    steps: grid.Steps = 1000
    draws: grid.Draws = 2000

    def run(self, progress: grid.Progress) -> Findings:
        """Trains every seed from every start at every h and tau."""
        progress.total(len(self.taus))
        seeds = range(self.seeds)
        starts = grid.starts(self.world, seeds, self.cosines, self.pretraining)
        places: list[Place] = [(cosine, h) for cosine in starts for h in self.hs]
        conditions = [grid.geometry(self.world, seeds, starts[cosine], h) for cosine, h in places]
        training = Training(FedAvg(), self.eta, self.steps, self.draws)
        found: dict[tuple[Place, int], grid.Columns] = {}
        for tau, columns in grid.swept(progress, "phase", conditions, training, self.taus, self.world.sigma_p):
            found |= {(place, tau): column for place, column in zip(places, columns, strict=True)}
        base = {place: found[place, min(self.taus)]["error"] for place in places}
        rows: list[Row] = [
            {"start": grid.start_name(place[0]), "cosine": place[0], "h": place[1], "tau": tau}
            | statistics({"error": columns["error"], "excess": columns["error"] - base[place]})
            for (place, tau), columns in found.items()
        ]
        question = (
            "In which region of heterogeneity, local steps and start is federated training as good as centralised?"
        )
        return Findings("The phase diagram", question, rows, claims=[_region(found, places, self.taus)])


def _region(found: dict[tuple[Place, int], grid.Columns], places: list[Place], taus: tuple[int, ...]) -> Claim:
    """The largest tau of each place whose error is that of the smallest tau, within half of it."""
    safe = {}
    for place in places:
        base = found[place, min(taus)]["error"].clamp(min=1e-3)
        held = [tau for tau in taus if alike(relative(found[place, tau]["error"].clamp(min=1e-3), base), 0.5)]
        safe[place] = max(held, default=min(taus))
    starts = dict.fromkeys(cosine for cosine, _ in places)
    described = {
        "random start" if cosine is None else f"cosine {cosine:g}": ", ".join(
            f"{tau} at h = {h:g}" for (start, h), tau in safe.items() if start == cosine
        )
        for cosine in starts
    }
    smallest = min(h for _, h in places)
    closer = sorted((-2.0 if cosine is None else cosine, safe[cosine, h]) for cosine, h in places if h == smallest)
    hardest = [tau for _, tau in closer]
    return Claim(
        "the closer pre-training is to the task, the more local steps are safe at the smallest h",
        "section on pre-training",
        "paper, second-hand",
        verdict([hardest == sorted(hardest) and hardest[0] < hardest[-1]] if len(hardest) > 1 else []),
        f"largest tau tried whose test error is within 50 % of that of tau = {min(taus)} (errors below 0.001 count as "
        "0.001): " + "; ".join(f"{start}: {taus}" for start, taus in described.items()),
    )
