"""Measures of misalignment for real networks, judged where the truth is known."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from sklearn.metrics import roc_auc_score
from torch import Tensor

from fedstart.algorithms.fedavg import FedAvg
from fedstart.data.federation import Federation
from fedstart.engines.local import LocalEngine
from fedstart.lab.coefficients import rebuild
from fedstart.lab.exact import follow
from fedstart.lab.experiments import _grid as grid
from fedstart.lab.findings import Claim, Findings, Row, verdict
from fedstart.lab.geometry import Geometry
from fedstart.lab.heterogeneity import allocate
from fedstart.lab.runs import statistics, whole_rounds
from fedstart.lab.starts import Pretraining
from fedstart.lab.world import World, as_weights, federation, samples, signals
from fedstart.probes._subject import Subject
from fedstart.probes.misalignment import KINDS, Misalignment
from fedstart.types import STRICT, Plan

Case = tuple[float | None, float, int]
"""Cosine of pre-training (None = random start), h, tau."""


@dataclass(frozen=True, config=STRICT)
class Measures:
    """AUROC of the probe `misalignment` against <w, mu of the class> < 0, at the start and after some rounds."""

    world: World = World()
    seeds: grid.Seeds = 5
    hs: grid.Balances = (0.0, 1.0)
    taus: grid.Taus = (10, 100)
    cosines: grid.Cosines = (0.0,)
    rounds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(description="at which filters are judged")] = (
        0,
        1,
        2,
    )
    pool: Annotated[
        int, Field(ge=2, description="training examples beside the clients' that responses are taken on")
    ] = 1000
    pretraining: Pretraining = Pretraining()
    eta: grid.Eta = 0.1
    steps: grid.Steps = 1000

    def run(self, progress: grid.Progress) -> Findings:
        """Trains every seed in every case, and judges its filters by every measure against the run's end."""
        starts = grid.starts(self.world, range(self.seeds), self.cosines, self.pretraining)
        cases: list[Case] = [(cosine, h, tau) for cosine in starts for h in self.hs for tau in self.taus]
        progress.total(len(cases))
        rows: list[Row] = []
        for case in cases:
            judged = [self._judged(starts[case[0]][seed], seed, case) for seed in range(self.seeds)]
            for number in self.rounds:
                rows += _rows(case, number, [found[number] for found in judged])
            progress.advance(f"measures, h = {case[1]:g}, tau = {case[2]}")
        question = "Which measure finds misaligned filters without knowing the signal?"
        return Findings("Measures of misalignment", question, rows, claims=[_claim(rows, kind) for kind in KINDS])

    def _judged(self, start: Tensor, seed: int, case: Case) -> dict[int, dict[str, float]]:
        """For each round the AUROC of every measure, and the share of filters that are misaligned."""
        _, h, tau = case
        drawn = samples(self.world, seed)
        geometry = Geometry.of(start, drawn, allocate(drawn.labels, self.world.K, h))
        schedule, last = whole_rounds(tau, self.steps)
        wanted = {number: min(number, last) for number in self.rounds}
        path = {0: start}
        with torch.inference_mode():
            for moment in follow(geometry, FedAvg(), self.eta, schedule, last):
                if moment.number in {*wanted.values(), last}:
                    path[moment.number] = rebuild(moment.coefficients[0], start, drawn.directions)
        own = signals(self.world).repeat_interleave(self.world.m, 0)
        held = self._looked_at(seed)
        plan = Plan(local_steps=1, seed=seed)
        found: dict[int, dict[str, float]] = {}
        with LocalEngine(1) as engine:
            for number, place in wanted.items():
                wrong = (path[place] * own).sum(1) < 0
                model, end = self.world.model(), as_weights(path[last].clone())
                subject = Subject(model, held, as_weights(path[place].clone()), plan, engine, {"end": end})
                found[number] = {
                    kind: _auroc(wrong, Misalignment(kind=kind, examples=self.pool), subject) for kind in KINDS
                }
                found[number]["misaligned"] = float(wrong.double().mean())
        return found

    def _looked_at(self, seed: int) -> Federation:
        """A federation of one client with examples of its own, on which responses are taken."""
        fresh = samples(self.world, seed, self.pool, purpose="lab probe")
        return federation(self.world, fresh, np.zeros(self.pool, dtype=np.int64), seed, tests=2)


def _auroc(wrong: Tensor, probe: Misalignment, subject: Subject) -> float:
    """NaN where all filters are of one kind."""
    if wrong.all() or not wrong.any():
        return float("nan")
    (score,) = probe.scores(subject).values()
    return float(roc_auc_score(wrong.numpy(), -score.numpy()))


def _rows(case: Case, number: int, judged: list[dict[str, float]]) -> list[Row]:
    cosine, h, tau = case
    about = {
        "start": grid.start_name(cosine),
        "cosine": cosine,
        "h": h,
        "tau": tau,
        "round": number,
    }
    share = statistics({"misaligned": torch.tensor([found["misaligned"] for found in judged])})
    return [
        about
        | {"measure": kind, "misaligned": share["misaligned"]}
        | statistics({"auroc": torch.tensor([found[kind] for found in judged], dtype=torch.float64)})
        for kind in KINDS
    ]


def _claim(rows: list[Row], kind: str) -> Claim:
    own = [row for row in rows if row["measure"] == kind and row["auroc"] is not None and row["misaligned"] >= 0.05]
    low, high = min(row["auroc"] for row in own), max(row["auroc"] for row in own)
    return Claim(
        f"{kind!r} finds misaligned filters with an AUROC of at least 0.9 where at least 5 % are misaligned",
        "reconstructions of Equation 8",
        "ours",
        verdict(row["auroc"] >= 0.9 for row in own),
        f"mean AUROC over seeds between {low:.3f} and {high:.3f} in {len(own)} cases",
    )
