"""Signal over noise, Gamma / sum P-bar, of aligned and misaligned filters while they are trained."""

from __future__ import annotations

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedstart.algorithms.fedavg import FedAvg
from fedstart.lab import coefficients, predictions
from fedstart.lab.exact import follow
from fedstart.lab.experiments import _grid as grid
from fedstart.lab.findings import Claim, Findings, Row, below, fit, relative, tested, verdict, where
from fedstart.lab.geometry import Geometry
from fedstart.lab.runs import groups, in_pieces, statistics, whole_rounds
from fedstart.lab.starts import random
from fedstart.lab.world import World
from fedstart.types import STRICT

POINTS = 24
"""Places along a run at which it is looked at, evenly spaced in the logarithm of the local steps."""


@dataclass(frozen=True, config=STRICT)
class Ratio:
    """From a random start: the ratio over local steps, and of each filter at the end."""

    world: World = World()
    seeds: grid.Seeds = 20
    hs: grid.Balances = (0.0, 1.0)
    taus: grid.Taus = (1, 100)
    eta: grid.Eta = 0.1
    steps: grid.Steps = 1000

    def run(self, progress: grid.Progress) -> Findings:
        """Follows every seed at every h and tau."""
        progress.total(len(self.taus))
        seeds = range(self.seeds)
        starts = [random(self.world, seed) for seed in seeds]
        conditions = Geometry.stack([grid.geometry(self.world, seeds, starts, h) for h in self.hs])
        rows: list[Row] = []
        filters: list[Row] = []
        ends: dict[tuple[float, int], grid.Columns] = {}
        for tau in self.taus:
            path, learnt = self._followed(conditions, tau)
            for place, h in enumerate(self.hs):
                own = slice(place * self.seeds, (place + 1) * self.seeds)
                for step, found in path.items():
                    ends[h, tau] = {name: values[own] for name, values in found.items()}
                    rows += _rows({"h": h, "tau": tau, "step": step}, ends[h, tau])
                filters += _filters({"h": h, "tau": tau}, conditions[own][:1], learnt[own][:1])
            progress.advance(f"ratio, tau = {tau}")
        scale = predictions.ratio_scale(self.world)
        for row in rows:
            row |= {"scale": scale, "twice": 2 * scale} if row["group"] == "aligned" else {}
        last = [row for row in rows if row["step"] == self.steps and row["group"] == "aligned"]
        name, source = "||mu||^2 / (sigma_p^2 (d - 1))", "two-layer analysis of ours"
        fits = [
            *fit(
                last, "scale", "ratio", ("scale of the ratio", name, source, "inferred"), "all noise active: lower end"
            ),
            *fit(
                last,
                "twice",
                "ratio",
                ("twice that", f"2 {name}", source, "ours"),
                "half of the noise active: upper end",
            ),
        ]
        title, question = "Signal over noise, filter by filter", "Which filters learn signal, and which mostly noise?"
        return Findings(title, question, rows, {"filters": filters}, fits, _claims(ends, rows))

    def _followed(self, conditions: Geometry, tau: int) -> tuple[dict[int, grid.Columns], Tensor]:
        """Columns of all runs at each place that is looked at, by local steps so far; and the last coefficients."""
        schedule, rounds = whole_rounds(tau, self.steps)
        seen = set(np.unique(np.geomspace(1, rounds, POINTS).round().astype(int)).tolist())

        def work(piece: Geometry) -> tuple[dict[int, grid.Columns], Tensor]:
            found, learnt = {}, torch.zeros_like(piece.overlaps)
            for moment in follow(piece, FedAvg(), self.eta, schedule, rounds):
                learnt = moment.coefficients
                if moment.number in seen:
                    found[int(moment.steps[0])] = groups(piece, learnt)
            return found, learnt

        pieces = in_pieces(conditions, work)
        joined = {
            step: {name: torch.cat([found[step][name] for found, _ in pieces]) for name in pieces[0][0][step]}
            for step in pieces[0][0]
        }
        return joined, torch.cat([learnt for _, learnt in pieces])


def _rows(about: Row, columns: grid.Columns) -> list[Row]:
    return [
        about
        | {"group": group}
        | statistics({quantity: columns[f"{quantity}_{group}"] for quantity in ("signal", "noise", "ratio")})
        for group in ("aligned", "misaligned")
    ]


def _filters(about: Row, geometry: Geometry, learnt: Tensor) -> list[Row]:
    """Every filter of one run at the end of training."""
    found, wrong = coefficients.read(geometry, learnt), coefficients.at_start(geometry).misaligned[0]
    noise = found.positive.sum(2)[0]
    return [
        about
        | {"filter": place % geometry.filters, "class": int(geometry.own[place])}
        | {"group": "misaligned" if wrong[place] else "aligned"}
        | {"signal": float(found.signal[0, place]), "noise": float(noise[place]), "ratio": float(found.ratio[0, place])}
        for place in range(len(wrong))
    ]


def _claims(ends: dict[tuple[float, int], grid.Columns], rows: list[Row]) -> list[Claim]:
    lower = {
        f"h = {h:g}, tau = {tau}": relative(found["ratio_misaligned"], found["ratio_aligned"])
        for (h, tau), found in ends.items()
    }
    spans = {}
    for h, tau in ends:
        path = [row["ratio"] for row in rows if (row["h"], row["tau"], row["group"]) == (h, tau, "aligned")]
        spans[f"h = {h:g}, tau = {tau}"] = max(path) / min(path)
    return [
        tested(
            "at the end misaligned filters have a smaller Gamma / sum P-bar than aligned ones",
            "lemma on misaligned filters",
            "paper, second-hand",
            lower,
            below,
            "misaligned against aligned: ",
            percent=True,
        ),
        Claim(
            "Gamma / sum P-bar of aligned filters stays of the same size throughout training (within a factor of 2)",
            "lemma on aligned filters",
            "paper, second-hand",
            verdict(span < 2 for span in spans.values()),
            "largest / smallest mean along the run: " + "; ".join(f"{at}: {span:.2f}" for at, span in spans.items()),
            where({at: span < 2 for at, span in spans.items()}),
        ),
    ]
