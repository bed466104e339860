"""Communication to equal test error: constant tau against schedules, the adaptive one among them."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedstart.algorithms.fedavg import FedAvg
from fedstart.lab import error
from fedstart.lab.exact import Moment, follow
from fedstart.lab.experiments import _grid as grid
from fedstart.lab.findings import Claim, Findings, Row, above, below, proportion, shown, tested, verdict, where
from fedstart.lab.geometry import Geometry
from fedstart.lab.runs import Training, in_pieces, outcomes, statistics
from fedstart.lab.schedules import Adaptive, Constant, Cosine, Step
from fedstart.lab.starts import Pretraining, random
from fedstart.lab.world import World
from fedstart.types import STRICT

Place = tuple[float | None, float]
"""Cosine of pre-training (None = random start) and h."""
Path = dict[str, Tensor]
"""`rounds`, `steps` (to the target, NaN if never), `last` (error), shape (runs,); `error`, `tau` (looks, runs)."""


@dataclass(frozen=True, config=STRICT)
class Schedule:
    """Rounds until a run's test error is near that of gradient descent (tau = 1) after `steps` local steps.

    A run stops there, or after `budget` rounds, or when it has made `most` local steps; one that does not get there
    counts `budget` rounds.
    """

    world: World = World()
    seeds: grid.Seeds = 20
    first_seed: Annotated[int, Field(ge=0, description="0 ... 159 served to choose the schedules")] = 1000
    hs: grid.Balances = (0.0, 0.2, 1.0)
    cosine: Annotated[float, Field(ge=-1, le=1, description="of a pre-trained start, at the smallest h")] = 0.9
    pretraining: Pretraining = Pretraining()
    taus: grid.Taus = (1, 2, 5, 10, 20, 50, 100, 200)
    adaptive: Adaptive = Adaptive()
    decay: Step = Step(first=200, factor=0.5)
    growth: Step = Step(first=1, factor=2.0)
    cosine_decay: Cosine = Cosine()
    slack: Annotated[float, Field(ge=0, description="share of the error that the target lies above it")] = 0.25
    floor: Annotated[float, Field(ge=0, description="and at least so much")] = 0.001
    budget: Annotated[int, Field(ge=1, description="rounds at most")] = 300
    most: Annotated[int, Field(ge=1, description="local steps at most")] = 3000
    eta: grid.Eta = 0.1
    steps: grid.Steps = 1000
    draws: grid.Draws = 2000

    def run(self, progress: grid.Progress) -> Findings:
        """Follows every schedule from every start at every h, looking at the test error as it goes."""
        schedules = self._schedules()
        progress.total(len(schedules) + 1)
        places, conditions = self._conditions()
        training = Training(FedAvg(), self.eta, self.steps, self.draws)
        reference = outcomes(conditions, training, 1, self.world.sigma_p)["error"]
        target = reference + (self.slack * reference).clamp(min=self.floor)
        progress.advance("target of tau = 1")
        paths: dict[str, Path] = {}
        looks = looked_at(self.budget)
        for name, schedule in schedules.items():
            pieces = in_pieces(conditions, partial(self._followed, schedule, looks), target)
            paths[name] = {key: torch.cat([piece[key] for piece in pieces], -1) for key in pieces[0]}
            progress.advance(f"schedule {name}")
        rows, curves = self._rows(places, paths), self._curves(places, paths, looks)
        question = "How many rounds does a schedule of local steps take to the error of gradient descent?"
        claims = _claims(places, self._spent(places, paths), paths, self.seeds, self.budget)
        return Findings("Fewer rounds by changing tau", question, rows, {"curves": curves}, claims=claims)

    def _schedules(self) -> dict[str, Any]:
        return {f"constant {tau}": Constant(tau) for tau in self.taus} | {
            "adaptive": self.adaptive,
            "step decay": self.decay,
            "cosine decay": self.cosine_decay,
            "step growth": self.growth,
        }

    def _conditions(self) -> tuple[list[Place], Geometry]:
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        scratch = [random(self.world, seed) for seed in seeds]
        ready = grid.pretrained_starts(self.world, seeds, (self.cosine,), self.pretraining)[self.cosine]
        places: list[Place] = [*((None, h) for h in self.hs), (self.cosine, min(self.hs))]
        runs = [grid.geometry(self.world, seeds, scratch if cosine is None else ready, h) for cosine, h in places]
        return places, Geometry.stack(runs)

    def _followed(self, schedule: Any, looks: list[int], piece: Geometry, target: Tensor) -> Path:
        """What a schedule does to the runs of a piece; a run that has stopped keeps its last error, and tau = 0."""
        reached, steps = torch.full_like(target, torch.nan), torch.full_like(target, torch.nan)
        wrong, over = torch.ones_like(target), torch.zeros_like(target, dtype=torch.bool)
        errors, taus = [], []

        def tau(number: int, last: Moment | None) -> Tensor:
            return schedule.steps(piece, number, last) * ~over

        for moment in follow(piece, FedAvg(), self.eta, tau, self.budget):
            if moment.number not in looks:
                continue
            going = (~over).nonzero().squeeze(1)
            wrong[going] = error.simulated(piece[going], moment.coefficients[going], self.world.sigma_p, self.draws)
            there = (wrong <= target) & ~over
            reached[there], steps[there] = float(moment.number), moment.steps[there].double()
            errors.append(wrong.clone())
            taus.append(moment.tau.double())
            over |= there | (moment.steps >= self.most)
            if over.all():
                break
        rest = len(looks) - len(errors)
        errors, taus = errors + [wrong] * rest, taus + [torch.zeros_like(wrong)] * rest
        return {
            "rounds": reached,
            "steps": steps,
            "last": wrong,
            "error": torch.stack(errors),
            "tau": torch.stack(taus),
        }

    def _spent(self, places: list[Place], paths: dict[str, Path]) -> dict[tuple[Place, str], Tensor]:
        """Rounds of each seed to the target; the whole budget where it is never met."""
        return {
            (place, name): path["rounds"][self._seeds(at)].nan_to_num(self.budget)
            for at, place in enumerate(places)
            for name, path in paths.items()
        }

    def _seeds(self, at: int) -> slice:
        return slice(at * self.seeds, (at + 1) * self.seeds)

    def _rows(self, places: list[Place], paths: dict[str, Path]) -> list[Row]:
        spent = self._spent(places, paths)
        rows: list[Row] = []
        for at, place in enumerate(places):
            best = best_constant(spent, [place])
            for name, path in paths.items():
                own = {key: path[key][self._seeds(at)] for key in ("rounds", "steps", "last")}
                rows.append(
                    {"start": grid.start_name(place[0]), "cosine": place[0], "h": place[1]}
                    | {"schedule": name, "best_constant": best}
                    | {"reached": float((~own["rounds"].isnan()).double().mean())}
                    | statistics({"steps": own["steps"], "error": own["last"]})
                    | _factors(spent[place, name], spent[place, best])
                )
        return rows

    def _curves(self, places: list[Place], paths: dict[str, Path], looks: list[int]) -> list[Row]:
        return [
            {"start": grid.start_name(place[0]), "h": place[1], "schedule": name, "round": number}
            | {"over": float((paths[name]["tau"][look, self._seeds(at)] == 0).double().mean())}
            | statistics({key: paths[name][key][look, self._seeds(at)] for key in ("error", "tau")})
            for at, place in enumerate(places)
            for name in paths
            for look, number in enumerate(looks)
            if (paths[name]["tau"][look, self._seeds(at)] > 0).any()
        ]


def _factors(rounds: Tensor, best: Tensor) -> Row:
    """Geometric mean of the rounds of all seeds, and the share saved against other rounds, with 95 % intervals."""
    own, ratio = proportion(rounds, torch.ones_like(rounds)), proportion(rounds, best)
    # A saving is the other way round than a ratio, and so are the ends of its interval.
    saved = (ratio.difference, ratio.high, ratio.low)
    ends = ("", "_low", "_high")
    return {f"rounds{end}": None if x is None else 1 + x for end, x in zip(ends, own[:3], strict=True)} | {
        f"saved{end}": None if x is None else -x for end, x in zip(ends, saved, strict=True)
    }


def looked_at(rounds: int) -> list[int]:
    """Rounds at which the error is simulated: the first ten, then every tenth part further, and the last."""
    grown = 10 * 1.1 ** np.arange(0, 200)
    return sorted({*range(1, min(10, rounds) + 1), *(int(r) for r in grown.round() if r <= rounds), rounds})


def best_constant(spent: dict[tuple[Place, str], Tensor], places: list[Place]) -> str:
    """The constant tau with the fewest rounds in these places together (geometric mean): chosen in hindsight."""
    names = {name for _, name in spent if name.startswith("constant")}

    def together(name: str) -> float:
        return float(torch.stack([spent[place, name] for place in places]).sum(0).log().mean())

    return min(sorted(names), key=together)


def _claims(
    places: list[Place], spent: dict[tuple[Place, str], Tensor], paths: dict[str, Path], seeds: int, budget: int
) -> list[Claim]:
    everywhere = best_constant(spent, places)

    def total(name: str) -> Tensor:
        return torch.stack([spent[place, name] for place in places]).sum(0)

    joint = proportion(total("adaptive"), total(everywhere))
    each = {words(place): (best_constant(spent, [place]), place) for place in places}
    own = {at: proportion(spent[place, "adaptive"], spent[place, best]) for at, (best, place) in each.items()}
    late = {
        f"{name}, {at}": proportion(spent[place, name], spent[place, best])
        for at, (best, place) in each.items()
        for name in ("step decay", "cosine decay")
    }
    reached = [
        float((~paths["adaptive"]["rounds"][k * seeds : (k + 1) * seeds].isnan()).double().mean())
        for k in range(len(places))
    ]
    there = ", ".join(f"{words(place)}: {share:.2f}" for place, share in zip(places, reached, strict=True))
    return [
        Claim(
            "adaptive tau takes fewer rounds to equal test error than the best constant tau for all settings",
            "schedule of ours, after the paper's suggestion",
            "ours",
            verdict([below(joint)]),
            f"rounds over all {len(places)} settings together against {everywhere}: {shown(joint, percent=True)}; "
            f"share of seeds that get there: {there}",
        ),
        Claim(
            "adaptive tau takes fewer rounds than the best constant tau of each setting, chosen in hindsight",
            "schedule of ours, after the paper's suggestion",
            "ours",
            verdict(below(f) for f in own.values()),
            "; ".join(f"{at}, against {each[at][0]}: {shown(f, percent=True)}" for at, f in own.items()),
            where({at: below(f) for at, f in own.items()}),
        ),
        tested(
            "starting with a large tau and decreasing it takes no more rounds than the best constant tau",
            "guidance",
            "paper, second-hand",
            late,
            lambda contrast: not above(contrast),
            f"more rounds ({budget} = never there): ",
            percent=True,
        ),
    ]


def words(place: Place) -> str:
    """`random start, h = 0`."""
    start = "random start" if place[0] is None else f"start pre-trained at cosine {place[0]:g}"
    return f"{start}, h = {place[1]:g}"
