"""What a start brings: misaligned filters and test error over the cosine of pre-training, and the sign-flip control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedstart.algorithms.fedavg import FedAvg
from fedstart.lab import coefficients, error, predictions
from fedstart.lab.exact import mean_loss
from fedstart.lab.experiments import _grid as grid
from fedstart.lab.findings import Claim, Findings, Row, above, difference, fit, shown, tested, verdict
from fedstart.lab.geometry import Geometry
from fedstart.lab.runs import Training, statistics
from fedstart.lab.starts import Pretraining as Before
from fedstart.lab.starts import flipped, interpolated, random, turned
from fedstart.lab.world import World, signals
from fedstart.types import STRICT

Name = tuple[str, float | None, float | None]
"""Kind of start, cosine of its pre-training, share of the pre-trained start in it."""
Found = Mapping[tuple[Name, int], grid.Columns]

SHOWN = ("misaligned", "error_start", "loss_start", "error", "signal_aligned", "signal_misaligned")


@dataclass(frozen=True, config=STRICT)
class Pretraining:
    """Starts pre-trained on a turned signal, centrally and federatedly; signs turned; and mixtures with random ones."""

    world: World = World()
    seeds: grid.Seeds = 20
    h: Annotated[float, Field(ge=0, le=1, description="of the downstream clients, scaled")] = 0.0
    taus: grid.Taus = (1, 100)
    cosines: grid.Cosines = (-0.5, 0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
    shares: Annotated[tuple[float, ...], Field(description="of the start pre-trained at the last cosine but one")] = (
        0.01,
        0.03,
        0.1,
        0.3,
    )
    centrally: Before = Before()
    federated: Before = Before(clients=4, h=0.0, tau=10)
    eta: grid.Eta = 0.1
    steps: grid.Steps = 1000
    draws: grid.Draws = 2000

    def run(self, progress: grid.Progress) -> Findings:
        """Makes every start, looks at it, and trains it at every tau."""
        progress.total(len(self.taus) + 1)
        seeds = range(self.seeds)
        starts, guesses = self._starts(seeds)
        conditions = {name: grid.geometry(self.world, seeds, found, self.h) for name, found in starts.items()}
        progress.advance("pre-training")
        before = {name: _before(found, self.world.sigma_p, self.draws) for name, found in conditions.items()}
        training = Training(FedAvg(), self.eta, self.steps, self.draws)
        found: dict[tuple[Name, int], grid.Columns] = {}
        rows: list[Row] = []
        runs = list(conditions.values())
        for tau, measured in grid.swept(progress, "pretraining", runs, training, self.taus, self.world.sigma_p):
            for name, columns in zip(conditions, measured, strict=True):
                found[name, tau] = columns = {**columns, **before[name]}
                about = {"start": name[0], "cosine": name[1], "share": name[2], "h": self.h, "tau": tau}
                guess = {"predicted_misaligned": guesses.get(name)}
                rows.append(about | guess | statistics({key: columns[key] for key in SHOWN}))
        first = [row for row in rows if row["tau"] == self.taus[0]]
        about = (
            "share after turning",
            "mean_f Phi(-c a_f / (sqrt(1 - c^2) s))",
            "a normal rest of each filter",
            "ours",
        )
        fits = fit(first, "predicted_misaligned", "misaligned", about, "from the filters pre-trained at cosine 1")
        title = "What pre-training brings, and whether alignment alone does it"
        question = "How does closeness of the pre-training signal change misaligned filters and test error?"
        return Findings(title, question, rows, predictions=fits, claims=_claims(found, self))

    def _starts(self, seeds: range) -> tuple[dict[Name, list[Tensor]], dict[Name, float]]:
        """Filters of each seed by start, and the share of misaligned filters predicted for it."""
        world = self.world
        scratch = [random(self.world, seed) for seed in seeds]
        starts: dict[Name, list[Tensor]] = {("random", None, None): scratch}
        guesses: dict[Name, float] = {("random", None, None): predictions.random_share()}
        for kind, settings in {"pre-trained": self.centrally, "federated": self.federated}.items():
            (begun,) = grid.pretrained_starts(world, seeds, (1.0,), settings).values()
            for cosine in self.cosines:
                starts[kind, cosine, None] = [turned(start, world, cosine) for start in begun]
                guesses[kind, cosine, None] = _guess(begun, world, cosine)
            if kind == "pre-trained" and len(self.cosines) > 1:
                near = starts[kind, self.cosines[-2], None]
                for share in self.shares:
                    mixed = [interpolated(a, b, share) for a, b in zip(scratch, near, strict=True)]
                    starts["interpolated", self.cosines[-2], share] = mixed
        for kind, aligned in {"all aligned": True, "all misaligned": False}.items():
            starts[kind, None, None] = [flipped(start, world, aligned) for start in scratch]
        return starts, guesses


def _guess(begun: list[Tensor], world: World, cosine: float) -> float:
    """The predicted share of misaligned filters, mean over seeds, for two classes and more."""
    own = signals(world).repeat_interleave(world.m, 0) / world.mu
    free = signals(world, 0.0).repeat_interleave(world.m, 0) / world.mu
    found = torch.stack(begun)
    return float(predictions.turned_share((found * own).sum(2), (found * free).sum(2), cosine).mean())


def _before(geometry: Geometry, sigma_p: float, draws: int) -> dict[str, Tensor]:
    """Share of misaligned filters, test error and training loss before any training, each of shape (seeds,)."""
    nothing = torch.zeros_like(geometry.overlaps)
    return {
        "misaligned": coefficients.at_start(geometry).misaligned.double().mean(1),
        "error_start": error.simulated(geometry, nothing, sigma_p, draws),
        "loss_start": mean_loss(geometry, nothing),
    }


def _claims(found: Found, settings: Pretraining) -> list[Claim]:
    cosines, longest, shortest = settings.cosines, max(settings.taus), min(settings.taus)
    claims = []
    if len(cosines) > 1:
        far, near = min(cosines, key=abs), max(cosines)
        shares = [found[("pre-trained", cosine, None), longest]["misaligned"] for cosine in (far, near)]
        fewer = difference(shares[0], shares[1])
        claims.append(
            Claim(
                f"fewer filters are misaligned after pre-training at cosine {near:g} than at {far:g}",
                "abstract, and section on pre-training",
                "paper, second-hand",
                verdict([above(fewer)]),
                f"share at {far:g}: {shares[0].mean():.3f}, at {near:g}: {shares[1].mean():.3f}, less: {shown(fewer)}",
            )
        )
    kinds = {
        kind: [found[(kind, None, None), tau] for tau in (longest, shortest)]
        for kind in ("all aligned", "all misaligned")
    }
    rise = {kind: difference(a["error"], b["error"]) for kind, (a, b) in kinds.items()}
    more = difference(
        *(kinds[kind][0]["error"] - kinds[kind][1]["error"] for kind in ("all misaligned", "all aligned"))
    )
    losses = [kinds[kind][0]["loss_start"].mean() for kind in ("all aligned", "all misaligned")]
    claims.append(
        Claim(
            f"alignment alone carries the effect: tau = {longest} hurts where all are misaligned, and only there",
            "sign-flip control",
            "ours",
            verdict([above(more), rise["all aligned"].difference < more.difference / 10] if shortest < longest else []),
            f"rise of test error from tau = {shortest} to {longest} at h = {settings.h:g}: "
            f"all misaligned {shown(rise['all misaligned'], 4)}, all aligned {shown(rise['all aligned'], 4)}, "
            f"difference {shown(more, 4)}; "
            f"training loss at the start {losses[0]:.4f} (aligned), {losses[1]:.4f} (misaligned)",
        )
    )
    if cosines:
        versus = {
            cosine: difference(
                found[("federated", cosine, None), longest]["error"],
                found[("pre-trained", cosine, None), longest]["error"],
            )
            for cosine in cosines
        }
        claims.append(
            tested(
                f"federated pre-training ({settings.federated.clients} clients) is as good a start as centralised",
                "left open by the paper",
                "ours",
                {f"cosine {cosine:g}": contrast for cosine, contrast in versus.items()},
                lambda contrast: not above(contrast),
                f"test error at tau = {longest}, federated less centralised: ",
                digits=4,
            )
        )
    return claims
