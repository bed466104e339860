"""Scores and the statistics of summaries, against slow definitions and scipy's tests."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedstart import keys
from fedstart.scores import Cell, Scores, holm, interval, paired, summarise
from fedstart.types import Counts


def counts(correct: list[int], total: list[int]) -> Counts:
    return Counts(np.array(correct), np.array(total), np.array(total, dtype=float) * 0.5)


def scores(*percents: int) -> Scores:
    return Scores(counts(list(percents), [100] * len(percents)))


client = st.integers(0, 40).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))
clients = st.lists(client, min_size=1, max_size=30).filter(lambda pairs: any(total for _, total in pairs))


@given(clients)
def test_scores_agree_with_plain_python(pairs: list[tuple[int, int]]) -> None:
    found = Scores(counts([c for c, _ in pairs], [n for _, n in pairs]))
    expected = [100 * c / n for c, n in pairs if n]
    mean = sum(expected) / len(expected)
    variance = sum((a - mean) ** 2 for a in expected) / len(expected)
    assert found.excluded == sum(n == 0 for _, n in pairs)
    assert found.clients.tolist() == [k for k, (_, n) in enumerate(pairs) if n]
    assert found.mean == pytest.approx(mean)
    assert found.sample_mean == pytest.approx(100 * sum(c for c, _ in pairs) / sum(n for _, n in pairs))
    assert found.variance == pytest.approx(variance, abs=1e-9)
    assert found.deviation == pytest.approx(math.sqrt(variance), abs=1e-6)
    assert found.loss == pytest.approx(0.5) and found.sample_loss == pytest.approx(0.5)
    worst = [found.worst(k) for k in (0.1, 10, 20, 30, 60, 100)]
    assert all(low <= high + 1e-9 for low, high in pairwise(worst))
    assert worst[0] == min(expected)
    assert worst[-1] == pytest.approx(mean)


@pytest.mark.parametrize(("n", "percent", "number"), [(10, 10, 1), (10, 20, 2), (10, 30, 3), (11, 10, 2), (3, 10, 1)])
def test_worst_takes_a_ceiling_of_clients(n: int, percent: int, number: int) -> None:
    assert scores(*range(n)).worst(percent) == pytest.approx(sum(range(number)) / number)


def test_the_two_losses_weigh_clients_differently() -> None:
    found = Scores(Counts(np.array([1, 1]), np.array([1, 3]), np.array([2.0, 3.0])))
    assert found.loss == pytest.approx((2 + 1) / 2)
    assert found.sample_loss == pytest.approx(5 / 4)


def test_jain_and_entropy_by_hand() -> None:
    found = scores(20, 60)
    assert found.jain == pytest.approx(80**2 / (2 * (20**2 + 60**2)))
    assert found.entropy == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))


@pytest.mark.parametrize("percent", [0, 1, 37, 100])
def test_equal_clients_have_jain_1_and_entropy_log_n(percent: int) -> None:
    found = scores(*[percent] * 7)
    assert found.jain == pytest.approx(1.0) and found.entropy == pytest.approx(math.log(7))


def test_one_client_with_everything_has_the_least_jain_and_entropy() -> None:
    found = scores(0, 0, 80, 0)
    assert (found.jain, found.entropy) == (0.25, 0.0)
    assert math.copysign(1.0, found.entropy) == 1.0


@given(clients)
def test_jain_and_entropy_stay_in_their_ranges(pairs: list[tuple[int, int]]) -> None:
    found = Scores(counts([c for c, _ in pairs], [n for _, n in pairs]))
    n = len(found.clients)
    assert 1 / n - 1e-12 <= found.jain <= 1 + 1e-12
    assert 0 <= found.entropy <= math.log(n) + 1e-12
    mean = found.mean
    assert found.jain == pytest.approx(mean**2 / (mean**2 + found.variance) if mean else 1.0)


@pytest.mark.parametrize(
    ("correct", "total", "message"),
    [([0, 0], [0, 0], "none of the 2 clients"), ([3], [2], "client 0: 3 of 2"), ([-1], [2], "impossible")],
)
def test_impossible_counts_are_refused(correct: list[int], total: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scores(counts(correct, total))


def test_counts_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(clients,\)"):
        Scores(Counts(np.array([1]), np.array([1, 2]), np.array([0.5])))


@pytest.mark.parametrize("percent", [0, -10, 100.1])
def test_worst_refuses_shares_out_of_range(percent: float) -> None:
    with pytest.raises(ValueError, match="percent"):
        scores(1, 2).worst(percent)


@pytest.mark.parametrize("n", [2, 5, 30])
def test_interval_and_paired_agree_with_scipy(n: int) -> None:
    draw = keys.generator(0, "test-statistics", n)
    first, second = draw.normal(80, 3, n), draw.normal(79, 3, n)
    mean, low, high = interval(first)
    assert mean == pytest.approx(first.mean())
    assert (low, high) == pytest.approx(stats.t.interval(0.95, n - 1, first.mean(), stats.sem(first)))
    expected = stats.ttest_rel(first, second)
    limits = expected.confidence_interval(0.95)
    found = paired(first, second)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((limits.low, limits.high))


def test_what_one_value_and_no_spread_cannot_say() -> None:
    assert interval([3.0]) == (3.0, None, None)
    assert interval([3.0, 3.0]) == (3.0, 3.0, 3.0)
    assert paired([3.0], [1.0]) == (2.0, None, None, None)
    assert paired([81.3, 80.1], [81.3, 80.1]) == (0.0, 0.0, 0.0, 1.0)
    found = paired([81.3, 80.1, 70.7], [81.2, 80.0, 70.6])
    assert found.p is None and found.difference == pytest.approx(0.1)


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.inf]])
def test_interval_refuses_nothing_and_what_is_not_finite(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        interval(values)


def test_paired_refuses_different_lengths() -> None:
    with pytest.raises(ValueError, match="one to one"):
        paired([1.0, 2.0], [1.0])


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=8))
def test_holm_rejects_exactly_what_the_step_down_rule_rejects(ps: list[float | None]) -> None:
    corrected = holm(ps)
    known = sorted(p for p in ps if p is not None)
    for level in (0.01, 0.05, 0.3):
        rejected = 0
        while rejected < len(known) and (len(known) - rejected) * known[rejected] <= level:
            rejected += 1
        assert sum(p is not None and p <= level for p in corrected) == rejected
    assert [p is None for p in corrected] == [p is None for p in ps]
    assert all(p is None or (q is not None and p <= q <= 1) for p, q in zip(ps, corrected, strict=True))


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, None, 0.03]) == pytest.approx([0.06, 0.03, None, 0.06], nan_ok=True)
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([1.5])


def study() -> list[Cell]:
    values = {"random": [(50, 60), (70, 80)], "coprefl": [(60, 70), (80, 100)], "fedavg": [(55, 65), (70, 90)]}
    return [
        Cell(start, "fedavg", "iid", task, 0, scores(*accuracies))
        for start, tasks in values.items()
        for task, accuracies in enumerate(tasks)
    ]


def test_summarise_rows_and_contrasts() -> None:
    rows, contrasts = summarise(study())
    assert [row["start"] for row in rows] == ["random", "coprefl", "fedavg"]
    row = rows[1]
    assert (row["algorithm"], row["partition"], row["n"], row["seeds"], row["tasks"]) == ("fedavg", "iid", 2, 1, 2)
    assert row["mean"] == pytest.approx((65 + 90) / 2)
    assert row["variance"] == pytest.approx((25 + 100) / 2)
    assert row["variance_squared_mean_deviation"] == pytest.approx(7.5**2)
    assert row["worst10"] == pytest.approx((60 + 80) / 2)
    assert row["sample_mean"] == pytest.approx((65 + 90) / 2) and row["personal"] is None
    assert row["jain"] == pytest.approx((130**2 / (2 * (60**2 + 70**2)) + 180**2 / (2 * (80**2 + 100**2))) / 2)
    assert row["entropy"] == pytest.approx(np.mean([stats.entropy([60, 70]), stats.entropy([80, 100])]))
    assert [(c["first"], c["second"]) for c in contrasts] == [
        ("random", "coprefl"),
        ("random", "fedavg"),
        ("coprefl", "fedavg"),
    ]
    assert contrasts[0]["difference"] == pytest.approx(-12.5)
    assert contrasts[0]["p"] == pytest.approx(stats.ttest_rel([55, 75], [65, 90]).pvalue)
    # random against fedavg differs by exactly 5 in both tasks: no spread, no test.
    assert contrasts[1]["p"] is None and contrasts[1]["p_holm"] is None
    assert contrasts[2]["p_holm"] == pytest.approx(min(1.0, 2 * min(c["p"] for c in contrasts if c["p"] is not None)))


def test_summarise_does_not_depend_on_the_order_inside_a_start() -> None:
    cells = study()
    assert summarise(cells) == summarise([cells[1], cells[0], *cells[2:]])


def test_contrasts_use_only_shared_tasks() -> None:
    rows, contrasts = summarise(study()[:5])
    assert rows[2]["n"] == 1 and rows[2]["low"] is None
    assert [contrast["n"] for contrast in contrasts] == [2, 1, 1]
    assert contrasts[1]["low"] is None and contrasts[1]["p"] is None


def test_the_same_cell_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"two cells for random \(fedavg, iid, task 0, seed 0\)"):
        summarise([*study(), study()[0]])


def test_personal_scores_stand_beside_the_others_if_all_cells_have_them() -> None:
    cells = [replace(cell, personal=scores(90, 100 - 10 * cell.task)) for cell in study()]
    row = summarise(cells)[0][0]
    assert row["mean"] == pytest.approx(65)
    assert set(row["personal"]) == {
        *("mean", "low", "high", "variance", "variance_squared_mean_deviation"),
        *("worst10", "worst20", "worst30"),
    }
    assert row["personal"]["mean"] == pytest.approx((95 + 90) / 2)
    assert row["personal"]["variance"] == pytest.approx((25 + 0) / 2)
    assert row["personal"]["worst10"] == pytest.approx(90)
    assert summarise([*cells[:-1], study()[-1]])[0][2]["personal"] is None


def test_sample_mean_of_a_row_weighs_clients_by_their_examples() -> None:
    cell = Cell("random", "fedavg", "iid", 0, 0, Scores(counts([10, 0], [10, 30])))
    assert (summarise([cell])[0][0]["mean"], summarise([cell])[0][0]["sample_mean"]) == (50.0, 25.0)
