"""Formulas that say beforehand what the lab measures, and its schedules of local steps: worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fedstart import keys
from fedstart.lab import predictions, starts
from fedstart.lab.exact import Moment
from fedstart.lab.geometry import Geometry
from fedstart.lab.heterogeneity import allocate, mixed_share
from fedstart.lab.schedules import Adaptive, Constant, Cosine, Step, agreement, stagnating
from fedstart.lab.world import World, samples, signals


def doubles(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(value: float) -> float:
    """The normal distribution function."""
    return (1 + math.erf(value / math.sqrt(2))) / 2


# --- what misaligned filters learn -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "formula", [predictions.factor, predictions.first_round_factor, predictions.mixed_first_round_factor]
)
def test_factors_between_one_step_in_tau_and_all(formula) -> None:
    assert [formula(0.0, tau) for tau in (1, 4, 10)] == [1, 0.25, 0.1]
    assert [formula(1.0, tau) for tau in (1, 4, 10)] == [1, 1, 1]
    # Half of tau = 10 steps, and one of the other ten: 5 and 1/2 of 10.
    assert formula(0.5, 10) == pytest.approx(0.55, rel=1e-15)
    assert formula(0.2, 4) == pytest.approx(0.2 + 0.2, rel=1e-15)


def test_the_share_of_clients_with_several_classes() -> None:
    labels, owners = np.array([0, 0, 1, 1, 0, 1]), np.array([0, 0, 1, 2, 2, 2])
    assert mixed_share(labels, owners) == pytest.approx(1 / 3)


# --- how many filters are misaligned ---------------------------------------------------------------------------------


def test_half_of_random_filters_are_misaligned() -> None:
    world = World(d=10, m=5000)
    own = signals(world).repeat_interleave(world.m, 0)
    share = float(((starts.random(world, 0) * own).sum(1) < 0).double().mean())
    # Two standard errors of 10 000 filters.
    assert abs(share - predictions.random_share()) < 0.01


def test_turned_share_by_hand() -> None:
    alignment, rest = doubles([[1.0, -2.0], [0.5, 4.0]]), doubles([[3.0, 4.0], [-1.0, 1.0]])
    # At cosine 0.6 the sine is 0.8; the second numbers' roots of mean squares are 5 / sqrt(2) and 1.
    ends = [(-0.6 / (0.8 * 5 / math.sqrt(2)), 1.2 / (0.8 * 5 / math.sqrt(2))), (-0.3 / 0.8, -2.4 / 0.8)]
    expected = [(normal(first) + normal(second)) / 2 for first, second in ends]
    assert predictions.turned_share(alignment, rest, 0.6).tolist() == pytest.approx(expected, rel=1e-12)
    assert predictions.turned_share(alignment, rest, 1.0).tolist() == [0.5, 0.0]
    assert predictions.turned_share(alignment, rest, -1.0).tolist() == [0.5, 1.0]
    assert predictions.turned_share(alignment, rest, 0.0).tolist() == pytest.approx([0.5, 0.5], rel=1e-15)


@pytest.mark.parametrize("cosine", [0.9, 0.5, 0.1, -0.4])
def test_turned_share_is_that_of_filters_that_are_turned(cosine: float) -> None:
    world = World(d=8, m=20_000, mu=2.0, sigma_0=0.3)
    own = signals(world).repeat_interleave(world.m, 0)
    found = starts.random(world, 1) + 0.1 * own
    sign = own[:, 0] / world.mu
    turned = starts.turned(found, world, cosine)
    share = float(((turned * own).sum(1) < 0).double().mean())
    guess = predictions.turned_share((found[:, 0] * sign)[None], (found[:, 1] * sign)[None], cosine)
    # Three standard errors of 40 000 filters.
    assert abs(float(guess) - share) < 3 * 0.5 / math.sqrt(40_000)
    assert abs(share - 0.5) > 0.01


def test_the_scale_of_signal_over_noise() -> None:
    assert predictions.ratio_scale(World(d=26, mu=3.0, sigma_p=0.5)) == pytest.approx(9 / (0.25 * 25), rel=1e-15)


# --- schedules -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair() -> Geometry:
    """Two runs of three clients."""
    world = World(d=20, K=3, N=2, m=2)
    found = []
    for seed in range(2):
        drawn = samples(world, seed)
        owners = np.array([0, 0, 1, 1, 2, 2])
        found.append(Geometry.of(starts.random(world, seed), drawn, owners))
    return Geometry.stack(found)


def taus(schedule, geometry: Geometry, rounds: int) -> list[int]:
    return [int(schedule.steps(geometry, number, None)) for number in range(1, rounds + 1)]


def test_schedules_by_hand(pair: Geometry) -> None:
    assert taus(Constant(7), pair, 3) == [7, 7, 7]
    assert taus(Step(first=20, factor=0.5, every=2), pair, 12) == [20, 20, 10, 10, 5, 5, 2, 2, 1, 1, 1, 1]
    assert taus(Step(first=3, factor=2, every=1, top=20), pair, 5) == [3, 6, 12, 20, 20]
    # Shares of half a cosine over four rounds: 1, (1 + sqrt(1/2)) / 2, 1/2, (1 - sqrt(1/2)) / 2, 0.
    shares = [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0, 0]
    assert taus(Cosine(first=100, final=10, rounds=4), pair, 6) == [round(10 + 90 * share) for share in shares]
    assert taus(Step(first=200, factor=0.5), pair, 10_000)[-1] == 1


def test_agreement_is_the_mean_product_of_two_clients_updates(pair: Geometry) -> None:
    moved = torch.from_numpy(keys.generator(0, "lab updates").normal(size=(2, 3, *pair.overlaps.shape[1:])))
    found = agreement(pair, moved)
    assert found.shape == (2, 4)
    for run in range(2):
        gram = pair.gram[run].numpy()
        for filter_ in range(4):
            updates = moved[run, :, filter_].numpy()
            products = [updates[j] @ gram @ updates[k] for j in range(3) for k in range(3) if j != k]
            assert float(found[run, filter_]) == pytest.approx(sum(products) / 6, rel=1e-10)


def test_stagnating_filters_agree_less_than_a_quarter_of_the_upper_quartile() -> None:
    # Upper quartiles 8 and 4: below 2 are two of five, below 1 none but the negative one.
    found = doubles([[1.9, -3.0, 2.0, 8.0, 9.0], [4.0, 4.0, 1.0, -0.1, 4.0]])
    assert stagnating(found).tolist() == [0.4, 0.2]


def test_adaptive_divides_where_filters_stagnate_and_multiplies_elsewhere(pair: Geometry) -> None:
    rule = Adaptive(first=5, top=50, grow=3, shrink=4, limit=0.2)
    moved = torch.ones(2, 3, *pair.overlaps.shape[1:], dtype=torch.float64)
    # In the second run one of four filters is moved by one client only: nobody agrees with it.
    moved[1, 1:, 0] = 0
    assert stagnating(agreement(pair, moved)).tolist() == [0.0, 0.25]

    def after(*tau: int) -> list[int]:
        steps = torch.tensor(tau)
        return rule.steps(pair, 2, Moment(1, moved.mean(1), moved, steps, steps)).tolist()

    assert rule.steps(pair, 1, None).tolist() == [5]
    assert after(9, 9) == [27, 2] and after(40, 40) == [50, 10]
    assert after(2, 2) == [6, 1] and after(1, 1) == [3, 3], "with one step nobody can stand behind"


def test_clients_of_one_class_are_what_the_first_round_is_about() -> None:
    labels = np.arange(16) % 2
    assert mixed_share(labels, allocate(labels, 4, 0.0)) == 0 and mixed_share(labels, allocate(labels, 4, 1.0)) == 1
