"""The lab's starts: gradient descent written out on the network itself, and turns of whole vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedstart.algorithms.fedavg import FedAvg
from fedstart.lab import starts
from fedstart.lab.heterogeneity import allocate
from fedstart.lab.starts import Pretraining
from fedstart.lab.world import World, as_weights, samples, signals

TWO = World(d=24, K=2, N=4, m=3, mu=1.5, sigma_0=0.1)
WORLDS = {
    "two classes": TWO,
    "three classes": replace(TWO, classes=3),
    "three orthogonal signals": replace(TWO, classes=3, signals="orthogonal"),
    "noise along the signals": replace(TWO, orthogonal_noise=False),
}
each_world = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
SHORT = Pretraining(examples=12, steps=7, tau=7, eta=0.5)


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Small products only: beside other work, a second thread makes them many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def descended(world: World, found: Tensor, inputs: Tensor, labels: Tensor, steps: int, eta: float) -> Tensor:
    """Filters after gradient descent on the mean cross-entropy of the network."""
    for _ in range(steps):
        held = found.clone().requires_grad_()
        loss = cross_entropy(world.model().apply(as_weights(held), inputs), labels)
        found = found - eta * torch.autograd.grad(loss, held)[0]
    return found


def rotation(world: World, cosine: float) -> Tensor:
    """The orthogonal matrix that turns each axis of the signals, and no other, towards one that they do not use."""
    axes = {("simplex", 2): 1, ("simplex", 3): 2, ("orthogonal", 3): 3}[world.signals, world.classes]
    found = torch.eye(world.d, dtype=torch.float64)
    for axis in range(axes):
        other = axes + axis
        found[axis, axis] = found[other, other] = cosine
        found[other, axis], found[axis, other] = math.sqrt(1 - cosine**2), -math.sqrt(1 - cosine**2)
    return found


# --- pre-training ----------------------------------------------------------------------------------------------------


def test_random_filters_are_the_models_own() -> None:
    world = World(d=400, m=50, sigma_0=0.03)
    found = starts.random(world, 5)
    assert torch.equal(found, world.model().init(5)["filters.weight"].double())
    assert found.shape == (100, 400) and float(found.std()) == pytest.approx(0.03, rel=0.02)


@each_world
def test_pretrained_filters_are_those_of_gradient_descent_on_the_network(world: World) -> None:
    found = starts.pretrained(world, (2, 5), SHORT, FedAvg())
    for seed, filters in zip((2, 5), found, strict=True):
        drawn = samples(world, seed, 12, purpose="lab pre-training")
        expected = descended(world, starts.random(world, seed), drawn.inputs, drawn.labels, 7, 0.5)
        torch.testing.assert_close(filters, expected, rtol=1e-10, atol=1e-12)


def test_pretraining_by_clients_is_their_mean_after_each_round() -> None:
    settings = replace(SHORT, clients=2, h=0.0, tau=3)
    (found,) = starts.pretrained(TWO, (1,), settings, FedAvg())
    drawn = samples(TWO, 1, 12, purpose="lab pre-training")
    owners = torch.from_numpy(allocate(drawn.labels, 2, 0.0))
    expected = starts.random(TWO, 1)
    for tau in (3, 3, 1):
        each = [
            descended(TWO, expected, drawn.inputs[owners == client], drawn.labels[owners == client], tau, 0.5)
            for client in range(2)
        ]
        expected = (each[0] + each[1]) / 2
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


# --- turned ----------------------------------------------------------------------------------------------------------


@each_world
@pytest.mark.parametrize("cosine", [1.0, 0.6, 0.0, -0.8])
def test_turned_filters_are_those_of_pretraining_on_turned_signals(world: World, cosine: float) -> None:
    turn = rotation(world, cosine)
    assert torch.allclose(signals(world) @ turn.T, signals(world, cosine), atol=1e-14)
    drawn = samples(world, 4, 12, purpose="lab pre-training")
    patches = torch.stack([signals(world, cosine)[drawn.truth], drawn.noise @ turn.T], 1)
    expected = descended(world, starts.random(world, 4) @ turn.T, patches, drawn.labels, 7, 0.5)
    (own,) = starts.pretrained(world, (4,), SHORT, FedAvg())
    torch.testing.assert_close(starts.turned(own, world, cosine), expected, rtol=1e-10, atol=1e-12)


@each_world
def test_a_turn_keeps_lengths_and_a_quarter_of_it_hides_the_signal(world: World) -> None:
    found = starts.random(world, 0) + signals(world).repeat_interleave(world.m, 0)
    turned = starts.turned(found, world, 0.3)
    torch.testing.assert_close(turned @ turned.T, found @ found.T, rtol=1e-10, atol=1e-12)
    assert torch.equal(starts.turned(found, world, 1.0), found)
    own = signals(world).repeat_interleave(world.m, 0)
    right = starts.turned(own, world, 0.0)
    assert float((right * own).sum(1).abs().max()) < 1e-14


# --- flipped and between ---------------------------------------------------------------------------------------------


@each_world
@pytest.mark.parametrize("aligned", [True, False])
def test_flipped_filters_all_stand_on_one_side_of_their_own_signal(world: World, aligned: bool) -> None:
    begun = starts.random(world, 3)
    found = starts.flipped(begun, world, aligned)
    own = signals(world)
    changed = 0
    for number in range(len(begun)):
        before, after = begun[number].numpy(), found[number].numpy()
        signal = own[number // world.m].numpy()
        along = float(before @ signal)
        wanted = abs(along) if aligned else -abs(along)
        assert float(after @ signal) == pytest.approx(wanted, rel=1e-10)
        assert np.linalg.norm(after) == pytest.approx(np.linalg.norm(before), rel=1e-10)
        mirrored = before - 2 * along / world.mu**2 * signal if wanted != along else before
        np.testing.assert_allclose(after, mirrored, rtol=1e-10, atol=1e-13)
        changed += wanted != along
    assert 0 < changed < len(begun)


def test_flipped_filters_keep_their_products_with_noise_that_has_no_part_along_the_signals() -> None:
    begun, noise = starts.random(TWO, 3), samples(TWO, 3).noise
    for aligned in (True, False):
        products = starts.flipped(begun, TWO, aligned) @ noise.T
        torch.testing.assert_close(products, begun @ noise.T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_filters_between_two_others(share: float) -> None:
    first, second = starts.random(TWO, 0), starts.random(TWO, 1)
    expected = (1 - share) * first + share * second
    torch.testing.assert_close(starts.interpolated(first, second, share), expected, rtol=1e-12, atol=1e-14)
