"""fluke: its `CentralizedFL` with stateless clients, which is FedAvg."""

from __future__ import annotations

import torchvision_shim  # noqa: F401  # isort: skip
import networks
import torch
from child import Job, Recorder, StepCounter, arrays, read_job
from fluke import FlukeENV
from fluke.algorithms.fedavg import CentralizedFL
from fluke.client import Client
from fluke.config import OptimizerConfigurator
from fluke.data import FastDataLoader
from fluke.evaluation import ClassificationEval
from fluke.server import Server
from fluke.utils import ServerObserver


class GivenCohorts(Server):
    """fluke's server, with the benchmark's clients in each round."""

    def __init__(self, cohorts: list[list[int]], **settings: object) -> None:
        super().__init__(**settings)
        self.cohorts = iter(cohorts)

    def get_eligible_clients(self, eligible_perc: float) -> list[Client]:
        return [self.clients[client] for client in next(self.cohorts)]


class AfterRound(ServerObserver):
    def __init__(self, recorder: Recorder, counter: StepCounter) -> None:
        self.recorder, self.counter = recorder, counter

    def end_round(self, round: int) -> None:
        self.recorder.end_round()
        self.counter.stop()


def main(job: Job) -> None:
    work, data = job.work, job.data
    FlukeENV().set_device("cpu")
    FlukeENV().set_evaluator(ClassificationEval(eval_every=1, n_classes=work.classes))

    def loader(arrays: tuple, batch_size: int, shuffle: bool) -> FastDataLoader:
        tensors = [torch.from_numpy(array) for array in arrays]
        return FastDataLoader(
            *tensors, num_labels=work.classes, batch_size=batch_size, shuffle=shuffle, skip_singleton=False
        )

    optimizer = OptimizerConfigurator({"name": "SGD", "lr": work.lr})
    clients = [
        Client(
            index=client,
            train_set=loader(pair, work.batch_size, True),
            test_set=None,
            optimizer_cfg=optimizer,
            loss_fn=torch.nn.CrossEntropyLoss(),
            local_epochs=1,
            persistency=False,
        )
        for client, pair in enumerate(data.by_client())
    ]
    recorder, counter = Recorder(job), StepCounter()
    module = networks.build(work.network, work.shape, work.classes)
    server = GivenCohorts(
        data.cohorts.tolist(),
        model=module,
        test_set=loader(data.test(), 500, False) if job.evaluate else None,
        clients=clients,
        weighted=True,
    )
    federation = CentralizedFL(data.clients, None, {}, clients=clients, server=server)
    # Where one class is observer of all, fluke would tell it the end of a round once per role.
    observer = AfterRound(recorder, counter)
    federation.attach(observer)
    federation.run(job.rounds, work.cohort / data.clients)
    note = f"one process, {torch.get_num_threads()} torch threads"
    recorder.finish(counter.steps, arrays(server.model.state_dict()), note=note)


if __name__ == "__main__":
    main(read_job())
