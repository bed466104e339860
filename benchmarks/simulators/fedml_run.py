"""FedML's single-process simulation (`sp`): clients one after the other, with FedML's services switched off.

In its first round every client starts from the weights of the one before, since FedML 0.9.6 does not copy the initial
weights: the steps are the same, but the weights move further than elsewhere.
"""

from __future__ import annotations

import torchvision_shim  # noqa: F401  # isort: skip
from types import SimpleNamespace

import networks
import torch
from child import Job, Recorder, StepCounter, arrays, read_job
from fedml.core import mlops
from fedml.simulation.sp.fedavg.fedavg_api import FedAvgAPI
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset


class GivenCohorts(FedAvgAPI):
    """FedML's FedAvg, with the benchmark's clients, and where it would test all clients the end of a round."""

    job: Job
    recorder: Recorder
    counter: StepCounter

    def _client_sampling(self, round_idx: int, client_num_in_total: int, client_num_per_round: int) -> list[int]:
        return self.job.data.cohorts[round_idx].tolist()

    def _local_test_on_all_clients(self, round_idx: int) -> None:
        if self.job.evaluate:
            inputs, labels = map(torch.from_numpy, self.job.data.test())
            with torch.inference_mode():
                cross_entropy(self.model(inputs), labels)
        self.recorder.end_round()
        self.counter.stop()


def main(job: Job) -> None:
    work, data = job.work, job.data
    pairs = [TensorDataset(*map(torch.from_numpy, pair)) for pair in data.by_client()]
    loaders = {k: DataLoader(pair, batch_size=work.batch_size, shuffle=True) for k, pair in enumerate(pairs)}
    sizes = {client: len(pair) for client, pair in enumerate(pairs)}
    nothing = dict.fromkeys(loaders)
    settings = SimpleNamespace(
        dataset="benchmark",
        client_num_in_total=data.clients,
        client_num_per_round=work.cohort,
        comm_round=job.rounds,
        epochs=1,
        batch_size=work.batch_size,
        client_optimizer="sgd",
        learning_rate=work.lr,
        weight_decay=0.0,
        frequency_of_the_test=1,
        enable_wandb=False,
        enable_tracking=False,
        using_mlops=False,
    )
    # So that nothing asks FedML's platform for anything.
    mlops.pre_setup(settings)
    module = networks.build(work.network, work.shape, work.classes)
    dataset = [sum(sizes.values()), 0, None, None, sizes, loaders, nothing, work.classes]
    federation = GivenCohorts(settings, torch.device("cpu"), dataset, module)
    federation.job, federation.recorder, federation.counter = job, Recorder(job), StepCounter()
    federation.train()
    note = f"one process, {torch.get_num_threads()} torch threads; first round not FedAvg"
    federation.recorder.finish(federation.counter.steps, arrays(module.state_dict()), note=note)


if __name__ == "__main__":
    main(read_job())
