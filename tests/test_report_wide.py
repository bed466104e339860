"""The report of summaries that are old, incomplete, hostile or wide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fabricated import STARTS, Cells, place, read_page, sheet, small, with_paper
from fedstart.report import build, costs
from fedstart.report.style import grouped, looks

NEW = ("jain", "entropy", "sample_mean", "personal")
SECTIONS = ("claims", "paper", "personal", "choosing", "costs")


@pytest.mark.parametrize(("count", "shown"), [(0, "0"), (41_000, "0.041"), (12_500_000, "12.5"), (6.4e9, "6,400")])
def test_megabytes(count: float, shown: str) -> None:
    assert costs.megabytes(count) == shown


def test_an_old_summary_still_gives_a_report(tmp_path: Path) -> None:
    directory = small(tmp_path / "old")
    before = json.loads((directory / "summary.json").read_text())
    for row in before["rows"]:
        for key in NEW:
            row.pop(key, None)
    place(directory / "summary.json", before)
    page = read_page(directory)
    assert set(SECTIONS) & set(page.ids) == {"costs"}
    assert "jain" not in (directory / "tables/summary.csv").read_text()
    assert {"backward", "seconds"}.isdisjoint(sheet(directory, "costs")[0])
    assert not (directory / "tables/claims.csv").exists()
    changed = with_paper(directory)
    summary = json.loads((changed / "summary.json").read_text())
    for row in summary["rows"]:
        row["personal"] = None
    empty = {"published": [], "claims": None, "selection": {}, "break_even": None}
    place(changed / "summary.json", {**summary, **empty})
    assert set(SECTIONS) & set(read_page(changed).ids) == {"costs"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("claims", [{"text": "a"}], "claims entry 0 lacks 'source'"),
        ("published", [{"start": "a"}], "published entry 0 lacks 'algorithm'"),
        ("selection", {"fedavg": {"chosen": {}}}, "selection of fedavg lacks 'rule'"),
        ("break_even", {"fedavg": {"algorithm": "a"}}, "break_even of fedavg lacks 'partition'"),
    ],
)
def test_an_incomplete_entry_is_named(tmp_path: Path, name: str, value: Any, message: str) -> None:
    directory = small(tmp_path / "study")
    summary = json.loads((directory / "summary.json").read_text())
    place(directory / "summary.json", {**summary, name: value})
    with pytest.raises(ValueError, match=message):
        build(directory)


def test_claims_of_others_are_text_and_never_markup(tmp_path: Path) -> None:
    directory = with_paper(small(tmp_path / "study"))
    summary = json.loads((directory / "summary.json").read_text())
    summary["claims"][0] |= {"text": "<script>alert(1)</script> & $x$", "verdict": 'odd" onclick="x'}
    place(directory / "summary.json", summary)
    page = read_page(directory)
    assert "script" not in page.tags
    assert "<script>alert(1)</script> & $x$" in page.words
    assert "onclick" not in Cells((directory / "report.html").read_text()).attributes


def test_sixteen_starts_are_drawn_in_groups_that_can_be_told_apart(tmp_path: Path) -> None:
    names = ["random", *(f"start {place}" for place in range(15))]
    found = looks(names, "random")
    assert len({(look.colour, look.marker) for look in found.values()}) == 16
    groups = grouped(names, found)
    assert [len(group) for group in groups] == [6, 6, 6]
    assert set().union(*groups) == set(names)
    for group in groups:
        assert group[0] == "random"
        assert len({found[name].colour for name in group}) == len(group)
    assert grouped(list(STARTS), looks(list(STARTS), "random")) == [list(STARTS)]
    directory = small(tmp_path / "study", starts={name: 60.0 + place for place, name in enumerate(names)})
    text = read_page(directory).words
    assert "grey area = the range of all starts" in text
    svg = (directory / "figures/rounds-1.svg").read_text()
    assert all(f">{name}<" in svg for name in names)
    assert svg.count(">random<") == 3
