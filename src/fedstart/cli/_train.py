"""`fedstart pretrain` and `fedstart federate`: one run in one directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedstart import names, tree
from fedstart.cli import _settings
from fedstart.cli._output import Screen, table
from fedstart.cli._settings import Source
from fedstart.data import sources, tasks
from fedstart.data.federation import Federation
from fedstart.engines.calibration import calibrate
from fedstart.engines.execution import Execution
from fedstart.engines.local import LocalEngine
from fedstart.files import read_json
from fedstart.models import Architecture, Model, load_architecture
from fedstart.report import build
from fedstart.runs import Outcome, RunDirectory, execute
from fedstart.scores import WORST, Scores
from fedstart.starts import Card, Start
from fedstart.starts.checkpoint import Checkpoint
from fedstart.training import draw
from fedstart.types import Cost, Diverged, Plan, Weights

CLIENTS = 10
"""Clients where neither the user nor the partition says how many."""


@dataclass(frozen=True)
class Pretraining:
    """What `fedstart pretrain` was asked for."""

    method: str
    model: str
    source: Source
    chosen: _settings.Chosen
    out: Path
    threads: int | None


@dataclass(frozen=True)
class Downstream:
    """What `fedstart federate` was asked for; `model` None is the Start's own."""

    start: Path
    method: str
    model: str | None
    source: Source
    chosen: _settings.Chosen
    out: Path
    threads: int | None


@dataclass(frozen=True, eq=False)
class Job:
    """One run, ready to go: `federation` and `plan` are those that it trains with."""

    kind: str
    method: str
    algorithm: Any
    model: Model
    federation: Federation
    plan: Plan
    weights: Weights
    execution: Execution
    told: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A cohort larger than the federation is refused before anything is written.
        if self.plan.rounds:
            draw(self.federation, self.plan, 1)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the result depends on, but for the data."""
        return {
            "kind": self.kind,
            "method": self.method,
            "settings": asdict(self.algorithm),
            "plan": asdict(self.plan),  # pyright: ignore[reportArgumentType]
            "model": self.model.describe(),
            "begin": tree.fingerprint(self.weights),
            "execution": asdict(self.execution),  # pyright: ignore[reportArgumentType]
            **self.told,
        }


def pretrain(request: Pretraining, screen: Screen) -> None:
    """Runs a method, or a way to begin, over clients, and leaves a run directory with the Start in `start/`."""
    algorithm, plan = request.chosen.method, request.chosen.plan
    architecture = load_architecture(request.model, request.chosen.tables["model"], "[model]")
    federation, told = share_out(request.source, request.chosen.partition, plan.seed)
    begins = request.method in names.discover("fedstart.starts")
    if begins:
        federation, plan = algorithm.prepare(federation, plan)
    model = Model(architecture, federation.examples.shape, len(federation.classes))
    weights = algorithm.begin(model, plan.seed) if begins else model.init(plan.seed)
    execution = execution_of(request, model, federation, plan)
    job = Job("pretrain", request.method, algorithm, model, federation, plan, weights, execution, told)
    directory = RunDirectory(request.out)
    with directory.locked():
        outcome = _run(job, directory, request.threads, screen)
        card = Card.of(
            model,
            federation,
            plan,
            method=request.method,
            settings=asdict(algorithm),
            seed=plan.seed,
            cost=outcome.cost,
        )
        start = request.out / "start"
        Start(outcome.weights, card).save(start)
        directory.finish()
        page = build(request.out)
    rounds = directory.rounds()
    loss = rounds[-1]["loss"] if rounds else None
    screen.answer(
        {"directory": request.out, "start": start, "report": page, "rounds": len(rounds), "loss": loss}
        | {"cost": asdict(outcome.cost), "weights_sha256": tree.fingerprint(outcome.weights)}
    )
    last = "" if loss is None else f", training loss {loss:.3f}"
    screen.show(f"{request.method}: {len(rounds)} rounds{last}", f"Start: {start}", f"Report: {page}")


def federate(request: Downstream, screen: Screen) -> None:
    """Runs a method on one federation from a Start, scores every client, and leaves a run directory."""
    algorithm, plan = request.chosen.method, request.chosen.plan
    place = place_of(request.start)
    architecture, start = network(request, place)
    federation, told = share_out(request.source, request.chosen.partition, plan.seed)
    if start is None:
        model = Model(architecture, federation.examples.shape, len(federation.classes))
        weights = Checkpoint(str(place)).begin(model, plan.seed)
    else:
        model, weights = transferred(start, federation, plan.seed)
    execution = execution_of(request, model, federation, plan)
    job = Job("downstream", request.method, algorithm, model, federation, plan, weights, execution, told)
    directory = RunDirectory(request.out)
    with directory.locked():
        outcome = _run(job, directory, request.threads, screen)
        directory.finish()
        page = build(request.out)
    assert outcome.counts is not None
    tell(request.out, page, Scores(outcome.counts), outcome.cost, screen)


def tell(out: Path, page: Path, scores: Scores, cost: Cost, screen: Screen) -> None:
    """Says how the clients of a finished downstream run are served."""
    worst = {f"worst{percent}": scores.worst(percent) for percent in WORST}
    found = {"mean": scores.mean, "variance": scores.variance, **worst, "sample_mean": scores.sample_mean}
    clients = [
        {"client": int(client), "accuracy": accuracy}
        for client, accuracy in zip(scores.clients, scores.accuracy.tolist(), strict=True)
    ]
    screen.answer({"directory": out, "report": page, "scores": found, "clients": clients, "cost": asdict(cost)})
    heads = ("clients", "mean\n%", "variance\n%²", *(f"worst\n{percent} %" for percent in WORST), "all examples\n%")
    row = (len(clients), *found.values())
    screen.show(table("Accuracy of the clients", heads, [row], numbers=len(heads)), "", f"Report: {page}")


def _run(job: Job, directory: RunDirectory, threads: int | None, screen: Screen) -> Outcome:
    """Runs the job in its directory, from the last checkpoint if there is one."""
    directory.open(job.settings, {"federation": job.federation.fingerprint})
    with LocalEngine(threads, job.execution) as engine, screen.progress() as progress:
        progress.total(job.plan.rounds)
        try:
            return execute(
                directory,
                job.algorithm,
                job.model,
                job.federation,
                job.plan,
                job.weights,
                engine,
                evaluate="test" if job.kind == "downstream" else None,
                progress=progress,
            )
        except Diverged as error:
            raise ValueError(f"{error}; {directory.path} keeps the last good round") from None


def execution_of(request: Pretraining | Downstream, model: Model, federation: Federation, plan: Plan) -> Execution:
    """How the engine computes: as in the run that is taken up, else as given, and the rest as is fastest here."""
    given, file = request.chosen.tables["execution"], request.out / "run.json"
    held = read_json(file).get("settings", {}).get("execution", {}) if file.is_file() else {}
    if not plan.rounds or (held and held.items() >= given.items()):
        return names.build(Execution, held or given, str(file))
    return calibrate(model, federation, plan, given)


def share_out(source: Source, partition: Any, seed: int) -> tuple[Federation, dict[str, Any]]:
    """The federation, and what run.json tells about how it was made."""
    column = getattr(partition, "column", None)
    examples = sources.load(source.data, input=source.input, label=source.label, columns=(column,) if column else ())
    federation = tasks.federate(
        examples,
        classes=_settings.classes(source.classes, len(examples.class_names)),
        partition=partition,
        clients=CLIENTS if source.clients is None and column is None else source.clients,
        seed=seed,
        name=examples.name,
        test_fraction=source.test_fraction,
    )
    told = {"data": source.data, "classes": list(federation.classes), "clients": federation.clients}
    return federation, {**told, "partition": {"name": source.partition, **asdict(partition)}}


def place_of(path: Path) -> Path:
    """The Start in the directory that `fedstart pretrain` wrote, or the path itself."""
    path = path.expanduser()
    return path / "start" if (path / "start").is_dir() else path


def network(request: Downstream, place: Path) -> tuple[Architecture, Start | None]:
    """The architecture, and the Start if the weights have a card; weights without one need `--model`."""
    settings = request.chosen.tables["model"]
    carded = place.is_dir() or (place.parent / "card.json").is_file() or not place.exists()
    if carded:
        if request.model is not None or settings:
            raise ValueError(f"{place}: the Start says which model it is; --model and model.* are for bare weights")
        start = Start.load(place)
        return start.model().architecture, start
    if request.model is None:
        raise ValueError(f"{place}: these weights have no card.json; say with --model which architecture they are")
    return load_architecture(request.model, settings, "[model]"), None


def transferred(start: Start, federation: Federation, seed: int) -> tuple[Model, Weights]:
    """The Start's model and weights; a fresh head where the number of classes differs."""
    model, shape = start.model(), federation.examples.shape
    if shape != model.shape:
        raise ValueError(f"the Start takes inputs of shape {model.shape}, but {federation.name} has shape {shape}")
    if len(federation.classes) == model.classes:
        return model, start.weights
    return model.transfer(start.weights, len(federation.classes), seed)
