"""Test error over local steps tau, from random and pre-trained starts."""

from __future__ import annotations

from dataclasses import replace

from pydantic.dataclasses import dataclass

from fedstart.algorithms.fedavg import FedAvg
from fedstart.lab.experiments import _grid as grid
from fedstart.lab.findings import Claim, Findings, Row, above, difference, fit, shown, tested
from fedstart.lab.runs import Training, statistics
from fedstart.lab.starts import Pretraining
from fedstart.lab.world import World
from fedstart.scores import Contrast
from fedstart.types import STRICT

Key = tuple[float | None, float]
"""Cosine of pre-training (None = random start) and h."""


@dataclass(frozen=True, config=STRICT)
class Tau:
    """The same local steps in all, cut into more or fewer rounds."""

    world: World = World()
    seeds: grid.Seeds = 20
    hs: grid.Balances = (0.0, 0.2, 1.0)
    taus: grid.Taus = (1, 2, 5, 10, 20, 50, 100, 200)
    cosines: grid.Cosines = (0.9, 0.5)
    pretraining: Pretraining = Pretraining()
    eta: grid.Eta = 0.1
    steps: grid.Steps = 1000
    draws: grid.Draws = 2000

    def run(self, progress: grid.Progress) -> Findings:
        """Trains every seed from every start at every h and tau."""
        progress.total(len(self.taus))
        seeds = range(self.seeds)
        starts = grid.starts(self.world, seeds, self.cosines, self.pretraining)
        keys: list[Key] = [(cosine, h) for cosine in starts for h in self.hs]
        conditions = [grid.geometry(self.world, seeds, starts[cosine], h) for cosine, h in keys]
        training = Training(FedAvg(), self.eta, self.steps, self.draws)
        rows: list[Row] = []
        errors: dict[tuple[Key, int], grid.Columns] = {}
        for tau, found in grid.swept(progress, "tau", conditions, training, self.taus, self.world.sigma_p):
            for key, columns in zip(keys, found, strict=True):
                errors[key, tau] = columns
                rows.append(row(key, tau, columns))
        title = "How many local steps a start can bear"
        question = "Does test error grow with tau, and does it depend on the start and on heterogeneity?"
        about = ("normal approximation of the margin", "see lab/error.py", "exact mean and variance", "ours")
        fits = fit(rows, "predicted_error", "error", about, "test error; too small where it is below a few percent")
        claims = [_grows(errors, self.hs, self.taus)]
        claims += [_bears(errors, self.taus, cosine, min(self.hs)) for cosine in self.cosines]
        return Findings(title, question, rows, predictions=fits, claims=claims)


def row(key: Key, tau: int, columns: grid.Columns) -> Row:
    """One row of a random (cosine None) or pre-trained start."""
    cosine, h = key
    names = ("error", "signal_aligned", "signal_misaligned", "noise", "misaligned")
    about = {"start": grid.start_name(cosine), "cosine": cosine, "h": h, "tau": tau}
    guess = None if columns["gaussian"].isnan().any() else float(columns["gaussian"].mean())
    return about | {"predicted_error": guess} | statistics({name: columns[name] for name in names})


def _grows(found: dict[tuple[Key, int], grid.Columns], hs: tuple[float, ...], taus: tuple[int, ...]) -> Claim:
    worst, shortest = min(hs), min(taus)
    base = found[(None, worst), shortest]["error"]
    grown = {tau: difference(found[(None, worst), tau]["error"], base) for tau in taus if tau != shortest}
    others = {
        h: difference(found[(None, h), max(taus)]["error"], found[(None, h), shortest]["error"])
        for h in hs
        if h != worst
    }
    aside = "; ".join(f"at h = {h:g}, tau = {max(taus)}: {shown(f, 4)}" for h, f in others.items())
    claim = tested(
        f"test error grows with tau at h = {worst:g} from a random start",
        "synthetic experiments",
        "paper, second-hand",
        {f"tau = {tau}": f for tau, f in grown.items()},
        above,
        f"error less that of tau = {shortest}: ",
        digits=4,
    )
    return replace(claim, measured=claim.measured + (f". For comparison {aside}" if aside else ""))


def _bears(found: dict[tuple[Key, int], grid.Columns], taus: tuple[int, ...], cosine: float, h: float) -> Claim:
    shortest, longest = min(taus), max(taus)

    def rise(start: float | None, tau: int) -> Contrast:
        return difference(found[(start, h), tau]["error"], found[(start, h), shortest]["error"])

    limit = rise(None, longest).difference / 10
    return tested(
        f"test error does not grow with tau at h = {h:g} from a start pre-trained at cosine {cosine:g}",
        "synthetic experiments",
        "paper, second-hand",
        {f"tau = {tau}": rise(cosine, tau) for tau in taus if tau != shortest},
        lambda contrast: contrast.high is not None and contrast.high < limit,
        f"error less that of tau = {shortest}, to stay below {limit:.4f}, a tenth of a random start's at {longest}: ",
        digits=4,
    )
