"""Scores: how well a federation's clients are served, and the statistics that compare starts over tasks and seeds.

Accuracies are in percent and variances in squared percentage points. Every mean says how it weighs the clients.
Definitions: Chu et al. 2025 (arXiv:2402.02225), section 5; Student's t; Holm 1979.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from fedstart.types import Counts

CONFIDENCE = 0.95
WORST = (10, 20, 30)


@dataclass(frozen=True, eq=False)
class Scores:
    """What an evaluation says about the clients, derived from its counts.

    Clients without test examples have no accuracy: they are left out everywhere and counted in `excluded`.
    Raises ValueError when the three arrays differ in shape, a count is impossible, or no client has test examples.
    """

    counts: Counts

    def __post_init__(self) -> None:
        correct, total, loss = (np.asarray(values) for values in self.counts)
        if correct.ndim != 1 or not correct.shape == total.shape == loss.shape:
            raise ValueError(
                f"counts must be three arrays of shape (clients,), got {correct.shape}, {total.shape}, {loss.shape}"
            )
        wrong = np.flatnonzero((correct < 0) | (correct > total))
        if len(wrong):
            client = int(wrong[0])
            raise ValueError(f"client {client}: {correct[client]} of {total[client]} correct is impossible")
        if not (total > 0).any():
            raise ValueError(f"none of the {len(total)} clients has test examples, so there is nothing to score")

    @functools.cached_property
    def clients(self) -> np.ndarray:
        """Identities of the clients that have test examples, ascending, shape (scored,)."""
        return np.flatnonzero(np.asarray(self.counts.total) > 0)

    @property
    def excluded(self) -> int:
        """Number of clients left out because they have no test examples."""
        return len(self.counts.total) - len(self.clients)

    @functools.cached_property
    def accuracy(self) -> np.ndarray:
        """Accuracy of each scored client in percent, in the order of `clients`, shape (scored,)."""
        return 100.0 * np.asarray(self.counts.correct)[self.clients] / np.asarray(self.counts.total)[self.clients]

    @property
    def mean(self) -> float:
        """Mean accuracy in percent; every client has the same weight."""
        return float(self.accuracy.mean())

    @property
    def sample_mean(self) -> float:
        """Accuracy over all test examples together in percent: clients weighted by their test examples."""
        return float(100.0 * np.sum(self.counts.correct) / np.sum(self.counts.total))

    @property
    def variance(self) -> float:
        """Population variance of the client accuracies in %²; every client has the same weight."""
        return float(self.accuracy.var())

    @property
    def deviation(self) -> float:
        """Square root of `variance`, in percentage points."""
        return float(self.accuracy.std())

    @property
    def jain(self) -> float:
        """Jain's index of the accuracies, `(sum a)² / (n sum a²)`: 1 where all are equal, 1/n where one has all.

        Jain, Chiu and Hawe 1984. All 0 counts as equal.
        """
        squares = float(np.square(self.accuracy).sum())
        return float(self.accuracy.sum()) ** 2 / (len(self.accuracy) * squares) if squares else 1.0

    @property
    def entropy(self) -> float:
        """Shannon entropy (natural logarithm) of the accuracies divided by their sum: 0 to log n, where all are equal.

        All 0 counts as equal.
        """
        accuracy = self.accuracy if self.accuracy.any() else np.ones(len(self.accuracy))
        shares = accuracy[accuracy > 0] / accuracy.sum()
        return max(0.0, -float(np.sum(shares * np.log(shares))))

    def worst(self, percent: float) -> float:
        """Mean accuracy of the `percent` % of clients with the lowest accuracy: `ceil(percent n / 100)`, at least one.

        Raises ValueError unless `0 < percent <= 100`.
        """
        if not 0 < percent <= 100:
            raise ValueError(f"percent must be above 0 and at most 100, got {percent}")
        # Rounding first keeps 30 % of 10 clients at three whatever the binary form of percent / 100 is.
        number = max(1, math.ceil(round(percent * len(self.accuracy) / 100, 9)))
        return float(np.sort(self.accuracy)[:number].mean())

    @property
    def loss(self) -> float:
        """Mean over the clients of their mean test loss; every client has the same weight."""
        return float(np.mean(np.asarray(self.counts.loss)[self.clients] / np.asarray(self.counts.total)[self.clients]))

    @property
    def sample_loss(self) -> float:
        """Mean test loss over all examples together."""
        return float(np.sum(np.asarray(self.counts.loss)[self.clients]) / np.sum(self.counts.total))


class Interval(NamedTuple):
    """A mean with its 95 % interval; `low` and `high` are None when one value alone cannot give one."""

    mean: float
    low: float | None
    high: float | None


class Contrast(NamedTuple):
    """A mean paired difference with its 95 % interval and two-sided p value; see `paired` for None."""

    difference: float
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True)
class Cell:
    """The scores of one downstream run, and where it stands in its study.

    `personal` are the scores of each client's own model, where the clients went on training alone.
    """

    start: str
    algorithm: str
    partition: str
    task: int
    seed: int
    scores: Scores
    personal: Scores | None = None


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Mean and 95 % t-interval with `n - 1` degrees of freedom. Not cut at 0 or 100.

    Raises ValueError when there is no value, or one that is not finite.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) == 0 or not np.isfinite(sample).all():
        raise ValueError(f"an interval needs at least one value, all of them finite, got {values!r}")
    mean = float(sample.mean())
    if len(sample) == 1:
        return Interval(mean, None, None)
    half = float(special.stdtrit(len(sample) - 1, (1 + CONFIDENCE) / 2)) * _standard_error(sample)
    return Interval(mean, mean - half, mean + half)


def paired(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> Contrast:
    """Mean of `first - second` with its 95 % t-interval, and the two-sided p of the paired t-test.

    One pair gives no interval and no p. Differences that are all 0 give p = 1: the two agree. Differences that are
    all the same number other than 0 give p = None and an interval of no width: without any spread the t statistic
    is infinite, which says that the test cannot be done, not that chance is ruled out.
    Raises ValueError when the two differ in length, are empty, or hold a value that is not finite.
    """
    left, right = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if left.shape != right.shape:
        raise ValueError(f"paired values must match one to one, got shapes {left.shape} and {right.shape}")
    differences = left - right
    mean, low, high = interval(differences)
    if len(differences) == 1:
        return Contrast(mean, None, None, None)
    error = _standard_error(differences)
    if error == 0.0:
        agree = bool(np.allclose(differences, 0.0, rtol=0.0, atol=_noise(left)))
        return Contrast(mean, low, high, 1.0 if agree else None)
    return Contrast(mean, low, high, float(2 * special.stdtr(len(differences) - 1, -abs(mean) / error)))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction for testing all of `ps` together, in the order given.

    None (a test that cannot be done) stays None and does not count. Raises ValueError for a p outside [0, 1].
    """
    known = [(p, place) for place, p in enumerate(ps) if p is not None]
    if any(not 0 <= p <= 1 for p, _ in known):
        raise ValueError(f"p values lie between 0 and 1, got {ps!r}")
    corrected: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, place) in enumerate(sorted(known)):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[place] = largest
    return corrected


def summarise(cells: Iterable[Cell]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The `rows` and `contrasts` of `summary.json`.

    A row is one start under one downstream algorithm and partition; `n` counts its (task, seed) cells, and the
    interval runs over them. A contrast compares two starts over the (task, seed) pairs that both have; pairs of
    starts that share none are left out. Holm's correction takes all contrasts of one algorithm and partition as a
    family. Settings, starts and contrasts stand in the order of first appearance; numbers have 10 significant digits.
    `personal` of a row is None unless all its cells have personal scores.
    Raises ValueError when the same cell is given twice.
    """
    grouped: dict[tuple[str, str], dict[str, dict[tuple[int, int], Cell]]] = {}
    starts: dict[str, None] = {}
    for cell in cells:
        starts.setdefault(cell.start)
        group = grouped.setdefault((cell.algorithm, cell.partition), {}).setdefault(cell.start, {})
        if (cell.task, cell.seed) in group:
            where = f"{cell.algorithm}, {cell.partition}, task {cell.task}, seed {cell.seed}"
            raise ValueError(f"two cells for {cell.start} ({where})")
        group[cell.task, cell.seed] = cell
    rows: list[dict[str, Any]] = []
    contrasts: list[dict[str, Any]] = []
    for (algorithm, partition), by_start in grouped.items():
        setting = {"algorithm": algorithm, "partition": partition}
        ordered = {start: dict(sorted(by_start[start].items())) for start in starts if start in by_start}
        rows.extend({"start": start, **setting, **_row(cells)} for start, cells in ordered.items())
        contrasts.extend({**setting, **contrast} for contrast in _contrasts(ordered))
    return rows, contrasts


def significant(value: float | None, digits: int = 10) -> float | None:
    """`value` rounded to significant digits, so that a file of results has the same bytes each time."""
    return None if value is None else float(f"{value:.{digits}g}")


def _row(cells: Mapping[tuple[int, int], Cell]) -> dict[str, Any]:
    found = [cell.scores for cell in cells.values()]
    personal = [cell.personal for cell in cells.values() if cell.personal is not None]
    return {
        "n": len(cells),
        **_figures(found),
        **{name: _average(getattr(scores, name) for scores in found) for name in ("sample_mean", "jain", "entropy")},
        "personal": _figures(personal) if len(personal) == len(cells) else None,
        "seeds": len({seed for _, seed in cells}),
        "tasks": len({task for task, _ in cells}),
    }


def _figures(found: Sequence[Scores]) -> dict[str, float | None]:
    mean, low, high = interval([scores.mean for scores in found])
    return {
        "mean": significant(mean),
        "low": significant(low),
        "high": significant(high),
        "variance": _average(scores.variance for scores in found),
        "variance_squared_mean_deviation": significant(float(np.mean([scores.deviation for scores in found])) ** 2),
        **{f"worst{k}": _average(scores.worst(k) for scores in found) for k in WORST},
    }


def _average(values: Iterable[float]) -> float | None:
    return significant(float(np.mean(list(values))))


def _contrasts(by_start: Mapping[str, Mapping[tuple[int, int], Cell]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    starts = list(by_start)
    for place, first in enumerate(starts):
        for second in starts[place + 1 :]:
            shared = [key for key in by_start[first] if key in by_start[second]]
            if not shared:
                continue
            left, right = ([by_start[start][key].scores.mean for key in shared] for start in (first, second))
            contrast = paired(left, right)
            found.append({"first": first, "second": second, "n": len(shared), **contrast._asdict()})
    for contrast, p in zip(found, holm([contrast["p"] for contrast in found]), strict=True):
        contrast["p_holm"] = p
    numbers = ("difference", "low", "high", "p", "p_holm")
    return [{**contrast, **{key: significant(contrast[key]) for key in numbers}} for contrast in found]


def _standard_error(sample: np.ndarray) -> float:
    error = float(sample.std(ddof=1)) / math.sqrt(len(sample))
    return 0.0 if error <= _noise(sample) else error


def _noise(sample: np.ndarray) -> float:
    # Values that should be equal differ by rounding; a spread that small carries no information.
    return 1e-12 * max(1.0, float(np.abs(sample).max()))
