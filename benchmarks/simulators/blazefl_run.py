"""BlazeFL with its thread pool, the mode that it recommends: two threads with one torch thread each."""

from __future__ import annotations

import os
from enum import StrEnum

import networks
import torch
from blazefl.contrib import FedAvgBaseServerHandler, FedAvgThreadPoolClientTrainer
from child import Job, Recorder, StepCounter, arrays, read_job
from torch.utils.data import DataLoader, Dataset, TensorDataset


class Network(StrEnum):
    ONLY = "only"


class Networks:
    """What BlazeFL calls a model selector."""

    def __init__(self, job: Job) -> None:
        self.work = job.work

    def select_model(self, model_name: Network) -> torch.nn.Module:
        # As a user's selector would: a new module each time.
        return networks.FACTORIES[self.work.network](self.work.shape, self.work.classes)


class Examples:
    """What BlazeFL calls a partitioned dataset."""

    def __init__(self, job: Job) -> None:
        data = job.data
        self.clients = [TensorDataset(*map(torch.from_numpy, pair)) for pair in data.by_client()]
        self.test = TensorDataset(*map(torch.from_numpy, data.test()))

    def get_dataset(self, type_: str, cid: int | None) -> Dataset:
        return self.test if cid is None else self.clients[cid]

    def set_dataset(self, type_: str, cid: int | None, dataset: Dataset) -> None:
        raise NotImplementedError

    def get_dataloader(
        self, type_: str, cid: int | None, batch_size: int | None, generator: torch.Generator | None
    ) -> DataLoader:
        dataset = self.get_dataset(type_, cid)
        return DataLoader(dataset, batch_size=batch_size, shuffle=cid is not None, generator=generator)


class GivenCohorts(FedAvgBaseServerHandler):
    """BlazeFL's server, with the benchmark's clients in each round."""

    cohorts: list[list[int]]

    def sample_clients(self) -> list[int]:
        return self.cohorts[self.round]


def main(job: Job) -> None:
    threads = os.cpu_count() or 1
    torch.set_num_threads(1)
    work, examples, selector = job.work, Examples(job), Networks(job)
    ratio = (work.cohort + 0.5) / job.data.clients if work.cohort < job.data.clients else 1.0
    handler = GivenCohorts(
        selector, Network.ONLY, examples, job.rounds, job.data.clients, ratio, "cpu", work.batch_size, 0
    )
    handler.cohorts = job.data.cohorts.tolist()
    handler.model.load_state_dict({name: torch.from_numpy(value) for name, value in job.data.initial.items()})
    trainer = FedAvgThreadPoolClientTrainer(
        selector, Network.ONLY, examples, "cpu", job.data.clients, 1, work.batch_size, work.lr, 0, threads
    )
    recorder, counter = Recorder(job), StepCounter()
    while not handler.if_stop():
        sampled = handler.sample_clients()
        trainer.local_process(handler.downlink_package(), sampled)
        for package in trainer.uplink_package():
            handler.load(package)
        if job.evaluate:
            handler.get_summary()
        recorder.end_round()
        counter.stop()
    note = f"thread pool of {threads}, 1 torch thread each; Python with its global lock"
    recorder.finish(counter.steps, arrays(handler.model.state_dict()), note=note)


if __name__ == "__main__":
    main(read_job())
