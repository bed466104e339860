"""Gamma of aligned and misaligned filters, and noise memorisation, over label heterogeneity h and local steps tau."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic.dataclasses import dataclass

from fedstart.algorithms.fedavg import FedAvg
from fedstart.lab import predictions
from fedstart.lab.experiments import _grid as grid
from fedstart.lab.findings import Claim, Findings, above, alike, below, difference, fit, relative, tested
from fedstart.lab.geometry import Geometry
from fedstart.lab.heterogeneity import allocate, mixed_share
from fedstart.lab.runs import Training, learnt, statistics
from fedstart.lab.starts import random
from fedstart.lab.world import World, samples
from fedstart.scores import Contrast
from fedstart.types import STRICT

Found = dict[tuple[float, int], grid.Columns]


@dataclass(frozen=True, config=STRICT)
class Heterogeneity:
    """From a random start: what h and tau do to signal learning and to noise memorisation."""

    world: World = World()
    seeds: grid.Seeds = 20
    hs: grid.Balances = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
    taus: grid.Taus = (1, 10, 100)
    eta: grid.Eta = 0.1
    steps: grid.Steps = 1000
    draws: grid.Draws = 2000

    def run(self, progress: grid.Progress) -> Findings:
        """Trains every seed at every h and tau, and once more for a single round."""
        progress.total(2 * len(self.taus))
        seeds = range(self.seeds)
        starts = [random(self.world, seed) for seed in seeds]
        conditions = [grid.geometry(self.world, seeds, starts, h) for h in self.hs]

        training = Training(FedAvg(), self.eta, self.steps, self.draws)
        found: Found = {}
        for tau, trained in grid.swept(progress, "heterogeneity", conditions, training, self.taus, self.world.sigma_p):
            found |= {(h, tau): columns for h, columns in zip(self.hs, trained, strict=True)}
        first: Found = {}
        for tau in self.taus:
            trained = grid.told_apart(conditions, learnt(Geometry.stack(conditions), replace(training, steps=tau), tau))
            first |= {(h, tau): columns for h, columns in zip(self.hs, trained, strict=True)}
            progress.advance(f"first round, tau = {tau}")
        rows = [row for key, columns in found.items() for row in _rows(*key, columns)]
        mixed = {h: self._mixed(h) for h in self.hs}
        early = [
            {"h": h, "tau": tau, "bound": predictions.first_round_factor(h, tau), "mixed": mixed[h]}
            | {"predicted": predictions.mixed_first_round_factor(mixed[h], tau)}
            | statistics({"factor": columns["factor"]})
            for (h, tau), columns in first.items()
        ]
        misaligned = [row for row in rows if row["group"] == "misaligned"]
        about = ("candidate factor", "h + (1 - h) / tau", "two-layer analysis of ours, h scaled to [0, 1]", "inferred")
        bound = ("first-round bound", "h + (1 - h) / tau", "limit of small sigma_0, checked at h = 0", "inferred")
        limit = ("first round by mixed clients", "u + (1 - u) / tau", "u = share of clients with both classes", "ours")
        fits = [
            *fit(misaligned, "predicted_factor", "factor", about, "Gamma misaligned / aligned at the end of training"),
            *fit(early, "bound", "factor", bound, "the same after one round: a lower bound"),
            *fit(early, "predicted", "factor", limit, "the same after one round, as sigma_0 and eta tau go to 0"),
        ]
        title = "Heterogeneity acts on misaligned filters"
        question = "What do label heterogeneity h and local steps tau do to signal learning and noise memorisation?"
        claims = _claims(found, self.hs, self.taus)
        return Findings(title, question, rows, {"first_round": early}, fits, claims)

    def _mixed(self, h: float) -> float:
        labels = samples(self.world, 0).labels
        return mixed_share(labels, allocate(labels, self.world.K, h))


def _rows(h: float, tau: int, columns: grid.Columns) -> list[dict]:
    common = {"factor": columns["factor"], "error": columns["error"]}
    return [
        {"h": h, "tau": tau, "group": group, "predicted_factor": predictions.factor(h, tau)}
        | statistics({q: columns[f"{q}_{group}"] for q in ("signal", "noise", "ratio")} | common)
        for group in ("aligned", "misaligned")
    ]


def _claims(found: Found, hs: tuple[float, ...], taus: tuple[int, ...]) -> list[Claim]:
    worst, best, longest = min(hs), max(hs), max(taus)
    ends = {tau: (found[worst, tau], found[best, tau]) for tau in taus if tau > 1 and worst < best}
    falls = {tau: difference(b["signal_misaligned"], w["signal_misaligned"]) for tau, (w, b) in ends.items()}
    steady = {tau: relative(w["signal_aligned"], b["signal_aligned"]) for tau, (w, b) in ends.items()}
    noise = {tau: relative(w["noise"], b["noise"]) for tau, (w, b) in ends.items()}
    taller = {
        h: difference(found[h, min(taus)]["signal_misaligned"], found[h, longest]["signal_misaligned"])
        for h in hs
        if min(taus) < longest
    }
    factors = {h: relative(found[h, longest]["factor"], found[h, min(taus)]["factor"]) for h in taller}
    lemma, lost = "lemma on misaligned filters", f"change from h = {best:g} to h = {worst:g} (the same within 10 %): "
    return [
        tested(
            f"Gamma of misaligned filters is smaller at h = {worst:g} than at h = {best:g}, where tau > 1",
            lemma,
            "paper, second-hand",
            named("tau", falls),
            above,
            f"Gamma at h = {best:g} less that at h = {worst:g}: ",
        ),
        tested(
            f"Gamma of misaligned filters falls with tau (from {min(taus)} to {longest})",
            lemma,
            "paper, second-hand",
            named("h", taller),
            above,
            "fall: ",
        ),
        tested(
            f"misaligned filters lose more to tau = {longest} than aligned ones do",
            "mechanism",
            "ours",
            named("h", factors),
            below,
            "Gamma misaligned / aligned, relative change: ",
            percent=True,
        ),
        tested(
            "Gamma of aligned filters does not depend on h",
            "abstract",
            "paper",
            named("tau", steady),
            alike,
            lost,
            percent=True,
        ),
        tested(
            "noise memorisation, sum P-bar, does not depend on h",
            lemma,
            "paper, second-hand",
            named("tau", noise),
            alike,
            lost,
            percent=True,
        ),
    ]


def named(letter: str, found: Mapping[Any, Contrast]) -> dict[str, Contrast]:
    """Contrasts by the names of their conditions, such as `tau = 10`."""
    return {f"{letter} = {value:g}": contrast for value, contrast in found.items()}
