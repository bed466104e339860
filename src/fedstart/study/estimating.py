"""How long a study would take on this machine: a few local steps of every kind of cell are timed, the rest is counted.

Nothing is written but what planning a study leaves in the cache: decoded examples, and how to compute.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import fmean

import joblib
import numpy as np

from fedstart.data.federation import Positions
from fedstart.engines import batches
from fedstart.engines.allocation import one_torch_thread
from fedstart.engines.local import LocalEngine
from fedstart.schedules import Adaptive, Plateau
from fedstart.study import selection
from fedstart.study.cells import Cell, Material, Run, plan_cells
from fedstart.study.running import candidates_of
from fedstart.study.schema import Study
from fedstart.study.work import Progress, title
from fedstart.training import of_round, train
from fedstart.types import Diverged, Plan, State, Weights

SECONDS = 2.0
"""About how long the longer of the timed rounds is, where steps are short."""
STEPS = (3, 20)
"""Fewest and most local steps of that round; the shorter has one."""
ENOUGH = 10.0
"""Seconds after which a round is not timed once more."""
FREE = ("seed", "rounds", "lr", "server_lr", "local_steps", "local_epochs", "schedule")
"""Settings of a plan that do not change how long one local step takes."""


@dataclass(frozen=True)
class Speed:
    """Seconds of a round but for its local steps, of a local step of the whole cohort, and of scoring all clients.

    `part` is what clients take their steps on: "train", or "support" where the method keeps examples to judge by.
    """

    fixed: float
    step: float
    evaluation: float = 0.0
    part: str = "train"


@dataclass(frozen=True)
class Row:
    """Cells of one name and architecture: their number, rounds of each, mean local steps of a client and seconds in a
    round (scoring included), and the seconds that all of them add to the study.
    """

    cells: str
    number: int
    rounds: int
    local_steps: float
    round_seconds: float
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """Seconds of the whole study with so many jobs, by `rows`; `threads` of each cell (None = all cores).

    `notes` are sentences that say what the numbers leave out or take for granted.
    """

    seconds: float
    jobs: int
    threads: int | None
    cores: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Planned:
    """A cell that trains: what its row is called, and its kind. Cells of a kind take as long for a local step."""

    cell: Cell
    run: Run
    name: str
    kind: str


def estimate(
    study: Study,
    *,
    jobs: int = 1,
    threads: int | None = None,
    progress: Progress | None = None,
    speed: Callable[[Run, int | None], Speed] | None = None,
) -> Estimate:
    """How long `running.run` would take for the whole study with these jobs and threads, that of candidates included.

    Each kind of cell is timed once, alone, on the threads that a cell has when all jobs run (`speed` does it; none =
    `measure`). Time is shared out evenly over the jobs. It is a lower end: cells side by side share memory and its
    bandwidth, the last ones leave cores idle, and probes and personal models are left out. Local steps that depend on
    how training goes are taken as in the first round, and what is to be chosen as the first candidate.
    Raises ValueError when the data do not fit the study, as `running.run` does before any work.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    planned, cores = _planned(study), joblib.cpu_count()
    jobs = max(1, min(jobs, len(planned)) if threads else min(jobs, len(planned), cores))
    threads = threads or (None if jobs == 1 else cores // jobs)
    firsts: dict[str, _Planned] = {}
    for one in planned:
        firsts.setdefault(one.kind, one)
    if progress:
        progress.total(len(firsts))
    speeds: dict[str, Speed] = {}
    for kind, one in firsts.items():
        speeds[kind] = (speed or measure)(one.run, threads)
        if progress:
            progress.advance(title(one.cell))
    rows = tuple(_rows(planned, speeds, jobs))
    return Estimate(sum(row.seconds for row in rows), jobs, threads, cores, rows, tuple(_notes(study, planned)))


def measure(run: Run, threads: int | None) -> Speed:
    """Times short rounds of a run from the initial weights, which take as long as any others, and one scoring of all
    clients where there are test examples.

    A round is taken to be linear in its local steps. That leaves out that a second-order method walks long paths in
    part again, and that methods with a memory have none to read in the first round.
    """
    weights = run.model.init(run.plan.seed)
    with one_torch_thread(), LocalEngine(threads, run.execution) as engine:
        part = _part(run, engine, weights) if run.plan.local_epochs else "train"
        fixed, step = line(lambda steps: _round(run, engine, weights, steps))
        tested = "test" in run.federation.parts
        evaluation = _shortest(lambda: _scoring(run, engine, weights), 2) if tested else 0.0
    return Speed(fixed, step, evaluation, part)


def line(seconds: Callable[[int], float]) -> tuple[float, float]:
    """Seconds of a round without local steps, and of a step, where `seconds(n)` runs a round of n steps.

    The shortest time of each of two numbers of steps counts, so what other programs take now and then does not.
    """
    # Three of the shorter: the first of all also loads libraries and makes room in memory.
    few = _shortest(lambda: seconds(1), 3)
    least, most = STEPS
    steps = max(least, min(most, int(SECONDS / few) if few > 0 else most))
    step = max(0.0, (_shortest(lambda: seconds(steps), 2) - few) / (steps - 1))
    return max(0.0, few - step), step


def local_steps(run: Run, part: str) -> float:
    """Local steps of a client in a round: the mean over the rounds, or over clients that pass over the part.

    Of a schedule that looks at training, the first round's.
    """
    plan, clients = run.plan, run.federation.eligible
    if plan.local_steps:
        return fmean(of_round(plan, number, None).local_steps or 0 for number in range(1, plan.rounds + 1))
    sizes = batches.sizes(run.federation, plan, part, 1, clients)
    return fmean(batches.steps(plan, examples) for examples in sizes.tolist())


def _planned(study: Study) -> list[_Planned]:
    """The cells that train, in the order in which they would run: those of the candidates first."""
    material = Material(selection.first(study))
    proper = _of(material, "")
    if not selection.wanted(study):
        return proper
    candidates = candidates_of(study, material)
    try:
        return [*_of(Material(candidates, material.executions), "choosing: "), *proper]
    except ValueError as error:
        raise ValueError(f"[selection]: {error}") from None


def _of(material: Material, about: str) -> list[_Planned]:
    found = []
    for cell in plan_cells(material):
        if not cell.rounds:
            continue
        if cell.kind == "pretrain":
            run, name = material.pretraining_run(cell.start, cell.seed, cell.case), f"pre-training {cell.start}"
        else:
            place = (cell.start, cell.algorithm, cell.partition, cell.task, cell.seed, cell.begin)
            run, name = material.downstream_run(*place), f"downstream {cell.algorithm}"
        found.append(_Planned(cell, run, about + name, _kind(material, cell, run)))
    return found


def _kind(material: Material, cell: Cell, run: Run) -> str:
    """Everything that the seconds of a round depend on but for the number of local steps.

    Of a method's fractional settings, such as rates, that is only whether they are 0. Clients of other seeds, tasks,
    partitions and left-out domains are taken to be alike; not so clients of a start that shares out in its own way.
    """
    settings, plan = run.settings["settings"], run.settings["plan"]
    return json.dumps(
        [
            cell.kind,
            [run.settings[name] for name in ("model", "method", "execution")],
            {name: bool(value) if isinstance(value, float) else value for name, value in settings.items()},
            {name: value for name, value in plan.items() if name not in FREE},
            isinstance(run.plan.schedule, Adaptive),
            str(material.parts.sharings[cell.start]) if cell.kind == "pretrain" else "",
        ]
    )


def _rows(planned: Sequence[_Planned], speeds: dict[str, Speed], jobs: int) -> Iterable[Row]:
    grouped: dict[tuple[str, str], list[_Planned]] = {}
    for one in planned:
        grouped.setdefault((one.name, one.kind), []).append(one)
    for (name, kind), group in grouped.items():
        speed, rounds = speeds[kind], group[0].cell.rounds
        steps = fmean(local_steps(one.run, speed.part) for one in group)
        seconds = speed.fixed + steps * speed.step + speed.evaluation
        if sum(other == name for other, _ in grouped) > 1:
            name += f" from {', '.join(dict.fromkeys(one.cell.start for one in group))}"
        yield Row(name, len(group), rounds, steps, seconds, len(group) * rounds * seconds / jobs)


def _notes(study: Study, planned: Sequence[_Planned]) -> Iterable[str]:
    left = {"the probes on the way": study.downstream.watch, "each client's own fine-tuning": study.downstream.personal}
    if any(left.values()):
        yield f"Not counted: {', '.join(what for what, asked in left.items() if asked)}."
    if seen := dict.fromkeys(p.name for p in planned if isinstance(p.run.plan.schedule, Adaptive | Plateau)):
        yield f"Local steps as in the first round, as training decides on later ones: {', '.join(seen)}."
    if selection.wanted(study):
        yield "Where settings are chosen, the study proper is counted with the first candidate."


def _round(run: Run, engine: LocalEngine, weights: Weights, steps: int) -> float:
    """Seconds of the first round with so many local steps."""
    # An adaptive schedule makes the engine compare the clients' updates; the others only change the number of steps.
    schedule = Adaptive() if isinstance(run.plan.schedule, Adaptive) else None
    plan = replace(run.plan, rounds=1, local_steps=steps, local_epochs=None, schedule=schedule)
    start = time.perf_counter()
    # A round that diverges takes as long as any other.
    with suppress(Diverged):
        list(train(run.method.method, run.model, run.federation, plan, weights, engine))
    return time.perf_counter() - start


def _scoring(run: Run, engine: LocalEngine, weights: Weights) -> float:
    start = time.perf_counter()
    engine.evaluate(run.model, run.federation, weights)
    return time.perf_counter() - start


def _shortest(seconds: Callable[[], float], times: int) -> float:
    found: list[float] = []
    while len(found) < times and sum(found) < ENOUGH:
        found.append(seconds())
    return min(found)


def _part(run: Run, engine: LocalEngine, weights: Weights) -> str:
    """What the method's clients take their steps on, seen from one client with four examples that uses half as support.

    Nothing else says it: the method's code chooses the part.
    """
    held = run.federation.parts["train"].values[:4]
    few = Positions(np.array([0, len(held)]), held)
    federation = replace(run.federation, parts={"train": few}, server=run.federation.server[:1])
    plan = Plan(rounds=1, local_epochs=1, batch_size=4, query_fraction=0.5)
    cohort = engine.cohort(run.model, federation, plan, 1, (0,))
    run.method.method.step(State(weights), cohort)
    return "train" if cohort.loss_count == len(held) else "support"
