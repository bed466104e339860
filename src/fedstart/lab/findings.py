"""What an experiment of the lab finds: rows of numbers, how well formulas predict them, and which claims hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedstart.scores import Contrast, paired

Status = Literal["paper", "paper, second-hand", "inferred", "ours"]
"""Where a statement comes from: see docs/lab.md."""

Verdict = Literal["holds", "holds in part", "does not hold", "not tested"]

Row = dict[str, Any]

TOLERANCE = 0.1
"""Two quantities count as the same where the 95 % interval of their relative difference lies within this."""


@dataclass(frozen=True)
class Claim:
    """A statement, whose it is, and what the lab says to it; `range` tells where it holds and where not."""

    text: str
    source: str
    status: Status
    verdict: Verdict
    measured: str
    range: str = ""


@dataclass(frozen=True)
class Prediction:
    """A formula beside a measured column of the rows: how much it explains, its worst miss, how often it is inside.

    `inside` is the share of rows whose 95 % interval over seeds holds the prediction.
    """

    name: str
    formula: str
    source: str
    status: Status
    column: str
    measured: str
    r2: float | None
    deviation: float
    inside: float
    words: str


@dataclass(frozen=True)
class Findings:
    """Everything that an experiment found. Rows are flat and hold plain numbers, texts and None."""

    title: str
    question: str
    rows: Sequence[Row]
    extra: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    predictions: Sequence[Prediction] = ()
    claims: Sequence[Claim] = ()


def verdict(held: Iterable[bool]) -> Verdict:
    """Of a statement about several conditions: it holds in all, in some, or in none; or there is no condition."""
    answers = list(held)
    if not answers:
        return "not tested"
    return "holds" if all(answers) else "holds in part" if any(answers) else "does not hold"


def tested(
    text: str,
    source: str,
    status: Status,
    found: Mapping[str, Contrast],
    holds: Callable[[Contrast], bool],
    lead: str = "",
    digits: int = 3,
    percent: bool = False,
) -> Claim:
    """A claim about each of several conditions, by their names; `lead` says what the differences are."""
    held = {at: holds(contrast) for at, contrast in found.items()}
    measured = lead + "; ".join(f"{at}: {shown(contrast, digits, percent)}" for at, contrast in found.items())
    return Claim(text, source, status, verdict(held.values()), measured, where(held))


def where(held: Mapping[str, bool]) -> str:
    """`holds at A, B; not at C`, or nothing where all agree."""
    good, bad = ([name for name, answer in held.items() if answer is wanted] for wanted in (True, False))
    return f"holds at {', '.join(good)}; not at {', '.join(bad)}" if good and bad else ""


def fit(
    rows: Sequence[Row], column: str, measured: str, about: tuple[str, str, str, Status], words: str = ""
) -> list[Prediction]:
    """How well one column of rows predicts another that has intervals; `about` = name, formula, source, status.

    r2 = 1 - squared misses / squared distances from the mean; None where the measured values are all alike. Rows
    without either number are left out; nothing where there are no others.
    """
    both = [row for row in rows if row.get(column) is not None and row.get(measured) is not None]
    if not both:
        return []
    guess, seen = (np.array([row[key] for row in both], dtype=np.float64) for key in (column, measured))
    spread = float(((seen - seen.mean()) ** 2).sum())
    inside = [row[f"{measured}_low"] <= row[column] <= row[f"{measured}_high"] for row in both if row["n"] > 1]
    made = Prediction(
        *about,
        column,
        measured,
        r2=1 - float(((seen - guess) ** 2).sum()) / spread if spread > 0 else None,
        deviation=float(np.abs(seen - guess).max()),
        inside=float(np.mean(inside)) if inside else 0.0,
        words=words,
    )
    return [made]


def difference(first: Tensor, second: Tensor) -> Contrast:
    """`first - second`, each of shape (seeds,), paired; seeds without either value (NaN) are left out."""
    there = ~(first.isnan() | second.isnan())
    return paired(first[there].numpy(), second[there].numpy())


def relative(first: Tensor, second: Tensor) -> Contrast:
    """`first / second - 1` over seeds."""
    return difference(first / second, torch.ones_like(second))


def proportion(first: Tensor, second: Tensor) -> Contrast:
    """Geometric mean of `first / second` over seeds, less 1, with the 95 % t-interval of the logarithm; all above 0.

    For quantities that vary by factors, where one seed in twenty would else outweigh the others.
    """
    found = difference(first.log(), second.log())
    low, high = (None if end is None else math.expm1(end) for end in (found.low, found.high))
    return Contrast(math.expm1(found.difference), low, high, found.p)


def above(found: Contrast) -> bool:
    """True if the 95 % interval lies above 0; never with one seed."""
    return found.low is not None and found.low > 0


def below(found: Contrast) -> bool:
    """True if the 95 % interval lies below 0; never with one seed."""
    return found.high is not None and found.high < 0


def alike(found: Contrast, tolerance: float = TOLERANCE) -> bool:
    """True if the 95 % interval of a relative difference lies within the tolerance; never with one seed."""
    return found.low is not None and found.high is not None and -tolerance < found.low and found.high < tolerance


def shown(found: Contrast, digits: int = 3, percent: bool = False) -> str:
    """`+0.123 [+0.100, +0.146]`, or in percent."""
    scale, unit = (100, " %") if percent else (1, "")
    digits = 1 if percent else digits
    mean = f"{scale * found.difference:+.{digits}f}{unit}"
    if found.low is None or found.high is None:
        return f"{mean} (one seed)"
    return f"{mean} [{scale * found.low:+.{digits}f}, {scale * found.high:+.{digits}f}]"
