"""What the lab reports of runs and how it judges them: against literal loops and numbers worked out by hand."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedstart.algorithms.fedavg import FedAvg
from fedstart.lab import error, exact, findings, runs, starts
from fedstart.lab.geometry import Geometry
from fedstart.lab.heterogeneity import allocate
from fedstart.lab.world import Samples, World, samples
from fedstart.scores import Contrast

TWO = World(d=30, K=2, N=6, m=4, mu=1.5, sigma_0=0.1)
WORLDS = {
    "two classes": TWO,
    "three classes": replace(TWO, classes=3, K=3),
    "noise": replace(TWO, orthogonal_noise=False),
}
each_world = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
TRAINING = runs.Training(FedAvg(), 0.3, 20, draws=200)


def run(world: World, seed: int, start: Tensor | None = None) -> tuple[Geometry, Tensor, Samples]:
    """One run of clients with one class each, its start and its examples."""
    drawn, start = samples(world, seed), starts.random(world, seed) if start is None else start
    return Geometry.of(start, drawn, allocate(drawn.labels, world.K, 0.0)), start, drawn


@functools.cache
def three(world: World) -> tuple[Geometry, list[Tensor], list[Samples], Tensor]:
    """Three runs as one stack, their starts and examples, and coefficients after four rounds of five steps."""
    found = [run(world, seed) for seed in range(3)]
    geometry = Geometry.stack([each[0] for each in found])
    *_, end = exact.follow(geometry, FedAvg(), 0.3, 5, 4)
    return geometry, [each[1] for each in found], [each[2] for each in found], end.coefficients


# --- groups ----------------------------------------------------------------------------------------------------------


def by_hand(world: World, start: Tensor, drawn: Samples, learnt: Tensor) -> dict[str, float]:
    """Groups of one run, filter by filter from the vectors themselves."""
    kept: dict[str, list[tuple[float, float]]] = {"aligned": [], "misaligned": []}
    noises = []
    for number, (filter_, coefficients) in enumerate(zip(start.numpy(), learnt.numpy(), strict=True)):
        own = drawn.signals[number // world.m].numpy()
        learnt_signal = sum(coefficients[c] * drawn.signals[c].numpy() for c in range(world.classes))
        noise = 0.0
        for place, patch in enumerate(drawn.noise.numpy()):
            noise += max(0.0, coefficients[world.classes + place] * sum(patch**2))
        noises.append(noise)
        group = "misaligned" if sum(filter_ * own) < 0 else "aligned"
        kept[group].append((sum(learnt_signal * own), noise))
    found: dict[str, float] = {"noise": sum(noises) / len(noises), "misaligned": len(kept["misaligned"]) / len(start)}
    for group, members in kept.items():
        signal, noise = (sum(pair[i] for pair in members) / len(members) for i in (0, 1))
        found |= {f"signal_{group}": signal, f"noise_{group}": noise, f"ratio_{group}": signal / noise}
    return found | {"factor": found["signal_misaligned"] / found["signal_aligned"]}


@each_world
def test_groups_are_means_over_the_filters_of_each(world: World) -> None:
    geometry, begun, drawn, learnt = three(world)
    found = runs.groups(geometry, learnt)
    for place in range(3):
        expected = by_hand(world, begun[place], drawn[place], learnt[place])
        assert {name: float(values[place]) for name, values in found.items()} == pytest.approx(expected, rel=1e-10)
    # Misaligned filters learn less, so that no exchange of groups can pass.
    assert float(found["factor"].max()) < 0.9


def test_groups_without_a_filter_have_no_mean() -> None:
    begun = starts.flipped(starts.random(TWO, 0), TWO, aligned=True)
    geometry = run(TWO, 0, begun)[0]
    found = {name: float(values) for name, values in runs.learnt(geometry, TRAINING, 5).items()}
    lost = {"signal_misaligned", "noise_misaligned", "ratio_misaligned", "factor"}
    assert {name for name, value in found.items() if math.isnan(value)} == lost
    assert found["misaligned"] == 0 and found["noise"] == pytest.approx(found["noise_aligned"], rel=1e-12)


# --- rounds and pieces -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tau", "steps", "expected"),
    [(4, 10, [4, 4, 2]), (5, 10, [5, 5]), (1, 3, [1, 1, 1]), (200, 7, [7]), (3, 0, [])],
)
def test_whole_rounds_cut_the_last(tau: int, steps: int, expected: list[int]) -> None:
    schedule, rounds = runs.whole_rounds(tau, steps)
    assert [schedule(number, None).tolist() for number in range(1, rounds + 1)] == [[taken] for taken in expected]


def test_last_makes_as_many_steps_as_training_has() -> None:
    geometry = run(TWO, 0)[0]
    taus = (8, 8, 4)
    *_, end = exact.follow(geometry, FedAvg(), 0.3, lambda number, _: torch.tensor([taus[number - 1]]), 3)
    assert torch.equal(runs.last(geometry, TRAINING, 8), end.coefficients)
    assert not runs.last(geometry, replace(TRAINING, steps=0), 8).any()


@pytest.mark.parametrize("count", [1, 3, 30, 61, 125])
def test_pieces_are_small_equal_and_in_order(count: int) -> None:
    whole = Geometry.stack([run(replace(TWO, N=2, m=1), seed)[0] for seed in range(count)])
    rows = torch.arange(count)
    pieces = runs.in_pieces(whole, lambda piece, own: (piece.overlaps, own, torch.is_inference_mode_enabled()), rows)
    assert torch.equal(torch.cat([piece[0] for piece in pieces]), whole.overlaps)
    assert torch.equal(torch.cat([piece[1] for piece in pieces]), rows)
    sizes = [len(piece[1]) for piece in pieces]
    assert max(sizes) <= 30 and max(sizes) - min(sizes) <= 1 and (count == 1 or len(sizes) % 2 == 0)
    assert all(piece[2] for piece in pieces)


@pytest.mark.parametrize("world", [TWO, replace(TWO, classes=3, K=3)], ids=["two", "three"])
def test_outcomes_are_groups_and_test_errors_of_each_run(world: World) -> None:
    whole = three(world)[0]
    found, silent = runs.outcomes(whole, TRAINING, 8, 0.9), runs.learnt(whole, TRAINING, 8)
    for place in range(3):
        alone = whole[place : place + 1]
        learnt = runs.last(alone, TRAINING, 8)
        expected = {**runs.groups(alone, learnt), "error": error.simulated(alone, learnt, 0.9, 200)}
        gaussian = error.gaussian(alone, learnt, 0.9) if world.classes == 2 else torch.tensor([math.nan])
        for name, value in {**expected, "gaussian": gaussian.double()}.items():
            torch.testing.assert_close(found[name][place : place + 1], value, equal_nan=True, rtol=1e-10, atol=1e-12)
    assert set(found) - set(silent) == {"error", "gaussian"}
    assert all(torch.equal(found[name], silent[name]) for name in silent)


# --- statistics ------------------------------------------------------------------------------------------------------


def test_statistics_are_means_and_t_intervals() -> None:
    # 1, 2, 3, 4, 10: mean 4, variance 50 / 4, and Student's quantile of 4 degrees of freedom from a printed table.
    half = 2.776445 * math.sqrt(12.5 / 5)
    nan = math.nan
    given = {
        "x": torch.tensor([1.0, 2, 3, 4, 10], dtype=torch.float64),
        "y": torch.tensor([nan, 7, nan, nan, nan], dtype=torch.float64),
        "z": torch.full((5,), nan, dtype=torch.float64),
    }
    found = runs.statistics(given)
    expected = {"x": 4.0, "x_low": 4 - half, "x_high": 4 + half}
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-6)
    assert [found[key] for key in ("y", "y_low", "y_high", "z", "z_low", "z_high")] == [7.0, *[None] * 5]
    assert found["n"] == 5 and set(found) == {"n", *(f"{name}{end}" for name in "xyz" for end in ("", "_low", "_high"))}
    assert runs.statistics({"y": given["y"], "z": given["z"]})["n"] == 1


# --- contrasts -------------------------------------------------------------------------------------------------------


def test_difference_is_paired_and_leaves_out_seeds_without_a_value() -> None:
    first = torch.tensor([3.0, math.nan, 5.0, 9.0, 4.0], dtype=torch.float64)
    second = torch.tensor([1.0, 2.0, math.nan, 6.0, 3.0], dtype=torch.float64)
    found = findings.difference(first, second)
    # 2, 3, 1: mean 2, standard error 1 / sqrt(3), quantile of 2 degrees of freedom.
    half = 4.302653 / math.sqrt(3)
    assert (found.difference, found.low, found.high) == pytest.approx((2, 2 - half, 2 + half), rel=1e-6)
    assert findings.difference(second, first).difference == -2


def test_relative_is_the_mean_of_ratios_less_one() -> None:
    first, second = torch.tensor([2.0, 6.0, 1.0]).double(), torch.tensor([1.0, 4.0, 2.0]).double()
    found = findings.relative(first, second)
    # 1, 0.5, -0.5: mean 1/3, squares about it 7/6.
    half = 4.302653 * math.sqrt(7 / 6 / 2 / 3)
    assert (found.difference, found.low, found.high) == pytest.approx((1 / 3, 1 / 3 - half, 1 / 3 + half), rel=1e-6)


def test_proportion_is_the_geometric_mean_of_ratios_less_one() -> None:
    first, second = torch.tensor([2.0, 8.0, 1.0]).double(), torch.tensor([1.0, 1.0, 1.0]).double()
    found = findings.proportion(first, second)
    # log 2 times 1, 3, 0: mean 4/3, squares about it 14/3.
    half = 4.302653 * math.sqrt(14 / 3 / 2 / 3)
    expected = tuple(2**exponent - 1 for exponent in (4 / 3, 4 / 3 - half, 4 / 3 + half))
    assert (found.difference, found.low, found.high) == pytest.approx(expected, rel=1e-6)
    alone = findings.proportion(first[:1], second[:1])
    assert alone.difference == pytest.approx(1) and (alone.low, alone.high) == (None, None)


@pytest.mark.parametrize(
    ("low", "mean", "high", "expected"),
    [
        # Above 0, below 0, within a tenth of 0.
        (0.01, 0.2, 0.39, (True, False, False)),
        (-0.01, 0.2, 0.41, (False, False, False)),
        (-0.39, -0.2, -0.01, (False, True, False)),
        (-0.41, -0.2, 0.01, (False, False, False)),
        (0.0, 0.05, 0.09, (False, False, True)),
        (-0.09, -0.05, 0.0, (False, False, True)),
        (0.02, 0.05, 0.08, (True, False, True)),
        (-0.08, -0.05, -0.02, (False, True, True)),
        (-0.2, 0.0, 0.09, (False, False, False)),
        (-0.09, 0.0, 0.2, (False, False, False)),
        (None, 0.05, None, (False, False, False)),
    ],
)
def test_only_whole_intervals_count(low: Any, mean: float, high: Any, expected: tuple[bool, ...]) -> None:
    found = Contrast(mean, low, high, None)
    assert (findings.above(found), findings.below(found), findings.alike(found)) == expected
    assert findings.alike(found, tolerance=1.0) is (low is not None)


@pytest.mark.parametrize(
    ("found", "digits", "percent", "expected"),
    [
        (Contrast(0.1234, 0.1, 0.1468, 0.0), 3, False, "+0.123 [+0.100, +0.147]"),
        (Contrast(-0.1234, -0.2, 0.01, 0.0), 2, False, "-0.12 [-0.20, +0.01]"),
        (Contrast(0.1234, 0.1, 0.1468, 0.0), 3, True, "+12.3 % [+10.0, +14.7]"),
        (Contrast(0.1234, None, None, None), 4, False, "+0.1234 (one seed)"),
        (Contrast(-0.5, None, None, None), 4, True, "-50.0 % (one seed)"),
    ],
)
def test_contrasts_are_shown_with_their_intervals(found: Contrast, digits: int, percent: bool, expected: str) -> None:
    assert findings.shown(found, digits, percent) == expected


# --- claims ----------------------------------------------------------------------------------------------------------


def test_verdicts() -> None:
    answers = {(): "not tested", (True, True): "holds", (False, True): "holds in part", (False, False): "does not hold"}
    for held, expected in answers.items():
        assert findings.verdict(iter(held)) == expected


def test_where_a_statement_holds() -> None:
    assert findings.where({"A": True, "B": False, "C": True}) == "holds at A, C; not at B"
    for held in ({"A": True, "B": True}, {"A": False}, {}):
        assert findings.where(held) == ""


def test_a_claim_about_several_conditions() -> None:
    found = {"h = 0": Contrast(0.2, 0.1, 0.3, 0.0), "h = 1": Contrast(0.2, -0.1, 0.5, 0.2)}
    claim = findings.tested("it rises", "section 5", "ours", found, findings.above, "rise: ", percent=True)
    measured = "rise: h = 0: +20.0 % [+10.0, +30.0]; h = 1: +20.0 % [-10.0, +50.0]"
    limits = "holds at h = 0; not at h = 1"
    assert claim == findings.Claim("it rises", "section 5", "ours", "holds in part", measured, limits)
    assert findings.tested("", "", "ours", found, findings.below, digits=1) == findings.Claim(
        "", "", "ours", "does not hold", "h = 0: +0.2 [+0.1, +0.3]; h = 1: +0.2 [-0.1, +0.5]", ""
    )
    assert findings.tested("", "", "ours", {}, findings.above).verdict == "not tested"


def test_a_fit_is_one_less_the_share_of_squared_misses() -> None:
    seen = [(1.0, 1.0, 0.5, 1.5, 3), (2.0, 1.5, 1.8, 2.2, 3), (6.0, 7.0, 5.0, 7.5, 3), (3.0, 3.0, None, None, 1)]
    rows = [dict(zip(("y", "guess", "y_low", "y_high", "n"), row, strict=True)) for row in seen]
    rows += [{"y": None, "guess": 1.0, "n": 3}, {"y": 9.0, "guess": None, "n": 3}]
    (found,) = findings.fit(rows, "guess", "y", ("name", "formula", "source", "inferred"), "words")
    # Misses 0, 1/2, -1, 0; the mean is 3, the squares about it 4, 1, 9, 0. Two of three intervals hold the guess.
    assert found.r2 == pytest.approx(1 - 1.25 / 14, rel=1e-12)
    assert (found.deviation, found.inside) == (1.0, pytest.approx(2 / 3))
    about = (found.name, found.formula, found.source, found.status, found.column, found.measured, found.words)
    assert about == ("name", "formula", "source", "inferred", "guess", "y", "words")


def test_a_fit_of_equal_values_or_of_none() -> None:
    rows = [{"y": 2.0, "guess": guess, "n": 1} for guess in (1.0, 2.5)]
    (found,) = findings.fit(rows, "guess", "y", ("", "", "", "ours"))
    assert (found.r2, found.deviation, found.inside, found.words) == (None, 1.0, 0.0, "")
    assert (
        findings.fit([{"y": None, "guess": 1.0, "n": 1}, {"y": 1.0, "n": 1}], "guess", "y", ("", "", "", "ours")) == []
    )


def test_a_worse_fit_than_the_mean_is_negative() -> None:
    rows = [{"y": value, "guess": 10.0, "n": 1} for value in (0.0, 2.0)]
    (found,) = findings.fit(rows, "guess", "y", ("", "", "", "ours"))
    assert found.r2 == pytest.approx(1 - (100 + 64) / 2) and np.isfinite(found.deviation)
