"""Numbers and sentences for the page: what the results say, and how sure they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedstart.report.record import Record

LEVEL = 0.05
"""A lead counts as decided when its 95 % interval leaves out 0 and its p after Holm's correction is at most this."""

Row = Mapping[str, Any]


def number(value: float | None, digits: int = 1) -> str:
    """`83.3`, with a true minus sign; a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def two(value: float | None) -> str:
    """`83.29`."""
    return number(value, 2)


def three(value: float | None) -> str:
    """`0.123`."""
    return number(value, 3)


def count(value: float) -> str:
    """`1,200`."""
    return f"{value:,.0f}"


def signed(value: float | None, digits: int = 1) -> str:
    """`+1.2` or `−1.2`."""
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def between(low: float | None, high: float | None, digits: int = 1) -> str:
    """`82.0 to 84.6`; a dash without an interval."""
    return "–" if low is None or high is None else f"{number(low, digits)} to {number(high, digits)}"


def probability(p: float | None) -> str:
    """`p = 0.012`, `p < 0.001`, or that there is none."""
    if p is None:
        return "no p"
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def plural(count: int, noun: str) -> str:
    """`1 task`, `3 tasks`, `1,200 examples`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def setting_name(setting: tuple[str, str]) -> str:
    """`fedavg on dirichlet(0.5)`."""
    return f"{setting[0]} on {setting[1]}"


def ranked(record: Record, setting: tuple[str, str]) -> list[Row]:
    """The rows of a setting, best mean accuracy first."""
    return sorted(record.of(setting), key=lambda row: -row["mean"])


def sample(row: Row) -> str:
    """`n = 6 runs (3 tasks × 2 seeds)`."""
    count = f"n = {plural(row['n'], 'run')}"
    whole = row["n"] == row["tasks"] * row["seeds"]
    return f"{count} ({plural(row['tasks'], 'task')} × {plural(row['seeds'], 'seed')})" if whole else count


def answer(record: Record, setting: tuple[str, str]) -> str:
    """Which start is best in a setting, by how much over the next and over random, and whether that is decided."""
    rows = ranked(record, setting)
    if not rows:
        return "No downstream run has finished, so there is no answer yet."
    best, name = rows[0], record.called(rows[0]["start"])
    limits = between(best["low"], best["high"])
    mean = f"{number(best['mean'])} % mean accuracy" + (f" (95 % interval {limits})" if limits != "–" else "")
    if len(rows) == 1:
        return _tied(f"Only {name} was tested, with {mean}: there is nothing to compare it with.")
    second, scratch = rows[1]["start"], record.scratch
    lead = record.contrast(setting, best["start"], second)
    sentence = _verdict(name, record.called(second), mean, lead)
    gain = record.contrast(setting, best["start"], scratch) if scratch not in (None, best["start"], second) else None
    if gain is not None and decided(lead) and decided(gain):
        sentence += f", and {_points(gain)} above {scratch} {_detail(gain)}"
    elif gain is not None:
        verb = "is more than chance" if decided(gain) else _doubt(gain)
        sentence += f"; its lead over {scratch}, {_points(gain)} points {_detail(gain)}, {verb}"
    return _tied(f"{sentence}.")


def fairness(record: Record, setting: tuple[str, str]) -> str:
    """Which starts serve the weakest clients best and vary least."""
    rows = record.of(setting)
    if len(rows) < 2:
        return ""
    weakest = number(max(row["worst10"] for row in rows))
    even = number(min(row["variance"] for row in rows))
    best = " and ".join(record.called(row["start"]) for row in rows if number(row["worst10"]) == weakest)
    steady = " and ".join(record.called(row["start"]) for row in rows if number(row["variance"]) == even)
    return _tied(
        f"The worst-served 10 % of clients do best from {best} ({weakest} %). "
        f"Clients differ least from {steady} (variance {even} %²). Neither is tested against chance."
    )


def decided(contrast: Mapping[str, Any] | None) -> bool:
    """True if a lead is more than chance by both the interval and Holm's p."""
    if contrast is None or contrast["low"] is None or contrast["p_holm"] is None:
        return False
    return contrast["p_holm"] <= LEVEL and (contrast["low"] > 0 or contrast["high"] < 0)


def caution(record: Record) -> str:
    """What the intervals of this study cannot cover."""
    if not record.rows:
        return ""
    seeds, tasks = (max(row[key] for row in record.rows) for key in ("seeds", "tasks"))
    if seeds == tasks == 1:
        return "One task and one seed: there are no intervals, and differences of this size may be chance."
    if seeds == 1:
        return (
            "One seed: every start was made once, so the intervals cover the choice of tasks "
            "and say nothing about another pre-training run."
        )
    return (
        "The runs of one seed share the start that was made with it; "
        "the intervals treat all runs as independent and are, if anything, too narrow."
    )


def size(count: float) -> str:
    """Bytes in decimal units: `1.5 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB" if count < 1000 else f"{count:,.0f} TB"


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 10 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def _verdict(best: str, second: str, mean: str, lead: Mapping[str, Any] | None) -> str:
    if lead is None:
        return f"Undecided: {best} has the highest result, {mean}, but shares no task with {second}, the next"
    if decided(lead):
        return f"{best} is the best start: {mean}, {_points(lead)} points above {second}, the next {_detail(lead)}"
    return (
        f"Undecided: {best} leads with {mean}, but its lead over {second}, the next, "
        f"{_points(lead)} points {_detail(lead)}, {_doubt(lead)}"
    )


def _points(contrast: Mapping[str, Any]) -> str:
    return number(contrast["difference"])


def _detail(contrast: Mapping[str, Any]) -> str:
    limits = between(contrast["low"], contrast["high"])
    return "(no interval)" if limits == "–" else f"({limits}, {probability(contrast['p_holm'])})"


def _doubt(contrast: Mapping[str, Any]) -> str:
    if contrast["n"] < 2:
        return "rests on a single run"
    return "cannot be tested, as it never varies" if contrast["p_holm"] is None else "may be chance"


def _tied(sentence: str) -> str:
    """No line break between a number and its unit, or around the sign of a p value."""
    return sentence.replace(" %", "\u00a0%").replace(" = ", "\u00a0=\u00a0").replace(" < ", "\u00a0<\u00a0")
