"""The paper's claims: what we measured of each, and whether that reproduces it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedstart.report.page import Block, Section
from fedstart.report.paper import PAPER, digits
from fedstart.report.record import DAGGER, Record
from fedstart.report.style import FOREGROUND, GRID, MUTED, PAGE, Drawing, plain, plot, shortened
from fedstart.report.tables import Column, Table, parts, table
from fedstart.report.words import between, count, plural, setting_name, signed, two

Claim = Mapping[str, Any]

SCORES = {
    "mean": "mean accuracy",
    "variance": "variance",
    "worst10": "worst 10 %",
    "worst20": "worst 20 %",
    "worst30": "worst 30 %",
}
VERDICTS = {"reproduced": ("#009e73", "o"), "not reproduced": ("#d55e00", "X"), "undecided": ("#8a8f96", "s")}
"""Colour and marker of each verdict: the marker tells them apart without colour."""
_LINE, _LETTERS = 0.19, 50
"""Height of a line of text in inches, and how many letters fit on it."""


def section(record: Record) -> Section | None:
    """The section of the page; None for a study without claims."""
    if not record.claims:
        return None
    cut = dict(parts(record, claims(record)))
    blocks: list[Block] = []
    for place, setting in enumerate(cut):
        held = [claim for claim in record.claims if (claim["algorithm"], claim["partition"]) == setting]
        drawings = [
            forest(record, chosen, setting, f"claims-{place + 1}-{unit}")
            for unit, chosen in {
                "accuracy": [claim for claim in held if claim["score"] != "variance"],
                "variance": [claim for claim in held if claim["score"] == "variance"],
            }.items()
            if chosen
        ]
        blocks.append(Block(setting_name(setting), tuple(drawings), (cut[setting],)))
    text = (
        "Reproduced: the 95 % interval of our paired difference lies wholly on the claim's side, and so does the mean "
        "of every seed. Not reproduced: both lie wholly on the other side. Undecided: all else. "
        "Claims are judged one by one, without a correction for their number."
    )
    return Section("claims", "Claims", (tally(record.claims), text, digits(record)), tuple(blocks))


def tally(claims: Sequence[Claim]) -> str:
    """How many claims have which verdict, and whether one seed is all there is."""
    numbers = {verdict: sum(claim["verdict"] == verdict for claim in claims) for verdict in VERDICTS}
    said = f"Of {plural(len(claims), 'claim')} of {PAPER}, each counted in every setting: " + ", ".join(
        f"{number} {verdict}" for verdict, number in numbers.items()
    )
    single = any(claim.get("seeds") == 1 for claim in claims)
    return (
        f"{said}. One seed: every start was made once, so no verdict rests on more than that." if single else f"{said}."
    )


def claims(record: Record) -> Table:
    """One row for each claim and setting."""
    columns = (
        Column("text", "claim"),
        Column("verdict", "verdict"),
        Column("score", "score", _score, words=True),
        Column("algorithm", "algorithm"),
        Column("partition", "partition"),
        Column("published", "published difference", _signed),
        Column("difference", "our difference", _signed),
        Column("low", "95 % from", _signed),
        Column("high", "to", _signed),
        Column("n", "n", count),
        Column("by_seed", "our difference by seed", _by_seed),
        Column("seeds", "seeds", count),
        Column("source", "source"),
        Column("first", "first"),
        Column("second", "second"),
    )
    rows = [{**claim, "by_seed": seed_means(claim)} for claim in record.claims]
    caption = (
        f"Claims of {PAPER}. Differences are first minus second, in points, or in %² for variance (a claim of a lower "
        "variance has a difference below 0): published = of the means that the paper prints; ours = paired over the n "
        "pairs of (task, seed) that both starts ran, with the 95 % t-interval, and its mean in every seed. "
        "The published variance is most likely a squared mean standard deviation [inferred], ours a variance."
    )
    return table(record, "claims", caption, columns, rows, ("seeds",))


def seed_means(claim: Claim) -> tuple[float, ...]:
    """Our mean difference in each seed."""
    return tuple(float(value["difference"] if isinstance(value, Mapping) else value) for value in claim["by_seed"])


def towards(claim: Claim, value: float) -> float:
    """A difference turned so that above 0 supports the claim: it says that `first` is better than `second`."""
    return -value if claim["score"] == "variance" else value


def forest(record: Record, chosen: Sequence[Claim], setting: tuple[str, str], name: str) -> Drawing:
    """Our differences with their intervals and the published ones, one lane per claim, turned towards the claim."""
    texts = [_lines(record, claim) for claim in chosen]
    heights = [_LINE * (len(lines) + 1) + 0.3 for lines in texts]
    figure, axes = plot(0.75 + sum(heights))
    axes.set_ylim(-sum(heights), 0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)
    top = 0.0
    for claim, lines, height in zip(chosen, texts, heights, strict=True):
        _lane(axes, claim, lines, top)
        top -= height
    variance = chosen[0]["score"] == "variance"
    axes.set_xlabel("variance: second minus first (%²)" if variance else "first minus second (points)")
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    turned = " (for variance that is second minus first, as lower is better)" if variance else ""
    caption = (
        f"Claims of {PAPER}, {setting_name(setting)}: paired differences turned so that right of 0 supports the "
        f"claim{turned}. Filled mark and bar = ours with the 95 % t-interval, n = {_span(c['n'] for c in chosen)} "
        "per claim (circle = reproduced, cross = not reproduced, square = undecided); hollow diamond = published."
    )
    said = "; ".join(f"{plain(c['text'])}: {c['verdict']}" for c in chosen)
    return Drawing(name, figure, caption, f"Claims, {setting_name(setting)}. {said}.")


def _lane(axes: Axes, claim: Claim, lines: Sequence[str], top: float) -> None:
    colour, marker = VERDICTS.get(claim["verdict"], VERDICTS["undecided"])
    known = claim["low"] is not None and claim["high"] is not None
    limits = sorted(towards(claim, claim[key]) for key in ("low", "high")) if known else []
    middle = towards(claim, claim["difference"])
    said = f"{signed(middle)} ({between(limits[0], limits[1])})" if limits else signed(middle)
    common = {"transform": axes.get_yaxis_transform(), "va": "center"}
    for place, line in enumerate(lines):
        axes.text(0.0, top - 0.12 - _LINE * place, line, fontweight="bold", **common)
    below = top - 0.12 - _LINE * len(lines)
    axes.text(0.0, below, f"{said}, {claim['verdict']}", color=MUTED, **common)
    at = below - 0.22
    axes.plot([0, 0], [at - 0.13, at + 0.12], color=FOREGROUND, linewidth=1)
    if limits:
        axes.plot(limits, [at, at], color=colour, linewidth=3, solid_capstyle="round")
    axes.plot([middle], [at], marker, color=colour, markersize=9, markeredgecolor=PAGE, markeredgewidth=1.2)
    if claim["published"] is not None:
        published = towards(claim, claim["published"])
        axes.plot(
            [published], [at], "D", markersize=7.5, markerfacecolor="none", markeredgecolor=FOREGROUND, clip_on=False
        )
    if top:
        axes.axhline(top, color=GRID, linewidth=0.6)


def _lines(record: Record, claim: Claim) -> list[str]:
    optimistic = {claim["first"], claim["second"]} & record.optimistic
    text = f"{plain(claim['text'])}{DAGGER if optimistic else ''}"
    return [shortened(line, _LETTERS) for line in textwrap.wrap(text, _LETTERS, max_lines=2, placeholder=" …")]


def _span(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return plural(found[0], "pair") if len(found) == 1 else f"{found[0]:,} to {found[-1]:,} pairs"


def _score(value: str) -> str:
    return SCORES.get(value, plain(value))


def _signed(value: float) -> str:
    return two(value) if value == 0 else signed(value, 2)


def _by_seed(values: tuple[float, ...]) -> str:
    return ", ".join(map(_signed, values))
