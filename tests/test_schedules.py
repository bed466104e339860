"""Local-step schedules: their formulas, what a server sees for the adaptive one, and that runs with them resume."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedstart import names, tree
from fedstart.algorithms.fedavg import FedAvg
from fedstart.algorithms.scaffold import Scaffold
from fedstart.engines.execution import Execution
from fedstart.engines.local import LocalEngine
from fedstart.lab import schedules as lab
from fedstart.lab.exact import follow
from fedstart.lab.geometry import Geometry
from fedstart.lab.heterogeneity import allocate
from fedstart.lab.world import World, as_weights, federation, filters, samples
from fedstart.schedules import Adaptive, Cosine, Plateau, Seen, Step, saw
from fedstart.training import of_round, train
from fedstart.types import Plan

TOGETHER = (Execution(), Execution(together=3))


def rounds(method, model, data, plan, weights, execution=TOGETHER[0], after=None):
    with LocalEngine(2, execution) as engine:
        return list(train(method, model, data, plan, weights, engine, after))


def test_step_decays_and_grows_within_its_bounds():
    assert [Step(factor=0.5, every=2).steps(20, t, None) for t in range(1, 13)] == [
        20,
        20,
        10,
        10,
        5,
        5,
        2,
        2,
        1,
        1,
        1,
        1,
    ]
    assert [Step(factor=3, every=1, most=50).steps(2, t, None) for t in (1, 2, 3, 4, 5)] == [2, 6, 18, 50, 50]
    assert Step(factor=0.1, least=4).steps(20, 10_000_000, None) == 4


def test_cosine_goes_down_half_a_wave_and_stays():
    found = [Cosine(final=2, rounds=4).steps(10, t, None) for t in range(1, 7)]
    assert found == [round(2 + 8 * (1 + math.cos(math.pi * k / 4)) / 2) for k in (0, 1, 2, 3, 4, 4)]
    assert found[0] == 10 and found[-1] == 2 and found == sorted(found, reverse=True)


def test_adaptive_shrinks_where_filters_stagnate_and_grows_where_not():
    rule = Adaptive(grow=3, shrink=4, limit=0.2, most=100)
    assert rule.steps(7, 1, None) == 7
    assert rule.steps(7, 2, Seen(20, 0.21)) == 5 and rule.steps(7, 2, Seen(20, 0.2)) == 60
    assert rule.steps(7, 2, Seen(50, 0.0)) == 100 and rule.steps(7, 2, Seen(2, 0.9)) == 1
    assert rule.steps(7, 2, Seen(1, 0.9)) == 3, "with one step nobody can stand behind"
    assert rule.steps(7, 2, Seen(9, float("nan"))) == 9


def test_a_plateau_is_so_many_rounds_without_a_new_best():
    rule = Plateau(shrink=2, patience=2, least=3)
    tau, seen, taus = rule.steps(20, 1, None), None, []
    for number, loss in enumerate((2.0, 1.5, 1.48, 1.47, 3.0, 2.9, 2.9, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0), start=2):
        seen = saw(seen, tau, float("nan"), loss)
        taus.append(tau)
        tau = rule.steps(20, number, seen)
    # 1.48 and 1.47 are less than 2 % below 1.5; 3.0 is the first of another tau, and 2.9 a new best of it.
    assert taus == [20, 20, 20, 20, 10, 10, 10, 10, 10, 10, 5, 5, 5, 3]
    assert Plateau(least=30).steps(20, 1, None) == 30
    assert saw(Seen(4, 0.1, 1.0, 7), 4, 0.2, 0.98) == Seen(4, 0.2, 1.0, 8), "exactly 2 % is none"


def test_each_round_has_the_tau_of_its_schedule(model, federation, weights, plan):
    decay = replace(plan, local_epochs=None, local_steps=5, rounds=3, schedule=Step(factor=0.5, every=1))
    found = rounds(FedAvg(), model, federation, decay, weights)
    assert [r.info["tau"] for r in found] == [5, 2, 1] and all(math.isnan(r.info["stagnating"]) for r in found)
    held = weights
    for number, tau in enumerate((5, 2, 1), start=1):
        alone = replace(decay, local_steps=tau, schedule=None)
        with LocalEngine(1) as engine:
            cohort = engine.cohort(model, federation, alone, number, found[number - 1].clients)
            held = cohort.mean(FedAvg().learn, held)
        assert tree.fingerprint(held) == tree.fingerprint(found[number - 1].state.weights)


@pytest.mark.parametrize("execution", TOGETHER, ids=["alone", "together"])
def test_what_stagnates_is_counted_from_the_clients_updates(model, federation, weights, plan, execution):
    adaptive = replace(plan, local_epochs=None, local_steps=3, rounds=1, cohort=None, schedule=Adaptive())
    (last,) = rounds(FedAvg(), model, federation, adaptive, weights, execution)
    with LocalEngine(1) as engine:
        cohort = engine.cohort(model, federation, replace(adaptive, schedule=None), 1, last.clients)
        trained = cohort.map(FedAvg().learn, weights)
    low = []
    for name, start in weights.items():
        if start.dim() < 2:
            continue
        updates = np.stack([(w[name] - start).double().numpy().reshape(len(start), -1) for w in trained])
        pairs = [(j, k) for j in range(len(updates)) for k in range(len(updates)) if j != k]
        agreement = np.mean([(updates[j] * updates[k]).sum(1) for j, k in pairs], 0)
        low += list(agreement < np.quantile(agreement, 0.75) / 4)
    assert 0 < np.mean(low) < 1
    assert last.info["stagnating"] == pytest.approx(np.mean(low), abs=1e-12)


@pytest.mark.parametrize("method", [FedAvg(), Scaffold()], ids=["fedavg", "scaffold"])
def test_a_run_with_an_adaptive_schedule_resumes_with_the_same_bits(method, model, federation, weights, plan):
    adaptive = replace(plan, local_epochs=None, local_steps=2, rounds=4, momentum=0, schedule=Adaptive(limit=0.3))
    whole = rounds(method, model, federation, adaptive, weights)
    assert len({r.info["tau"] for r in whole}) > 1
    rest = rounds(method, model, federation, adaptive, weights, after=whole[1])
    assert [r.info for r in rest] == [r.info for r in whole[2:]]
    assert tree.fingerprint(rest[-1].state.weights) == tree.fingerprint(whole[-1].state.weights)


def test_a_run_that_shrinks_on_plateaus_resumes_with_the_same_bits(model, federation, weights, plan):
    rule = Plateau(patience=1)
    shrinking = replace(plan, local_epochs=None, local_steps=8, rounds=6, lr=0.3, schedule=rule)
    whole = rounds(FedAvg(), model, federation, shrinking, weights)
    assert len({r.info["tau"] for r in whole}) > 1
    rest = rounds(FedAvg(), model, federation, shrinking, weights, after=whole[2])
    assert [r.info["tau"] for r in rest] == [r.info["tau"] for r in whole[3:]]
    assert tree.fingerprint(rest[-1].state.weights) == tree.fingerprint(whole[-1].state.weights)


def test_on_the_labs_network_it_is_the_labs_own_rule():
    world = World(d=60, K=4, N=6, m=5, sigma_0=0.05)
    drawn, start = samples(world, 1), filters(world.model().init(1))
    owners = allocate(drawn.labels, world.K, 0.0)
    run = Geometry.of(start, drawn, owners)
    rule = lab.Adaptive(first=4)
    path = list(follow(run, FedAvg(), 0.2, lambda number, last: rule.steps(run, number, last), 6))
    plan = Plan(rounds=6, local_steps=4, lr=0.2, batch_size=100, schedule=Adaptive())
    found = rounds(FedAvg(), world.model(), federation(world, drawn, owners), plan, as_weights(start))
    assert [r.info["tau"] for r in found] == [int(moment.tau[0]) for moment in path]
    shares = [float(lab.stagnating(lab.agreement(run, moment.moved))) for moment in path]
    # One layer of all filters: the quartile is over the same filters, class by class the same rows.
    assert [r.info["stagnating"] for r in found] == pytest.approx(shares, abs=1e-12)
    assert len(set(shares)) > 1


def test_settings_are_read_and_refused_in_one_line():
    table = {"local_steps": 20, "schedule": {"kind": "cosine", "final": 3}}
    plan = names.build(Plan, table, "[plan]")
    assert plan.schedule == Cosine(final=3) and of_round(plan, 99, None).local_steps == 3
    with pytest.raises(ValueError, match="a schedule changes local_steps"):
        Plan(local_epochs=1, schedule=Step())
    for wrong in ({"kind": "cosin"}, {"kind": "step", "final": 3}):
        with pytest.raises(ValueError, match=r"^\[plan\]: .*schedule") as caught:
            names.build(Plan, {"local_steps": 2, "schedule": wrong}, "[plan]")
        assert "\n" not in str(caught.value)


def test_fewer_than_two_clients_tell_nothing(model, federation, weights, plan):
    alone = replace(plan, local_epochs=None, local_steps=3, rounds=2, cohort=1, schedule=Adaptive())
    found = rounds(FedAvg(), model, federation, alone, weights)
    assert [r.info["tau"] for r in found] == [3, 3] and all(math.isnan(r.info["stagnating"]) for r in found)
    assert torch.tensor([r.loss for r in found]).isfinite().all()
