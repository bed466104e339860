"""FedLab's standalone pipeline: clients one after the other in one process. It averages without weights."""

from __future__ import annotations

import torchvision_shim  # noqa: F401  # isort: skip
import logging

import networks
import torch
from child import Job, Recorder, StepCounter, arrays, read_job
from fedlab.contrib.algorithm.basic_client import SGDSerialClientTrainer
from fedlab.contrib.algorithm.basic_server import SyncServerHandler
from fedlab.core.standalone import StandalonePipeline
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset


class Examples:
    """What FedLab asks of a federated dataset."""

    def __init__(self, job: Job) -> None:
        self.clients = [TensorDataset(*map(torch.from_numpy, pair)) for pair in job.data.by_client()]

    def get_dataloader(self, id: int, batch_size: int) -> DataLoader:
        return DataLoader(self.clients[id], batch_size=batch_size, shuffle=True)


class GivenCohorts(SyncServerHandler):
    """FedLab's server, with the benchmark's clients in each round."""

    cohorts: list[list[int]]

    def sample_clients(self) -> list[int]:
        return self.cohorts[self.round]


class Pipeline(StandalonePipeline):
    """Notes the end of each round where FedLab asks for an evaluation."""

    job: Job
    recorder: Recorder
    counter: StepCounter

    def evaluate(self) -> None:
        if self.job.evaluate:
            inputs, labels = map(torch.from_numpy, self.job.data.test())
            with torch.inference_mode():
                cross_entropy(self.handler.model(inputs), labels)
        self.recorder.end_round()
        self.counter.stop()


def main(job: Job) -> None:
    work = job.work
    module = networks.build(work.network, work.shape, work.classes)
    ratio = (work.cohort + 0.5) / job.data.clients if work.cohort < job.data.clients else 1.0
    logger = logging.getLogger("fedlab-benchmark")
    handler = GivenCohorts(module, job.rounds, ratio, logger=logger)
    handler.cohorts = job.data.cohorts.tolist()
    trainer = SGDSerialClientTrainer(module, job.data.clients, logger=logger)
    trainer.setup_dataset(Examples(job))
    trainer.setup_optim(1, work.batch_size, work.lr)
    pipeline = Pipeline(handler, trainer)
    pipeline.job, pipeline.recorder, pipeline.counter = job, Recorder(job), StepCounter()
    pipeline.main()
    note = f"one process, {torch.get_num_threads()} torch threads"
    pipeline.recorder.finish(pipeline.counter.steps, arrays(handler.model.state_dict()), note=note)


if __name__ == "__main__":
    main(read_job())
