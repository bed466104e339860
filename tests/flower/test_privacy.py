"""Flower's own differential privacy around exchanges that are means, and its refusal everywhere else."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

flwr = pytest.importorskip("flwr", reason="needs the extra fedstart[flower]")

from flwr.app import Message, MetricRecord, RecordDict  # noqa: E402
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod  # noqa: E402
from flwr.serverapp.strategy import (  # noqa: E402
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
)
from grids import CLIENTS, HOSTILE, OTHERS, QUICK, honest, make_grid, node  # noqa: E402
from hostile import put  # noqa: E402

from fedstart import tree  # noqa: E402
from fedstart.algorithms.coprefl import CoPreFL  # noqa: E402
from fedstart.algorithms.fedavg import FedAvg  # noqa: E402
from fedstart.algorithms.fedprox import FedProx  # noqa: E402
from fedstart.algorithms.scaffold import Scaffold  # noqa: E402
from fedstart.engines.flower import FlowerEngine, Nodes  # noqa: E402
from fedstart.engines.grid import InProcessGrid  # noqa: E402
from fedstart.engines.local import LocalEngine  # noqa: E402
from fedstart.engines.privacy import PrivateMean  # noqa: E402
from fedstart.training import train  # noqa: E402

FAR = 1e6
fixed_at_server = functools.partial(DifferentialPrivacyServerSideFixedClipping, num_sampled_clients=CLIENTS)
fixed_at_nodes = functools.partial(DifferentialPrivacyClientSideFixedClipping, num_sampled_clients=CLIENTS)
adaptive_at_server = functools.partial(
    DifferentialPrivacyServerSideAdaptiveClipping, num_sampled_clients=CLIENTS, noise_multiplier=0.0
)
adaptive_at_nodes = functools.partial(
    DifferentialPrivacyClientSideAdaptiveClipping, num_sampled_clients=CLIENTS, noise_multiplier=0.0
)


@pytest.fixture
def plan(plan):
    return replace(plan, rounds=2, cohort=None)


def run(method, model, federation, plan, weights, privacy, mods=(), change=None):
    grid = make_grid(federation, change)
    if mods:
        grid = InProcessGrid(honest(federation, mods), {node(k): {"partition-id": k} for k in range(CLIENTS)})
    nodes = Nodes("grid", grid, QUICK)
    return list(train(method, model, nodes, plan, weights, FlowerEngine(grid, QUICK, privacy)))


def plain_mean(method, model, federation, plan, weights, clients, norm=FAR):
    """The mean of clipped updates over these clients, each alike."""
    updates = []
    with LocalEngine(1) as engine:
        for learned in engine.cohort(model, federation, plan, 1, clients).map(method, weights):
            update = tree.subtract(learned, weights)
            updates.append(tree.scale(update, min(1.0, norm / tree.norm(update))))
    return tree.add(weights, tree.combine(updates, [1 / len(updates)] * len(updates)))


def close(left, right):
    return all(torch.allclose(left[name], right[name], rtol=1e-9, atol=1e-12) for name in right)


@pytest.mark.parametrize("method", [FedAvg(), FedProx(mu=0.5)], ids=["fedavg", "fedprox"])
@pytest.mark.parametrize("norm", [FAR, 0.05], ids=["unclipped", "clipped"])
@pytest.mark.parametrize(
    ("wrap", "mods"), [(fixed_at_server, ()), (fixed_at_nodes, (fixedclipping_mod,))], ids=["server", "nodes"]
)
def test_without_noise_it_is_the_mean_of_clipped_updates(wrap, mods, norm, method, model, federation, plan, weights):
    privacy = functools.partial(wrap, noise_multiplier=0.0, clipping_norm=norm)
    first, second = run(method, model, federation, plan, weights, privacy, mods)
    wanted = plain_mean(method.learn, model, federation, plan, weights, range(CLIENTS), norm)
    assert close(first.state.weights, wanted) and not first.missing and not second.missing
    assert {name: tensor.dtype for name, tensor in first.state.weights.items()} == {
        name: tensor.dtype for name, tensor in weights.items()
    }


def test_the_noise_has_the_size_that_flower_says(model, federation, plan, weights, monkeypatch):
    def privacy(strategy):
        return fixed_at_server(strategy, noise_multiplier=3.0, clipping_norm=2.0)

    monkeypatch.setattr(np.random, "normal", np.random.Generator(np.random.Philox(4)).normal)
    noise = []
    for _ in range(20):
        (after,) = run(FedAvg(), model, federation, replace(plan, rounds=1, local_epochs=1), weights, privacy)
        noise.append(torch.cat([tensor.flatten() for tensor in after.state.weights.values()]))
    spread = torch.stack(noise).std(0).mean()
    assert spread == pytest.approx(3.0 * 2.0 / CLIENTS, rel=0.1)


@pytest.mark.parametrize(
    ("wrap", "mods"), [(adaptive_at_server, ()), (adaptive_at_nodes, (adaptiveclipping_mod,))], ids=["server", "nodes"]
)
def test_the_clipping_norm_adapts_from_round_to_round(wrap, mods, model, federation, plan, weights):
    made = []

    def privacy(strategy):
        made.append(wrap(strategy, initial_clipping_norm=FAR))
        return made[-1]

    first, second = run(FedAvg(), model, federation, plan, weights, privacy, mods)
    assert close(first.state.weights, plain_mean(FedAvg().learn, model, federation, plan, weights, range(CLIENTS)))
    # Nobody was clipped in either round: each time the norm grows by exp(0.2 * (0.5 - 0)) against the target of half.
    assert len(made) == 1 and made[0].clipping_norm == pytest.approx(FAR * np.exp(0.2))
    assert not second.missing


def test_local_privacy_is_a_mod_of_the_nodes(model, federation, plan, weights):
    quiet = LocalDpMod(clipping_norm=0.05, sensitivity=0.0, epsilon=1.0, delta=0.1)
    grid = InProcessGrid(honest(federation, [quiet]), {node(k): {"partition-id": k} for k in range(CLIENTS)})
    cohort = FlowerEngine(grid, QUICK).cohort(model, found(grid), plan, 1, range(CLIENTS), {})
    mean = cohort.mean(FedAvg().learn, weights, weight=None)
    assert close(mean, plain_mean(FedAvg().learn, model, federation, plan, weights, range(CLIENTS), 0.05))


def found(grid):
    nodes = Nodes("grid", grid, QUICK)
    assert len(nodes.eligible) == CLIENTS
    return nodes


def test_a_hostile_answer_costs_its_node_under_privacy_too(model, federation, plan, weights):
    privacy = functools.partial(fixed_at_server, noise_multiplier=0.0, clipping_norm=FAR)
    plan = replace(plan, rounds=1)
    (after,) = run(FedAvg(), model, federation, plan, weights, privacy, change=put(np.nan))
    assert set(after.missing) == {HOSTILE}
    assert close(after.state.weights, plain_mean(FedAvg().learn, model, federation, plan, weights, OTHERS))


def test_a_node_that_did_not_clip_is_left_out(model, federation, plan, weights):
    privacy = functools.partial(fixed_at_nodes, noise_multiplier=0.0, clipping_norm=0.001)
    with pytest.raises(ValueError, match="0 clients answered, 3 are needed .*not clipped to 0.001"):
        run(FedAvg(), model, federation, plan, weights, privacy)


def test_integer_tensors_keep_the_servers_values(model, federation, plan, weights):
    private = PrivateMean(functools.partial(fixed_at_server, noise_multiplier=0.0, clipping_norm=FAR))
    reference = {"a": torch.zeros(2, dtype=torch.bfloat16), "count": torch.tensor(5)}
    assert private.announce(1, reference, [7]) == {}
    asked = Message(RecordDict(), 7, "train.learn")
    reply = RecordDict({"report": MetricRecord({"client": 0})})
    results = [{"a": torch.full((2,), value, dtype=torch.bfloat16), "count": torch.tensor(9)} for value in (1.0, 2.0)]
    mean = private.mean(1, [private.reply(asked, result, reply) for result in results])
    assert mean["count"] == 5 and mean["a"].dtype == torch.bfloat16 and mean["a"].tolist() == [1.5, 1.5]


def test_methods_with_another_exchange_are_refused_before_anything_is_sent(model, federation, plan, weights):
    sent = []

    def change(reply, message, context):
        sent.append(message.metadata.message_type)
        return reply

    privacy = functools.partial(fixed_at_server, noise_multiplier=1.0, clipping_norm=1.0)
    with pytest.raises(ValueError, match=r"^CoPreFL.judge gives the server each client's own loss and gradient, which"):
        run(CoPreFL(), model, federation, plan, weights, privacy, change=change)
    assert not sent
    grid = make_grid(federation)
    cohort = FlowerEngine(grid, QUICK, privacy).cohort(model, found(grid), plan, 1, range(CLIENTS), {})
    with pytest.raises(ValueError, match=r"^FedAvg.learn: differential privacy needs a mean"):
        cohort.map(FedAvg().learn, weights)


def test_nodes_with_mods_refuse_what_these_do_not_protect(model, federation, plan, weights):
    mod = LocalDpMod(clipping_norm=1.0, sensitivity=0.0, epsilon=1.0, delta=0.1)
    for method, reason in ((CoPreFL(), "CoPreFL.judge gives the server"), (Scaffold(), "expects the keys")):
        with pytest.raises(ValueError, match=f"0 clients answered, 3 are needed .*{reason}"):
            run(method, model, federation, plan, weights, None, [mod])
    half = {name: tensor.bfloat16() for name, tensor in weights.items()}
    with pytest.raises(ValueError, match="cannot clip 'hidden1.weight' of int16"):
        run(FedAvg(), model, federation, plan, half, None, [mod])


def test_scaffold_is_clipped_around_what_it_sends_when_nothing_is_learned(model, federation, plan, weights):
    privacy = functools.partial(fixed_at_server, noise_multiplier=0.0, clipping_norm=FAR)
    plan = replace(plan, rounds=1)
    (private,) = run(Scaffold(), model, federation, plan, weights, privacy)
    (plain,) = run(Scaffold(), model, federation, plan, weights, None)
    assert close(private.state.weights, plain.state.weights)
    still = functools.partial(fixed_at_server, noise_multiplier=0.0, clipping_norm=1e-12)
    (private,) = run(Scaffold(), model, federation, plan, weights, still)
    assert close(private.state.weights, weights)


def test_a_strategy_that_releases_nothing_is_an_error_in_one_line(model, federation, plan, weights):
    class Silent(DifferentialPrivacyServerSideFixedClipping):
        def aggregate_train(self, server_round, replies):
            return None, None

    with pytest.raises(ValueError, match="^round 1: differential privacy: no mean was released$"):
        run(FedAvg(), model, federation, plan, weights, lambda strategy: Silent(strategy, 1.0, 1.0, CLIENTS))
