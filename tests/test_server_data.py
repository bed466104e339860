"""The server's own examples: what is withheld, how it is divided, and the steps on it that follow a round."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedstart import keys
from fedstart.algorithms.coprefl import CoPreFL
from fedstart.algorithms.fedavg import FedAvg
from fedstart.data import partitions, tasks
from fedstart.data.digits import digits
from fedstart.engines.batches import at_server
from fedstart.engines.execution import Execution
from fedstart.engines.local import LocalEngine
from fedstart.starts.centralized import Centralized
from fedstart.training import train
from fedstart.types import State
from reference import slow


@pytest.fixture
def served(federation):
    return replace(federation, server=np.arange(0, 60, 3))


def test_what_is_withheld_is_the_server_s():
    federation = tasks.federate(
        digits(), classes=range(8), partition=partitions.IID(), clients=5, seed=1, name="x", withheld=0.1
    )
    held = np.concatenate([federation.parts["train"].values, federation.parts["test"].values])
    assert not np.intersect1d(held, federation.server).size
    assert len(federation.server) == round(0.1 * (len(held) + len(federation.server)))
    assert federation.fingerprint != replace(federation, server=federation.server[1:]).fingerprint


def test_a_saved_partition_brings_the_server_s_examples_back(served, tmp_path):
    tasks.save_partition(served, tmp_path / "p.parquet")
    back = tasks.load_partition(served.examples, tmp_path / "p.parquet")
    assert (back.server == served.server).all() and back.fingerprint == served.fingerprint
    assert set(back.parts) == set(served.parts)


def test_pieces_are_disjoint_equal_and_drawn_anew_each_round(served, plan):
    first, second = (at_server(served, plan, number, 3).parts["query"] for number in (1, 2))
    assert sorted(first.sizes) == [6, 7, 7]
    assert (np.sort(first.values) == served.server).all()
    assert not (first.values == second.values).all()


def test_a_share_is_the_same_examples_in_every_round(served, plan):
    half = replace(plan, server_share=0.5)
    first, second = (set(at_server(served, half, number, 2).parts["train"].values) for number in (1, 2))
    assert first == second and len(first) == 10 and first < set(served.server)


@pytest.mark.parametrize(("share", "pieces"), [(1.0, 21), (0.2, 5)])
def test_more_pieces_than_examples_is_an_error(served, plan, share, pieces):
    with pytest.raises(ValueError, match=rf"{pieces} are needed"):
        at_server(served, replace(plan, server_share=share), 1, pieces)


@pytest.mark.parametrize("execution", [Execution(), Execution(together=3)])
def test_server_steps_follow_the_round_of_any_method(served, model, weights, plan, execution):
    plan = replace(plan, rounds=2, server_steps=5, server_lr=0.03)
    with LocalEngine(execution=execution) as engine:
        *_, last = train(FedAvg(), model, served, plan, weights, engine)
    here, work = weights, replace(plan, local_epochs=None, local_steps=5, lr=0.03, seed=keys.number(11, "server"))
    for t in (1, 2):
        with LocalEngine() as engine:
            cohort = engine.cohort(model, served, plan, t, slow.cohort(served, plan, t))
            here = FedAvg().step(State(here), cohort)[0].weights
        order = keys.generator(work.seed, "server-share").permutation(20)
        positions = served.server[order][keys.generator(work.seed, "server-pieces", t).permutation(20)]
        here = slow.local_training(model, served, work, t, 0, here, positions)
    slow.assert_close(last.state.weights, here)
    assert last.cost.exchanges == 1


def test_server_steps_count_examples_and_leave_the_training_loss(served, model, weights, plan):
    with LocalEngine() as engine:
        without, with_steps = (
            next(train(FedAvg(), model, served, replace(plan, server_steps=steps), weights, engine)) for steps in (0, 3)
        )
    assert with_steps.loss == without.loss
    assert with_steps.cost.backward - without.cost.backward == 3 * plan.batch_size
    assert with_steps.cost.bytes_up == without.cost.bytes_up


def test_coprefl_sgd_is_scenario_one_and_steps_at_the_server(served, model, weights, plan):
    """The paper's CoPreFL-SGD needs no method of its own."""
    with LocalEngine() as engine:
        plain, refined = (
            next(train(CoPreFL(0.3, 0.1), model, served, replace(plan, server_steps=s), weights, engine)).state.weights
            for s in (0, 5)
        )
        cohort = engine.cohort(model, served, replace(plan, server_steps=5), 1, [0])
        slow.assert_close(refined, cohort.refine(plain))


def test_without_examples_at_the_server_its_steps_are_refused(federation, model, weights, plan):
    with LocalEngine() as engine, pytest.raises(ValueError, match="the server has 0 examples of its own, 1 are needed"):
        next(train(FedAvg(), model, federation, replace(plan, server_steps=1), weights, engine))


@pytest.mark.parametrize("server_data", [False, True])
def test_centralized_pre_training_may_have_the_server_s_examples_too(served, plan, server_data):
    pooled, _ = Centralized(server_data=server_data).prepare(served, plan)
    held = served.parts["train"].values
    expected = np.concatenate([held, served.server]) if server_data else held
    assert (pooled.positions("train", 0) == np.sort(expected)).all()
