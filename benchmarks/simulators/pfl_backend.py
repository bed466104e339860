"""pfl-research's `SimulatedBackend`, in one process, or (variant "2") in two that `torchrun` starts."""

from __future__ import annotations

import os
import subprocess
import sys

import networks
import torch
from child import Job, Recorder, StepCounter, arrays, read_job
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class Trained(nn.Module):
    """The network with the two methods that pfl asks for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        self.train()
        return cross_entropy(self.network(inputs), labels)

    def metrics(self, inputs: Tensor, labels: Tensor) -> dict[str, object]:
        from pfl.metrics import Weighted

        self.eval()
        with torch.no_grad():
            return {"loss": Weighted(cross_entropy(self.network(inputs), labels).item() * len(labels), len(labels))}


def main(job: Job) -> None:
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.callback.central_evaluation import CentralEvaluationCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.internal.ops.pytorch_ops import distributed
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    work, data = job.work, job.data
    inputs, labels = torch.from_numpy(data.read("inputs")), torch.from_numpy(data.read("labels"))
    trained = Trained(networks.build(work.network, work.shape, work.classes))
    recorder, counter = Recorder(job), StepCounter()

    class AfterRound(TrainingProcessCallback):
        def after_central_iteration(
            self, aggregate_metrics: object, model: object, *, central_iteration: int
        ) -> tuple[bool, Metrics]:
            recorder.end_round()
            counter.stop()
            return False, Metrics()

    def user(client: int) -> Dataset:
        rows = slice(data.offsets[client], data.offsets[client + 1])
        return Dataset((inputs[rows], labels[rows]), user_id=str(client))

    order = iter(data.cohorts[: job.rounds].ravel().tolist())
    users = FederatedDataset(user, lambda: next(order))
    model = PyTorchModel(trained, torch.optim.SGD, torch.optim.SGD(trained.parameters(), lr=1.0))
    callbacks: list[TrainingProcessCallback] = [AfterRound()]
    if job.evaluate:
        test = Dataset(tuple(map(torch.from_numpy, data.test())))
        callbacks.insert(0, CentralEvaluationCallback(test, model_eval_params=NNEvalHyperParams(None)))
    FederatedAveraging().run(
        NNAlgorithmParams(job.rounds, job.rounds + 1, work.cohort, None),
        SimulatedBackend(users, users, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(work.batch_size, local_num_epochs=1, local_learning_rate=work.lr),
        NNEvalHyperParams(None),
        callbacks,
        send_metrics_to_platform=False,
    )
    # The server's optimiser takes one step a round, in every process.
    counted = torch.tensor([counter.steps - 1])
    if distributed.world_size > 1:
        torch.distributed.all_reduce(counted)
    if distributed.global_rank == 0:
        note = f"{distributed.world_size} processes, {torch.get_num_threads()} torch threads each"
        recorder.finish(int(counted), arrays(trained.network.state_dict()), note=note)


if __name__ == "__main__":
    if read_job().variant == "2" and "TORCHELASTIC_RUN_ID" not in os.environ:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
        sys.exit(subprocess.run([sys.executable, *launcher, *sys.argv]).returncode)
    main(read_job())
