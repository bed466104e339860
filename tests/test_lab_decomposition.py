"""What filters have learnt, read off weights and off the dynamics: the same numbers, and nothing left over."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedstart.algorithms.fedavg import FedAvg
from fedstart.engines.local import LocalEngine
from fedstart.lab import coefficients, exact
from fedstart.lab.geometry import Geometry
from fedstart.lab.heterogeneity import allocate
from fedstart.lab.world import Samples, World, as_weights, federation, filters, samples
from fedstart.training import train
from fedstart.types import Plan

SMALL = World(d=60, K=4, N=6, m=4)
WORLDS = {
    "two classes": SMALL,
    "noise along the signals": replace(SMALL, orthogonal_noise=False),
    "three classes": replace(SMALL, classes=3, K=3, N=7, flips=0.15),
}
each_world = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)


@functools.cache
def trained(world: World) -> tuple[Geometry, Tensor, Samples, Tensor, Tensor]:
    """Geometry, start, samples, the engine's filters after training, and the coefficients by exact dynamics."""
    drawn, start = samples(world, 3), filters(world.model().init(3))
    owners = allocate(drawn.labels, world.K, 0.0)
    geometry, plan = Geometry.of(start, drawn, owners), Plan(rounds=6, local_steps=10, batch_size=world.N, lr=0.2)
    with LocalEngine(1) as engine:
        *_, end = train(FedAvg(), world.model(), federation(world, drawn, owners), plan, as_weights(start), engine)
    *_, last = exact.follow(geometry, FedAvg(), 0.2, 10, 6)
    return geometry, start, drawn, filters(end.state.weights), last.coefficients


@each_world
def test_weights_trained_by_the_engine_have_the_coefficients_of_the_dynamics(world: World) -> None:
    geometry, start, drawn, end, learnt = trained(world)
    found, residual = coefficients.decompose(end, start, drawn.directions)
    left, right = coefficients.read(geometry, found.unsqueeze(0)), coefficients.read(geometry, learnt)
    assert float(residual.abs().max()) < 1e-10
    for one, other in ((left.signal, right.signal), (left.noise, right.noise), (left.alignment, right.alignment)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    assert float(right.signal.abs().max()) > 0.1 and float(right.noise.abs().max()) > 0.1


@each_world
def test_residual_is_what_lies_outside_the_patches(world: World) -> None:
    geometry, start, drawn, end, learnt = trained(world)
    outside = torch.from_numpy(np.random.default_rng(4).normal(size=end.shape))
    basis, _ = torch.linalg.qr(torch.cat([drawn.signals[1:], drawn.noise]).T)
    outside = outside - outside @ basis @ basis.T
    found, residual = coefficients.decompose(end + outside, start, drawn.directions)
    torch.testing.assert_close(residual, outside, rtol=0, atol=1e-10)
    left, right = coefficients.read(geometry, found.unsqueeze(0)), coefficients.read(geometry, learnt)
    torch.testing.assert_close(left.noise, right.noise, rtol=0, atol=1e-10)


@each_world
def test_rebuild_is_the_inverse(world: World) -> None:
    _, start, drawn, end, learnt = trained(world)
    found, residual = coefficients.decompose(end, start, drawn.directions)
    torch.testing.assert_close(coefficients.rebuild(found, start, drawn.directions) + residual, end, rtol=0, atol=1e-13)
    torch.testing.assert_close(coefficients.rebuild(learnt[0], start, drawn.directions), end, rtol=0, atol=1e-10)
    again, nothing = coefficients.decompose(
        coefficients.rebuild(found, start, drawn.directions), start, drawn.directions
    )
    torch.testing.assert_close(again, found, rtol=0, atol=1e-10)
    assert float(nothing.abs().max()) < 1e-12


def test_signal_and_noise_by_hand() -> None:
    """Two filters, d = 5, mu = 2 e_1: w_0 = (-1, 0, 0, 0, 0) of class -1 and (-3, 0, 1, 0, 0) of class +1."""
    world = World(d=5, K=1, N=2, m=1)
    mu = torch.tensor([2.0, 0, 0, 0, 0], dtype=torch.float64)
    noise = torch.tensor([[0.0, 3, 0, 0, 0], [0, 0, 0, 4, 0]], dtype=torch.float64)
    start = torch.tensor([[-1.0, 0, 0, 0, 0], [-3, 0, 1, 0, 0]], dtype=torch.float64)
    drawn = Samples(torch.stack([-mu, mu]), noise, torch.tensor([0, 1]), torch.tensor([0, 1]))
    geometry = Geometry.of(start, drawn, np.zeros(2, dtype=np.int64))
    assert (geometry.n, geometry.classes, geometry.filters, geometry.clients) == (2, 2, world.m, 1)
    begun = coefficients.at_start(geometry)
    assert begun.alignment.tolist() == [[2.0, -6.0]]
    assert begun.misaligned.tolist() == [[False, True]]
    assert not begun.signal.any() and not begun.noise.any() and begun.ratio.isnan().all()
    moved = torch.tensor([[[0.5, 0.0, 2.0, -1.0], [0.25, 2.0, -1.0, 0.5]]], dtype=torch.float64)
    found = coefficients.read(geometry, moved)
    # (0.5 - 0) ||mu||^2 and (2 - 0.25) ||mu||^2; coefficients times 9 and 16.
    assert found.signal.tolist() == [[2.0, 7.0]]
    assert found.noise.tolist() == [[[18.0, -16.0], [-9.0, 8.0]]]
    assert found.positive.tolist() == [[[18.0, 0.0], [0.0, 8.0]]]
    assert found.negative.tolist() == [[[0.0, -16.0], [-9.0, 0.0]]]
    assert found.ratio.tolist() == [[2.0 / 18.0, 7.0 / 8.0]]
    assert found.alignment.tolist() == [[4.0, 1.0]]
    assert found.misaligned.tolist() == [[False, False]]
    rebuilt = coefficients.rebuild(moved[0], start, drawn.directions)
    assert rebuilt.tolist() == [[-2.0, 6.0, 0.0, -4.0, 0.0], [0.5, -3.0, 1.0, 2.0, 0.0]]


@each_world
def test_alignment_at_the_start_and_later_is_definition_1(world: World) -> None:
    geometry, start, drawn, end, learnt = trained(world)
    begun, now = coefficients.at_start(geometry), coefficients.read(geometry, learnt)
    for found, weights in ((begun, start), (now, end)):
        expected = torch.stack([weights[f] @ drawn.signals[f // world.m] for f in range(len(weights))])
        torch.testing.assert_close(found.alignment[0], expected, rtol=0, atol=1e-10)
        assert torch.equal(found.misaligned, found.alignment < 0)
    if world.classes == 2:
        mu = drawn.signals[1]
        j = [-1] * world.m + [1] * world.m
        assert begun.misaligned[0].tolist() == [bool(j[r] * (start[r] @ mu) < 0) for r in range(2 * world.m)]
    assert 0 < int(begun.misaligned.sum()) < begun.misaligned.numel()


@each_world
def test_mean_loss_is_that_of_the_network(world: World) -> None:
    geometry, _, drawn, end, learnt = trained(world)
    losses = cross_entropy(world.model().apply(as_weights(end), drawn.inputs), drawn.labels, reduction="none")
    torch.testing.assert_close(exact.mean_loss(geometry, learnt), losses.mean().view(1), rtol=0, atol=1e-10)


def test_runs_of_other_shapes_do_not_stack() -> None:
    runs = [trained(world)[0] for world in WORLDS.values()]
    assert len(Geometry.stack(runs[:2])) == 2 and torch.equal(Geometry.stack(runs[:2])[1:].gram, runs[1].gram)
    with pytest.raises(ValueError, match="equal numbers of filters, examples and clients"):
        Geometry.stack(runs)
