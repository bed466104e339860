"""FLSim's synchronous trainer.

The settings of FLSim 0.1.0 have defaults that Python 3.11 takes for mutable. They are made hashable while it is
imported, which changes nothing else.
"""

from __future__ import annotations

import torchvision_shim  # noqa: F401  # isort: skip
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import networks
import torch
from child import Job, Recorder, StepCounter, arrays, read_job
from torch import Tensor, nn

_dataclass = dataclasses.dataclass


@functools.wraps(_dataclass)
def _hashable(cls: Any = None, /, **settings: Any) -> Any:
    def wrap(kind: type) -> type:
        if kind.__module__.startswith("flsim") and not settings.get("frozen") and "__hash__" not in vars(kind):
            return _dataclass(kind, **{**settings, "unsafe_hash": True})
        return _dataclass(kind, **settings)

    return wrap if cls is None else wrap(cls)


dataclasses.dataclass = _hashable
from flsim.common.timeline import Timeline  # noqa: E402
from flsim.data.data_provider import IFLDataProvider, IFLUserData  # noqa: E402
from flsim.trainers.sync_trainer import SyncTrainer  # noqa: E402
from flsim.utils.config_utils import fl_config_from_json  # noqa: E402
from flsim.utils.example_utils import FLModel  # noqa: E402

dataclasses.dataclass = _dataclass
from hydra.utils import instantiate  # noqa: E402

Batch = dict[str, Tensor]


class User(IFLUserData):
    """A client's examples in batches."""

    def __init__(self, inputs: Tensor, labels: Tensor, batch_size: int) -> None:
        self.examples = len(labels)
        pairs = zip(inputs.split(batch_size), labels.split(batch_size), strict=True)
        self.batches = [{"features": x, "labels": y} for x, y in pairs]

    def num_train_examples(self) -> int:
        return self.examples

    def num_eval_examples(self) -> int:
        return 0

    def num_train_batches(self) -> int:
        return len(self.batches)

    def num_eval_batches(self) -> int:
        return 0

    def train_data(self) -> Iterator[Batch]:
        yield from self.batches

    def eval_data(self) -> Iterator[Batch]:
        yield from ()


class Users(IFLDataProvider):
    """All clients."""

    def __init__(self, job: Job) -> None:
        pairs = [map(torch.from_numpy, pair) for pair in job.data.by_client()]
        self.users = [User(x, y, job.work.batch_size) for x, y in pairs]

    def train_user_ids(self) -> list[int]:
        return list(range(len(self.users)))

    def num_train_users(self) -> int:
        return len(self.users)

    def get_train_user(self, user_index: int) -> User:
        return self.users[user_index]

    def train_users(self) -> list[User]:
        return self.users

    def eval_users(self) -> list[User]:
        return []

    def test_users(self) -> list[User]:
        return []


def observe(trainer: SyncTrainer, cohorts: list[list[int]], after: Callable[[], None]) -> None:
    """Gives the trainer the benchmark's clients, and calls `after` at the end of each round."""
    one_round, given = trainer._train_one_round, iter(cohorts)

    def observed(timeline: Timeline, **arguments: Any) -> None:
        one_round(timeline=timeline, **arguments)
        after()

    trainer._train_one_round = observed
    trainer.server.select_clients_for_training = lambda **_: next(given)


def main(job: Job) -> None:
    work, users = job.work, Users(job)
    rounds_per_epoch = -(-job.data.clients // work.cohort)
    settings = {
        "trainer": {
            "_base_": "base_sync_trainer",
            "server": {
                "_base_": "base_sync_server",
                "server_optimizer": {"_base_": "base_fed_avg"},
                "active_user_selector": {"_base_": "base_uniformly_random_active_user_selector"},
                "aggregation_type": "WEIGHTED_AVERAGE",
            },
            "client": {"epochs": 1, "optimizer": {"_base_": "base_optimizer_sgd", "lr": work.lr}},
            "users_per_round": work.cohort,
            "epochs": job.rounds / rounds_per_epoch,
            "do_eval": False,
            "eval_epoch_frequency": 1 / rounds_per_epoch,
            "report_train_metrics": False,
            "always_keep_trained_model": False,
        }
    }
    config = fl_config_from_json(settings)
    module: nn.Module = networks.build(work.network, work.shape, work.classes)
    trainer = instantiate(config.trainer, model=FLModel(module), cuda_enabled=False)
    recorder, counter = Recorder(job), StepCounter()
    inputs, labels = map(torch.from_numpy, job.data.test())

    def after() -> None:
        if job.evaluate:
            trainer.global_model().get_eval_metrics({"features": inputs, "labels": labels})
        recorder.end_round()
        counter.stop()

    observe(trainer, job.data.cohorts.tolist(), after)
    trainer.train(users, None, num_total_users=job.data.clients, distributed_world_size=1)
    note = f"one process, {torch.get_num_threads()} torch threads"
    # The server's optimiser takes one step a round.
    recorder.finish(counter.steps - 1, arrays(trainer.global_model().fl_get_module().state_dict()), note=note)


if __name__ == "__main__":
    main(read_job())
