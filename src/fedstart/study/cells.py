"""What a study consists of: its federations and models, and the cells that can run in any order on any worker."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from fedstart import keys, tree
from fedstart.data import sources
from fedstart.data.federation import Federation
from fedstart.engines.batches import at_server
from fedstart.engines.calibration import calibrate
from fedstart.engines.execution import Execution
from fedstart.models import Model
from fedstart.study.federations import Federations
from fedstart.study.schema import Method, Study, build
from fedstart.training import draw
from fedstart.types import Plan, Weights


@dataclass(frozen=True)
class Cell:
    """One run of a study. `key` names its directory: readable, and different whenever its result could differ.

    `start`, `algorithm` and `partition` are the names that results use; the last two and `task` belong to a
    downstream cell, as do `origin`, the key of the pre-training cell that it begins from, and `begin`, the
    fingerprint of what that cell's weights depend on. `case` is the value that pre-training leaves out; "" where
    the study leaves out none.
    """

    kind: Literal["pretrain", "downstream"]
    start: str
    seed: int
    key: str
    rounds: int
    algorithm: str = ""
    partition: str = ""
    task: int = 0
    origin: str = ""
    begin: str = ""
    case: str = ""

    def place(self) -> dict[str, Any]:
        """Where the cell stands in its study: what cell.json holds."""
        place: dict[str, Any] = {"kind": self.kind, "start": self.start}
        if self.kind == "downstream":
            place |= {"algorithm": self.algorithm, "partition": self.partition, "task": self.task}
        return {**place, **({"case": self.case} if self.case else {}), "seed": self.seed}


@dataclass(frozen=True, eq=False)
class Run:
    """A cell ready to run: what trains, and everything its result depends on.

    `personal` is the plan by which each client goes on alone from the final weights; None = no client does. `probes`
    look at the weights at the shares `watched_at` of the rounds.
    """

    method: Method
    model: Model
    federation: Federation
    plan: Plan
    execution: Execution
    settings: Mapping[str, Any]
    fingerprints: Mapping[str, str]
    personal: Plan | None = None
    probes: Mapping[str, Any] = field(default_factory=dict)
    watched_at: tuple[float, ...] = ()

    @property
    def identity(self) -> str:
        """SHA-256 of everything that the result depends on."""
        return _sha256({"settings": self.settings, "fingerprints": self.fingerprints})

    @property
    def outcome(self) -> str:
        """What downstream cells depend on where this run makes their start: without training, the weights alone."""
        return self.identity if self.plan.rounds else self.settings["begin"]


class Material:
    """What the cells of a study are made of: one copy of the examples, and federations, models and plans.

    `executions` are choices made before for this study (by kind of cell); what is not there is measured when it is
    needed, and then is in `executions` too.
    Raises ValueError for data that cannot be read, columns, values and classes that do not exist, too few examples.
    """

    def __init__(self, study: Study, executions: Mapping[str, Execution] = MappingProxyType({})) -> None:
        self.study = study
        self.executions = {
            kind: chosen for kind, chosen in executions.items() if asdict(chosen).items() >= study.execution.items()
        }
        self.parts = build(study, f"study {study.name}")
        data, left_out = study.data, study.pretraining.left_out
        columns = [left_out.column] if left_out and left_out.column not in data.columns else []
        self.examples = sources.load(data.source, input=data.input, label=data.label, columns=data.columns + columns)
        self.federations = Federations(study, self.parts, self.examples)
        self.held_out, self.classes = self.federations.held_out, self.federations.classes
        self.pretraining, self.tasks = self.federations.pretraining, self.federations.tasks
        self.model = functools.cache(self._model)
        self.prepared = functools.cache(self._prepare)

    def execution(self, kind: Literal["pretrain", "downstream"], start: str) -> Execution:
        """How the engine computes in cells of this kind and the start's architecture: as the study says, else what is
        fastest on this machine.
        """
        seed, parts = self.study.seeds[0], self.parts
        own = parts.starts[start].entry.model
        key = kind if own is None else f"{kind} {own.name} {json.dumps(own.settings, sort_keys=True)}"
        if key not in self.executions:
            if kind == "pretrain":
                plans = [method.plan for method in parts.starts.values() if method.plan.rounds and not method.start]
                federation = self.pretraining(seed, self.federations.cases[0])
            else:
                plans = [method.plan for method in parts.algorithms.values()]
                federation = self.tasks(next(iter(self.federations.settings)), seed)[0]
            plan = plans[0] if plans else next(iter(parts.starts.values())).plan
            model = self.model(start, len(federation.classes))
            self.executions[key] = calibrate(model, federation, plan, self.study.execution)
        return self.executions[key]

    def begin(self, start: str, seed: int, case: str = "") -> Weights:
        """The weights before pre-training: the model's initial weights of the seed, or those of a file."""
        method, (federation, _) = self.parts.starts[start], self.prepared(start, seed, case)
        model = self.model(start, len(federation.classes))
        return method.method.begin(model, seed) if method.start else model.init(seed)

    def _model(self, start: str, classes: int) -> Model:
        return Model(self.parts.starts[start].architecture or self.parts.architecture, self.examples.shape, classes)

    def _prepare(self, start: str, seed: int, case: str) -> tuple[Federation, Plan]:
        """What makes a start: the federation it is made on and its plan."""
        method = self.parts.starts[start]
        federation = self.pretraining(seed, case, start)
        plan = replace(method.plan, seed=keys.number(seed, "pretraining"))
        return method.method.prepare(federation, plan) if method.start else (federation, plan)

    def pretraining_run(self, start: str, seed: int, case: str = "") -> Run:
        """The run that makes a start. Clients, cohorts and batches of a seed are the same for every method.

        Raises ValueError for a case that the study does not have.
        """
        method = self.parts.starts[start]
        federation, plan = self.prepared(start, seed, case)
        model = self.model(start, len(federation.classes))
        begin = tree.fingerprint(self.begin(start, seed, case))
        execution = self.execution("pretrain", start) if plan.rounds else Execution()
        settings = _settings(method, plan, model, begin, execution)
        return Run(method, model, federation, plan, execution, settings, {"pretraining": federation.fingerprint})

    def downstream_run(self, start: str, algorithm: str, partition: str, task: int, seed: int, begin: str) -> Run:
        """The run of a task from a start with weights of fingerprint `begin`. Clients and batches are the same for
        every start.

        `partition` is the name that results use, as in `federations.settings`: with the case, where there is one.
        """
        method = self.parts.algorithms[algorithm]
        federation = self.tasks(partition, seed)[task]
        plan = replace(method.plan, seed=keys.number(seed, "downstream", task))
        personal = method.personal and replace(method.personal, seed=plan.seed)
        model = self.model(start, len(federation.classes))
        execution = self.execution("downstream", start) if plan.rounds else Execution()
        settings = _settings(method, plan, model, begin, execution)
        if personal:
            settings["personal"] = asdict(personal)  # pyright: ignore[reportArgumentType]
        if watch := self.study.downstream.watch:
            settings["watch"] = {"at": watch.at, "probes": {name: asdict(p) for name, p in self.parts.probes.items()}}
        prints = {"downstream": federation.fingerprint}
        at = tuple(watch.at) if watch else ()
        return Run(method, model, federation, plan, execution, settings, prints, personal, self.parts.probes, at)

    def transfer(self, start: str, weights: Weights, classes: int, task: int, seed: int) -> Weights:
        """A start's body under the fresh head of a task: the same for every start of an architecture, every method and
        partition.
        """
        return self.model(start, classes).adopt(weights, keys.number(seed, "downstream-head", task))


def _settings(method: Method, plan: Plan, model: Model, begin: str, execution: Execution) -> dict[str, Any]:
    return {
        "method": method.entry.method,
        "settings": asdict(method.method),
        "plan": asdict(plan),  # pyright: ignore[reportArgumentType]
        "model": model.describe(),
        "begin": begin,
        "execution": asdict(execution),  # pyright: ignore[reportArgumentType]
    }


def plan_cells(material: Material) -> list[Cell]:
    """All cells of a study, pre-training first. Raises ValueError for a cell that could not run."""
    parts, cells, seeds = material.parts, [], material.study.seeds
    origins: dict[tuple[str, int, str], tuple[str, str]] = {}
    for seed, case, start in itertools.product(seeds, material.federations.cases, parts.starts):
        run = material.pretraining_run(start, seed, case)
        cells.append(_keyed(Cell("pretrain", start, seed, "", run.plan.rounds, case=case), run))
        origins[start, seed, case] = (cells[-1].key, run.outcome)
    for seed, (partition, setting), task, algorithm, start in itertools.product(
        seeds,
        material.federations.settings.items(),
        range(material.study.downstream.tasks),
        parts.algorithms,
        parts.starts,
    ):
        origin = origins[start, seed, setting.case]
        run = material.downstream_run(start, algorithm, partition, task, seed, origin[1])
        place = (algorithm, partition, task, *origin, setting.case)
        cells.append(_keyed(Cell("downstream", start, seed, "", run.plan.rounds, *place), run))
    return cells


def _keyed(cell: Cell, run: Run) -> Cell:
    try:
        draw(run.federation, run.plan, 1)
        if run.plan.rounds and run.plan.server_steps:
            at_server(run.federation, run.plan, 1, pieces=1)
    except ValueError as error:
        raise ValueError(f"{cell.algorithm or cell.start}: {error}") from None
    words = [cell.start, cell.algorithm, cell.partition, f"t{cell.task}", f"s{cell.seed}"]
    words = words if cell.kind == "downstream" else ["pretrain", cell.start, cell.case, f"s{cell.seed}"]
    slug = "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", word).strip("-.") for word in words if word)
    return replace(cell, key=f"{slug}-{_sha256([cell.place(), run.identity])[:8]}")


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
