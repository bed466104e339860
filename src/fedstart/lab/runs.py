"""Many runs, in pieces that fit the cache, side by side on threads; and what comes out of them as plain numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import joblib
import torch
from torch import Tensor

from fedstart.engines.allocation import use_one_torch_thread
from fedstart.lab import coefficients, error
from fedstart.lab.exact import Moment, Schedule, follow
from fedstart.lab.geometry import Geometry
from fedstart.scores import interval
from fedstart.types import Algorithm

PIECE = 30
"""Runs in one pass: more do not fit the cache of a core (`benchmarks/lab.py`)."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Training:
    """A linear method, its local rate, local steps in all, and the fresh draws that a run is tested on."""

    algorithm: Algorithm
    eta: float
    steps: int
    draws: int = 2000


def last(piece: Geometry, training: Training, tau: int) -> Tensor:
    """Coefficients (B, F, M) after all local steps, tau in each round; the last round is cut if tau does not divide."""
    schedule, rounds = whole_rounds(tau, training.steps)
    learnt = torch.zeros_like(piece.overlaps)
    for moment in follow(piece, training.algorithm, training.eta, schedule, rounds):
        learnt = moment.coefficients
    return learnt


def whole_rounds(tau: int, steps: int) -> tuple[Schedule, int]:
    """A schedule of tau local steps per round, and the number of rounds in which `steps` of them are done."""

    def schedule(number: int, last: Moment | None) -> Tensor:
        return torch.tensor([min(tau, steps - (number - 1) * tau)])

    return schedule, -(-steps // tau)


def in_pieces(geometry: Geometry, work: Callable[..., Result], *rows: Tensor) -> list[Result]:
    """`work(piece, *rows of the piece)` on pieces of at most 30 runs, in order; each piece on one thread.

    The same bits for any number of threads.
    """
    # An even number of equal pieces, so that two cores end together, whatever the number of cores is here.
    count = 2 * -(-len(geometry) // (2 * PIECE))
    edges = [len(geometry) * place // count for place in range(count + 1)]
    cuts = [slice(begin, end) for begin, end in itertools.pairwise(edges) if begin < end]

    def quietly(cut: slice) -> Result:
        with torch.inference_mode():
            return work(geometry[cut], *(row[cut] for row in rows))

    with ThreadPoolExecutor(joblib.cpu_count(), initializer=use_one_torch_thread) as pool:
        return list(pool.map(quietly, cuts))


def statistics(values: Mapping[str, Tensor]) -> dict[str, Any]:
    """Three keys for each quantity of shape (seeds,): its mean, and where the 95 % t-interval begins and ends.

    Seeds without a value (NaN) are left out; `n` is the largest number of seeds that have one.
    """
    found: dict[str, Any] = {"n": 0}
    for name, given in values.items():
        kept = given[~given.isnan()].tolist()
        mean, low, high = interval(kept) if kept else (None, None, None)
        found |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        found["n"] = max(found["n"], len(kept))
    return found


def groups(geometry: Geometry, learnt: Tensor) -> dict[str, Tensor]:
    """Means over the filters of each run, shape (B,), NaN without such a filter.

    `signal_aligned`, `signal_misaligned` (Gamma), `noise_aligned`, `noise_misaligned` (sum P-bar), `noise` (of all),
    `ratio_aligned`, `ratio_misaligned` (Gamma over sum P-bar of the group), `factor` (misaligned over aligned Gamma),
    and the share `misaligned`; groups are those at the start (Definition 1).
    """
    found, wrong = coefficients.read(geometry, learnt), coefficients.at_start(geometry).misaligned
    signal, noise = found.signal, found.positive.sum(2)

    def mean(of: Tensor, which: Tensor) -> Tensor:
        return (of * which).sum(1) / which.sum(1)

    result = {
        f"{name}_{group}": mean(of, which)
        for name, of in {"signal": signal, "noise": noise}.items()
        for group, which in {"aligned": ~wrong, "misaligned": wrong}.items()
    }
    for group in ("aligned", "misaligned"):
        result[f"ratio_{group}"] = result[f"signal_{group}"] / result[f"noise_{group}"]
    result["factor"] = result["signal_misaligned"] / result["signal_aligned"]
    return {**result, "noise": noise.mean(1), "misaligned": wrong.double().mean(1)}


def outcomes(geometry: Geometry, training: Training, tau: int, sigma_p: float) -> dict[str, Tensor]:
    """`groups` after training, the simulated test `error`, and its normal approximation `gaussian` (two classes only;
    else NaN), of each run, shape (B,).
    """

    def work(piece: Geometry) -> dict[str, Tensor]:
        learnt = last(piece, training, tau)
        wrong = error.simulated(piece, learnt, sigma_p, training.draws)
        guess = error.gaussian(piece, learnt, sigma_p) if piece.classes == 2 else torch.full_like(wrong, torch.nan)
        return {**groups(piece, learnt), "error": wrong, "gaussian": guess}

    return _joined(in_pieces(geometry, work))


def learnt(geometry: Geometry, training: Training, tau: int) -> dict[str, Tensor]:
    """`groups` after training, without a test."""
    return _joined(in_pieces(geometry, lambda piece: groups(piece, last(piece, training, tau))))


def _joined(pieces: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
