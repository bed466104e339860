"""fedstart's local engine, with its own choices: all of them, or all but the precision."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

import networks
import numpy as np
import torch
from child import Job, Recorder, arrays, read_job
from workloads import MEAN, STD, TEST

from fedstart.algorithms.fedavg import FedAvg
from fedstart.data.federation import Examples, Federation, Positions
from fedstart.engines.calibration import calibrate
from fedstart.engines.execution import Execution
from fedstart.engines.local import LocalEngine
from fedstart.models import Model, load_architecture
from fedstart.training import train
from fedstart.types import Plan


def make_federation(job: Job) -> Federation:
    """The clients over one copy of the examples, and one of them that holds the central test set."""
    data, work = job.data, job.work
    images = len(work.shape) == 3
    inputs = torch.from_numpy(data.read("pixels" if images else "inputs"))
    if images:
        # As the loader of image files leaves them.
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    channels = work.shape[0] if images else 0
    names = tuple(str(label) for label in range(work.classes))
    fingerprint = hashlib.sha256(str(data.folder).encode()).hexdigest()
    mean, std = (MEAN,) * channels, (STD,) * channels
    examples = Examples(work.name, inputs, data.read("labels"), names, fingerprint, mean, std)
    count = len(examples) - TEST
    parts = {"train": Positions(data.offsets, np.arange(count))}
    if job.evaluate:
        offsets = np.concatenate([[0], np.full(data.clients, TEST)])
        parts["test"] = Positions(offsets, count + np.arange(TEST))
    return Federation(work.name, examples, parts, tuple(range(work.classes)))


def choose(job: Job, model: Model, federation: Federation, plan: Plan) -> Execution:
    """How the engine computes in this variant. What is measured is kept with the benchmark's data, not for later."""
    fixed = {"precision": "float32"} if job.variant == "float32" else {}
    return calibrate(model, federation, plan, fixed, folder=Path(job.folder) / "execution")


def main(job: Job) -> None:
    work = job.work
    federation = make_federation(job)
    model = Model(load_architecture(work.network, work.settings), work.shape, work.classes)
    weights = {name: torch.from_numpy(value) for name, value in job.data.initial.items()}
    module = networks.build(work.network, work.shape, work.classes)
    some = federation.batch(np.arange(8))[0].contiguous()
    torch.testing.assert_close(module(some), model.apply(weights, some), rtol=1e-4, atol=1e-5)
    plan = Plan(
        rounds=job.rounds,
        cohort=None if work.cohort == federation.clients else work.cohort,
        local_epochs=1,
        batch_size=work.batch_size,
        lr=work.lr,
    )
    execution = choose(job, model, federation, plan)
    recorder, final = Recorder(job), weights
    with LocalEngine(execution=execution) as engine:
        for finished in train(FedAvg(), model, federation, plan, weights, engine):
            final = finished.state.weights
            if job.evaluate:
                engine.evaluate(model, federation, final)
            recorder.end_round(finished.clients)
            examples = int(job.data.sizes(np.array(finished.clients)).sum())
            if finished.cost.examples != examples:
                raise ValueError(
                    f"round {finished.number} trained on {finished.cost.examples} examples, not {examples}"
                )
        note = f"{engine.threads} threads; " + ", ".join(f"{name} {value}" for name, value in asdict(execution).items())  # pyright: ignore[reportArgumentType]
    steps = job.steps(recorder.cohorts[0])
    if any(list(ours) != list(theirs) for ours, theirs in zip(recorder.cohorts, job.data.cohorts, strict=False)):
        raise ValueError("fedstart drew other clients than the benchmark's cohorts")
    recorder.finish(steps, arrays(final), note=note)


if __name__ == "__main__":
    main(read_job())
