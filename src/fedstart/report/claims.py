"""The paper's claims: what we measured of each, and whether that reproduces it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedstart.report.page import Block, Section
from fedstart.report.paper import PAPER, digits
from fedstart.report.record import DAGGER, Record
from fedstart.report.style import FOREGROUND, GRID, MUTED, PAGE, Drawing, plain, plot, shortened
from fedstart.report.tables import Column, Table, table
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
_LINE, _LETTERS = 0.19, 46
"""Height of a line of text in inches, and how many letters fit on it."""


def section(record: Record) -> Section | None:
    """The section of the page; None for a study without claims."""
    if not record.claims:
        return None
    held: dict[tuple[str, str], list[Claim]] = {setting: [] for setting in record.pairings}
    for claim in record.claims:
        if claim.get("start") is not None:
            held.setdefault(("", claim["partition"]), []).append(claim)
        elif (claim["algorithm"], claim["partition"]) in held:
            held[claim["algorithm"], claim["partition"]].append(claim)
    held = {setting: chosen for setting, chosen in held.items() if chosen}
    blocks: list[Block] = []
    for place, (setting, chosen) in enumerate(held.items()):
        drawings = [
            forest(record, drawn, setting, f"claims-{place + 1}-{unit}")
            for unit, drawn in {
                "accuracy": [claim for claim in chosen if claim["score"] != "variance"],
                "variance": [claim for claim in chosen if claim["score"] == "variance"],
            }.items()
            if drawn
        ]
        caption = claims(record).caption if place == len(held) - 1 else ""
        blocks.append(Block(_heading(setting), tuple(drawings), (replace(_shown(record, chosen), caption=caption),)))
    text = (
        "Reproduced: the 95 % interval of our paired difference lies wholly on the claim's side, and so does the mean "
        "of every seed. Not reproduced: both lie wholly on the other side. Undecided: all else. "
        "Claims are judged one by one, without a correction for their number."
    )
    return Section("claims", "Claims", (tally(record), text, digits(record)), tuple(blocks))


def tally(record: Record) -> str:
    """How many claims have which verdict, and whether one seed is all there is."""
    claims = record.claims
    numbers = {verdict: sum(claim["verdict"] == verdict for claim in claims) for verdict in VERDICTS}
    said = f"Of {plural(len(claims), 'claim')}{_origin(record)}, each counted in every setting: " + ", ".join(
        f"{number} {verdict}" for verdict, number in numbers.items()
    )
    single = any(claim.get("seeds") == 1 for claim in claims)
    return (
        f"{said}. One seed: every start was made once, so no verdict rests on more than that." if single else f"{said}."
    )


def claims(record: Record) -> Table:
    """One row for each claim and setting; the algorithms that a claim compares have columns of their own."""
    columns = (
        *_measured(),
        Column("first", "first"),
        Column("second", "second"),
        Column("first_algorithm", "first algorithm"),
        Column("second_algorithm", "second algorithm"),
        Column("start", "from"),
        Column("more_than", "less that from"),
    )
    rows: list[dict[str, Any]] = []
    for claim in record.claims:
        row = {**claim, "by_seed": seed_means(claim)}
        if claim.get("start") is not None:
            names = {"first_algorithm": claim["first"], "second_algorithm": claim["second"]}
            row |= {**names, "first": None, "second": None, "algorithm": None}
        rows.append(row)
    optional = ("seeds", "first_algorithm", "second_algorithm", "start", "more_than")
    return table(record, "claims", _caption(record), columns, rows, optional)


def compared(record: Record, claim: Claim, turned: bool = False) -> str:
    """`tau 5 − tau 100, from random, less that from pre-trained`; `turned` is second minus first."""
    pair = [plain(claim[key]) for key in (("second", "first") if turned else ("first", "second"))]
    if claim.get("start") is None:
        return " − ".join(map(record.called, pair))
    said = f"{' − '.join(pair)}, from {record.called(plain(claim['start']))}"
    more_than = claim.get("more_than")
    return said if more_than is None else f"{said}, less that from {record.called(plain(more_than))}"


def _shown(record: Record, chosen: Sequence[Claim]) -> Table:
    """The table of a setting as the page has it."""
    columns = [column for column in _measured() if column.key not in ("algorithm", "partition")]
    if chosen[0].get("start") is None:
        columns += [Column("first", "first"), Column("second", "second")]
    else:
        columns.insert(2, Column("compared", "compared"))
    rows = [{**claim, "by_seed": seed_means(claim), "compared": compared(record, claim)} for claim in chosen]
    return table(record, "claims", "", columns, rows, ("seeds", "published"))


def _measured() -> tuple[Column, ...]:
    return (
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
    )


def _caption(record: Record) -> str:
    printed = any(claim["published"] is not None for claim in record.claims)
    theirs = "published = of the means that the paper prints; ours = " if printed else ""
    said = (
        f"Claims{_origin(record)}. Differences are first minus second, in points, or in %² for variance (a claim of a "
        f"lower variance has a difference below 0): {theirs}paired over the n pairs of (task, seed) that both starts "
        "ran, with the 95 % t-interval, and its mean in every seed."
    )
    if any(claim.get("start") is not None for claim in record.claims):
        said += (
            " Two algorithms are compared from one start, over the pairs that both ran from it; "
            '"less that from" takes away the same difference from another start.'
        )
    variance = "The published variance is most likely a squared mean standard deviation [inferred], ours a variance."
    return f"{said} {variance}" if printed else said


def _heading(setting: tuple[str, str]) -> str:
    return setting_name(setting) if setting[0] else f"algorithms from one start, on {setting[1]}"


def _origin(record: Record) -> str:
    """Whose the claims are: of the paper whose rows stand beside ours, if there are any."""
    published = record.published or any(claim["published"] is not None for claim in record.claims)
    return f" of {PAPER}" if published else ""


def seed_means(claim: Claim) -> tuple[float, ...]:
    """Our mean difference in each seed."""
    return tuple(float(value["difference"] if isinstance(value, Mapping) else value) for value in claim["by_seed"])


def towards(claim: Claim, value: float) -> float:
    """A difference turned so that above 0 supports the claim: it says that `first` is better than `second`."""
    return -value if claim["score"] == "variance" else value


def forest(record: Record, chosen: Sequence[Claim], setting: tuple[str, str], name: str) -> Drawing:
    """Our differences with their intervals and the published ones, one lane per claim, turned towards the claim."""
    texts = [_lines(record, claim) for claim in chosen]
    heights = [_LINE * (len(bold) + len(rest) + 1) + 0.3 for bold, rest in texts]
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
    diamond = "; hollow diamond = published" if any(claim["published"] is not None for claim in chosen) else ""
    caption = (
        f"Claims{_origin(record)}, {_heading(setting)}: paired differences turned so that right of 0 supports the "
        f"claim{turned}. Filled mark and bar = ours with the 95 % t-interval, n = {_span(c['n'] for c in chosen)} "
        f"per claim (circle = reproduced, cross = not reproduced, square = undecided){diamond}."
    )
    said = "; ".join(f"{plain(c['text'])}: {c['verdict']}" for c in chosen)
    return Drawing(name, figure, caption, f"Claims, {_heading(setting)}. {said}.")


def _lane(axes: Axes, claim: Claim, lines: tuple[Sequence[str], Sequence[str]], top: float) -> None:
    """A claim's words (what is claimed, what is compared), its numbers, and below them its mark and interval."""
    colour, marker = VERDICTS.get(claim["verdict"], VERDICTS["undecided"])
    known = claim["low"] is not None and claim["high"] is not None
    limits = sorted(towards(claim, claim[key]) for key in ("low", "high")) if known else []
    middle = towards(claim, claim["difference"])
    said = f"{signed(middle)} ({between(limits[0], limits[1])})" if limits else signed(middle)
    bold, rest = lines
    for place, line in enumerate((*bold, *rest, f"{said}, {claim['verdict']}")):
        style: dict[str, Any] = {"fontweight": "bold"} if place < len(bold) else {"color": MUTED}
        axes.text(0.0, top - 0.12 - _LINE * place, line, transform=axes.get_yaxis_transform(), va="center", **style)
    at = top - 0.34 - _LINE * (len(bold) + len(rest))
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


def _lines(record: Record, claim: Claim) -> tuple[list[str], list[str]]:
    """The claim, and for two algorithms what is compared, each in at most two lines."""
    algorithms = claim.get("start") is not None
    starts = {claim["start"], claim.get("more_than")} if algorithms else {claim["first"], claim["second"]}
    text = f"{plain(claim['text'])}{DAGGER if starts & record.optimistic else ''}"
    contrast = compared(record, claim, claim["score"] == "variance") if algorithms else ""
    common: dict[str, Any] = {"width": _LETTERS, "max_lines": 2, "placeholder": " …", "break_on_hyphens": False}
    bold, rest = (textwrap.wrap(words, **common) for words in (text, contrast))
    return [shortened(line, _LETTERS) for line in bold], [shortened(line, _LETTERS) for line in rest]


def _span(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return plural(found[0], "pair") if len(found) == 1 else f"{found[0]:,} to {found[-1]:,} pairs"


def _score(value: str) -> str:
    return SCORES.get(value, plain(value))


def _signed(value: float) -> str:
    return two(value) if value == 0 else signed(value, 2)


def _by_seed(values: tuple[float, ...]) -> str:
    return ", ".join(map(_signed, values))
