"""A round costs what its cohort costs: nothing in it grows with the other clients, with rounds, or with the cohort."""

from __future__ import annotations

import gc
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

import fedstart
from fedstart import keys, tree
from fedstart.algorithms.fedavg import FedAvg
from fedstart.algorithms.scaffold import Scaffold
from fedstart.data.federation import Examples, Federation, Positions
from fedstart.engines.execution import Execution
from fedstart.engines.local import LocalEngine
from fedstart.models import Model
from fedstart.training import draw, train
from fedstart.types import Client, Cohort, Info, Plan, Round, State, Weights

FEW, MANY, COHORT, EACH = 100, 200_000, 10, 5
SOURCE = str(Path(fedstart.__file__).parent)
PLAN = Plan(rounds=8, cohort=COHORT, local_epochs=1, batch_size=EACH, lr=0.01, seed=1)


def crowd(clients: int) -> Federation:
    """Clients of five examples each, all of them positions in one pool of 100."""
    draws = keys.generator(5, "crowd")
    inputs = torch.from_numpy(draws.normal(size=(100, 4)))
    examples = Examples("pool", inputs, draws.integers(0, 3, 100), ("a", "b", "c"), "pool-5")
    positions = Positions(np.arange(clients + 1) * EACH, draws.integers(0, 100, clients * EACH))
    return Federation("crowd", examples, {"train": positions}, (0, 1, 2))


def rounds_of(
    algorithm: Any, model: Model, weights: Weights, federation: Federation, plan: Plan, watch: Callable[[], None]
) -> list[Round]:
    """All rounds, singly on one thread; `watch` is called behind the second, when everything is set up once."""
    with LocalEngine(1) as engine:
        finished = []
        for round in train(algorithm, model, federation, plan, weights, engine):
            finished.append(round)
            if round.number == 2:
                watch()
    return finished


@pytest.mark.parametrize("algorithm", [FedAvg(), Scaffold()], ids=["fedavg", "scaffold"])
def test_a_round_allocates_nothing_that_grows_with_the_clients(algorithm: Any, model: Model, weights: Weights) -> None:
    """NumPy's memory and Python's: one number for each of 200,000 clients would be 1.6 MB, one bit 25 kB."""
    peaks = []
    for clients in (FEW, MANY):
        federation = crowd(clients)
        try:
            rounds_of(algorithm, model, weights, federation, PLAN, tracemalloc.start)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 25_000, peaks


def test_a_round_runs_as_many_lines_for_many_clients_as_for_few(model: Model, weights: Weights) -> None:
    counts = []
    for clients in (FEW, MANY):
        federation = crowd(clients)
        ran = 0

        def count(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal ran
            if not frame.f_code.co_filename.startswith(SOURCE):
                return None
            ran += event == "line"
            return count

        before = sys.gettrace()
        try:
            threading.settrace(count)
            rounds_of(FedAvg(), model, weights, federation, PLAN, lambda: sys.settrace(count))
        finally:
            sys.settrace(before)
            threading.settrace(before)  # pyright: ignore[reportArgumentType]
        counts.append(ran)
    assert counts[0] > 100
    assert counts[1] == counts[0]


@pytest.mark.parametrize("cohort", [1, COHORT, 100])
def test_a_draw_takes_memory_for_its_cohort_only(cohort: int) -> None:
    federation, plan = crowd(MANY), Plan(cohort=cohort, local_epochs=1)
    draw(federation, plan, 1)
    try:
        tracemalloc.start()
        clients = draw(federation, plan, 2)
        assert len(clients) == cohort
        assert tracemalloc.get_traced_memory()[1] < 3_000 + 100 * cohort
    finally:
        tracemalloc.stop()


def test_rounds_leave_nothing_behind(model: Model, weights: Weights) -> None:
    """A thousand clients take part between the two counts; if each left one object, it would be seen."""
    held = {}
    plan = Plan(rounds=120, cohort=COHORT, local_epochs=1, batch_size=EACH, lr=0.01)
    with LocalEngine(1) as engine:
        for round in train(FedAvg(), model, crowd(1_000), plan, weights, engine):
            if round.number in (20, 120):
                gc.collect()
                held[round.number] = sys.getallocatedblocks()
    assert held[120] < held[20] + 100 * COHORT


@pytest.mark.parametrize("together", [1, 4])
def test_only_clients_that_were_seen_are_remembered_each_with_one_model(
    together: int, model: Model, weights: Weights
) -> None:
    with LocalEngine(2, Execution(together=together)) as engine:
        finished = list(train(Scaffold(), model, crowd(MANY), PLAN, weights, engine))
    seen = {client for round in finished for client in round.clients}
    memories = finished[-1].memories
    assert set(memories) == seen
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for memory in memories.values()
        for control in memory.values()
        for tensor in control.values()
    }
    assert sum(storages.values()) == len(seen) * tree.nbytes(weights)


class Counted:
    """FedAvg that counts how many clients' results are alive at once."""

    def __init__(self) -> None:
        self.alive = self.most = 0
        self._lock = threading.Lock()

    def learn(self, client: Client, weights: Weights) -> Weights:
        trained = client.descend(weights)
        with self._lock:
            self.alive += 1
            self.most = max(self.most, self.alive)
        weakref.finalize(next(iter(trained.values())), self.drop)
        return trained

    def drop(self) -> None:
        with self._lock:
            self.alive -= 1

    def step(self, state: State, cohort: Cohort) -> tuple[State, Info]:
        return State(cohort.mean(self.learn, state.weights)), {}


@pytest.mark.parametrize("threads", [1, 2])
def test_the_results_alive_at_once_do_not_grow_with_the_cohort(threads: int, model: Model, weights: Weights) -> None:
    most = {}
    for cohort in (32, 512):
        algorithm = Counted()
        plan = Plan(rounds=1, cohort=cohort, local_epochs=1, batch_size=EACH, lr=0.01)
        with LocalEngine(threads) as engine:
            list(train(algorithm, model, crowd(1_000), plan, weights, engine))
        most[cohort] = algorithm.most
        assert algorithm.alive == 0
    assert most[512] <= 8 * threads, most
