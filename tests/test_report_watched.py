"""The report of a study that watches its runs: targets, local steps, probes on the way, claims about algorithms."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fabricated import Cells, Page, fabricate, place, read_page, sheet, small, with_paper
from fabricated_watched import LAYERS, STARTS, TAUS, with_watched
from fedstart.report import build, claims, local_steps, targets, watched
from fedstart.report.reading import read
from fedstart.report.style import applied, looks, written

NEW = ("tau", "targets", "way")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that watches its runs, with its report; tests do not change it."""
    whole = tmp_path_factory.mktemp("study") / "whole"
    directory = with_watched(fabricate(whole, STARTS, tasks=1, seeds=3, algorithms=tuple(TAUS)))
    build(directory)
    return directory


@pytest.fixture(scope="module")
def summary(study: Path) -> dict[str, Any]:
    return json.loads((study / "summary.json").read_text())


@pytest.fixture(scope="module")
def page(study: Path) -> Page:
    return Page((study / "report.html").read_text())


def tiny(directory: Path, taus: dict[str, tuple[int, int]] = TAUS) -> Path:
    return with_watched(small(directory, starts=STARTS, algorithms=tuple(taus)), taus)


def drawn(axes: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Places and values of the lines with several points, in the order they were drawn."""
    return [line.get_data() for line in axes.lines if len(line.get_xdata()) > 1 and line.get_marker() != "None"]


def test_the_sections_are_there_with_accessible_figures(study: Path, page: Page) -> None:
    text = (study / "report.html").read_text()
    for section in NEW:
        assert f'href="#{section}"' in text
    assert page.loaded == []
    assert len(page.ids) == len(set(page.ids))
    assert {"tau-1", "tau-2", "way-1-1", "way-1-2", "way-1-layers-1"} <= set(page.ids)
    assert len(re.findall(r'<svg[^>]* role="img" aria-label="[^"]+', text)) == page.tags.count("figure")
    for caption in re.findall(r"<figcaption>(.*?)</figcaption>", text, flags=re.DOTALL):
        assert re.search(r"\bn = [\d,]+ ", caption), caption


def test_nothing_is_drawn_for_a_study_without_them(tmp_path: Path) -> None:
    directory = with_paper(small(tmp_path / "old"))
    page = read_page(directory)
    assert not set(NEW) & set(page.ids)
    assert not {"targets.csv", "watched.csv"} & {path.name for path in (directory / "tables").iterdir()}
    assert not {"start", "more_than", "first_algorithm"} & sheet(directory, "claims")[0].keys()
    assert "Of 3 claims of arXiv:2402.02225v4" in page.words


def test_targets_are_exact_in_csv_and_short_on_the_page(study: Path, summary: dict[str, Any], page: Page) -> None:
    rows = sheet(study, "targets")
    assert len(rows) == len(summary["targets"]) == 2 * 2 * 3
    for row, known in zip(rows, summary["targets"], strict=True):
        assert [row[key] for key in ("start", "algorithm", "partition")] == [
            known[key] for key in ("start", "algorithm", "partition")
        ]
        assert [float(row[key]) for key in ("target", "rounds", "bytes", "examples")] == [
            known[key] for key in ("target", "rounds", "bytes", "examples")
        ]
        for kind in ("rounds", "bytes", "examples"):
            ends = [float(row[f"{kind}_ratio{end}"]) for end in ("", "_low", "_high")]
            assert ends == [known[f"{kind}_ratio"][key] for key in ("ratio", "low", "high")]
        assert row["reference"] == "tau 5"
    tables = Cells((study / "report.html").read_text()).headed("start", "algorithm", "n", "target (%)")
    assert len(tables) == 2
    assert tables[0][1] == ["random", "tau 5", "3", "41.2", "3.5", "7.25", "4,800", "1", "1"]
    assert tables[1][3][3:] == ["43.2", "14", "29", "14,400", "4 (2.25 to 6.25)", "5.06 (3.06 to 7.56)"]
    assert "is the highest accuracy that every algorithm reaches after some round" in page.words
    assert "Ratios are to tau 5" in page.words


def test_accuracy_stands_over_tau(study: Path, summary: dict[str, Any], page: Page) -> None:
    record = read(study)
    (family,) = local_steps.families(record)
    assert [member.local_steps for member in family] == [5, 20, 100]
    assert "Equal numbers of local steps: rounds × τ = 400 in each (80 rounds at τ = 5" in page.words
    known = [row for row in summary["rows"] if row["partition"] == "iid"]
    rows = [(member.local_steps, row) for member in family for row in known if row["algorithm"] == member.algorithm]
    with applied():
        drawing = local_steps.accuracy(family, rows, looks(record.starts, record.scratch), "tau-2", "iid")
    (axes,) = drawing.figure.axes
    assert axes.get_xscale() == "log"
    for start, (places, values) in zip(STARTS, drawn(axes), strict=True):
        assert np.abs(np.log(places / np.array([5, 20, 100]))).max() < 0.1
        assert list(values) == [row["mean"] for _, row in rows if row["start"] == start]
        assert f"from {start}: {values[0]:.1f} %" in drawing.alternative
    bars = [tuple(np.asarray(line.get_ydata()).tolist()) for line in axes.lines if line.get_marker() == "None"]
    assert sorted(bars) == sorted((row["low"], row["high"]) for _, row in rows)


@pytest.mark.parametrize(
    ("taus", "said"),
    [
        ({"a": (2, 30), "b": (8, 30)}, "Each has 30 rounds, so a larger τ means more local steps in all."),
        ({"b": (8, 30), "a": (2, 40)}, "Rounds × τ is not the same in each: 40 rounds at τ = 2, 30 rounds at τ = 8."),
        (
            {"a": (2, 40), "b": (8, 10), "c": (8, 40)},
            "Equal numbers of local steps: rounds × τ = 80 in each (40 rounds at τ = 2, 10 rounds at τ = 8).",
        ),
    ],
)
def test_rounds_are_said_where_work_differs(tmp_path: Path, taus: dict[str, tuple[int, int]], said: str) -> None:
    (family,) = local_steps.families(read(tiny(tmp_path / "study", taus)))
    assert local_steps.work(family).endswith(f" {said}")


@pytest.mark.parametrize("change", [{"schedule": {"name": "step"}}, {"lr": 0.5}, {"local_steps": None}, None])
def test_other_methods_are_no_family(tmp_path: Path, change: dict[str, Any] | None) -> None:
    directory = tiny(tmp_path / "study", {"a": (2, 40), "b": (8, 10)})
    assert len(local_steps.families(read(directory))) == 1
    for cell in (directory / "cells").iterdir():
        if json.loads((cell / "cell.json").read_text())["algorithm"] == "b" or "schedule" in (change or {}):
            about = json.loads((cell / "run.json").read_text())
            about["settings"] |= (
                {"method": "fedprox"} if change is None else {"plan": about["settings"]["plan"] | change}
            )
            place(cell / "run.json", about)
    record = read(directory)
    assert local_steps.section(record, looks(record.starts, record.scratch)) is None


def test_shares_are_drawn_over_the_rounds(study: Path, summary: dict[str, Any], page: Page) -> None:
    whole = [row for row in summary["watched"] if row["layer"] == ""]
    subject = watched.Subject("misalignment", "share", "Share", "%", 100.0, " %")
    with applied():
        first, second = watched.over_rounds(whole, looks(tuple(STARTS), "random"), subject, "way-1")
    assert [len(drawing.figure.axes) for drawing in (first, second)] == [3, 3]
    assert len({axes.get_ylim() for drawing in (first, second) for axes in drawing.figure.axes}) == 1
    for algorithm, axes in zip(TAUS, second.figure.axes, strict=True):
        assert axes.get_title() == algorithm
        for start, (places, values) in zip(STARTS, drawn(axes), strict=True):
            place = {"start": start, "algorithm": algorithm, "partition": "iid"}
            own = [row for row in whole if place.items() <= row.items()]
            assert list(places) == [100 * row["round"] / row["rounds"] for row in own]
            assert list(values) == pytest.approx([100 * row["mean"] for row in own])
        assert axes.collections[0].get_paths()[0].get_extents().ymax == pytest.approx(
            100
            * max(
                r["high"] for r in whole if (r["start"], r["algorithm"], r["partition"]) == ("random", algorithm, "iid")
            )
        )
    assert "Share of misaligned filters, against the last round" in page.words
    assert (
        'by the measure "response", against the weights of the last round: a reconstruction of Equation 8' in page.words
    )
    assert page.words.count("ours, as its formula is not known to us") == 3


def test_layers_stand_in_their_order_at_the_first_two_looks(study: Path, summary: dict[str, Any]) -> None:
    place = {"algorithm": "tau 5", "partition": "iid", "value": "share"}
    rows = [row for row in summary["watched"] if row["layer"] and place.items() <= row.items()]
    subject = watched.Subject("misalignment", "share", "Share", "%", 100.0, " %")
    with applied():
        drawing = watched.by_layer(rows, looks(tuple(STARTS), "random"), subject, "layers", "tau 5 on iid")
    start, later = drawing.figure.axes
    assert [text.get_text() for text in start.get_yticklabels()] == [name.removesuffix(".weight") for name in LAYERS]
    assert [axes.get_title() for axes in (start, later)] == ["before round 1", "at 10 %"]
    for number, axes in ((0, start), (8, later)):
        for name, (values, _) in zip(STARTS, drawn(axes), strict=True):
            known = {row["layer"]: row["mean"] for row in rows if row["start"] == name and row["round"] == number}
            assert list(values) == pytest.approx([100 * known[layer] for layer in LAYERS])
    text = (study / "report.html").read_text()
    assert "Misalignment: filters" not in text
    assert not (study / "figures/way-2-layers-1.svg").exists()


def test_the_table_has_all_that_was_watched(study: Path, summary: dict[str, Any], page: Page) -> None:
    rows = sheet(study, "watched")
    assert len(rows) == len(summary["watched"])
    for row, known in zip(rows, summary["watched"], strict=True):
        assert {key: float(row[key]) for key in ("round", "rounds", "mean", "low")} == {
            key: known[key] for key in ("round", "rounds", "mean", "low")
        }
        assert (row["layer"], row["value"]) == (known["layer"], known["value"])
    assert f"All {len(rows):,} numbers, by layer too, are in tables/watched.csv" in page.words


def test_claims_about_algorithms_say_what_they_compare(study: Path, summary: dict[str, Any], page: Page) -> None:
    text = (study / "report.html").read_text()
    headings = re.findall(r"<h3>(.*?)</h3>", text.split('<h2 id="claims">')[1].split("<h2")[0])
    assert headings == [
        "tau 5 on dirichlet(0.5)",
        *(f"algorithms from one start, on {p}" for p in ("dirichlet(0.5)", "iid")),
    ]
    compared, other = Cells(text).headed("claim", "verdict", "compared")
    assert "published difference" not in compared[0]
    assert compared[1][2] == other[1][2] == "tau 5 − tau 100, from random"
    assert compared[2][2] == other[2][2] == "tau 5 − tau 100, from random, less that from pre-trained"
    assert "algorithm" not in compared[0]
    rows = sheet(study, "claims")
    assert [(r["algorithm"], r["first"], r["first_algorithm"], r["second_algorithm"], r["start"]) for r in rows] == [
        *[("", "", "tau 5", "tau 100", "random")] * 4,
        ("tau 5", "pre-trained", "", "", ""),
    ]
    assert [row["more_than"] for row in rows] == ["", "", "pre-trained", "pre-trained", ""]
    assert "Of 5 claims, each counted" in page.words
    lower = {**summary["claims"][2], "score": "variance"}
    with applied():
        drawing = claims.forest(read(study), [lower], ("", "iid"), "one")
    lines = " ".join(text.get_text() for text in drawing.figure.axes[0].texts)
    assert "tau 100 − tau 5, from random, less that from pre-trained −2.5 (−3.8 to −1.2)" in lines


def test_a_dagger_marks_starts_and_no_algorithm_of_that_name(tmp_path: Path) -> None:
    directory = tiny(tmp_path / "study", {"random": (2, 40), "b": (8, 10)})
    summary = json.loads((directory / "summary.json").read_text())
    chosen = {"rule": "paper", "chosen": {}, "candidates": []}
    place(directory / "summary.json", {**summary, "selection": {"random": chosen}})
    record = read(directory)
    assert claims.compared(record, record.claims[1]) == "random − b, from random†, less that from pre-trained"
    shown = claims.claims(record).files()
    assert "| random | b | random† | – |" in shown["claims.md"].decode().splitlines()[2]
    assert [row.split(",")[-1] for row in targets.targets(record).files()["targets.csv"].decode().split()] == [
        "chosen_on_test_tasks",
        *("random", "random", "", ""),
    ]


def test_one_pair_has_no_bands_and_the_same_bytes(tmp_path: Path) -> None:
    record = read(tiny(tmp_path / "study"))
    drawings: list[list[Any]] = []
    for _ in range(2):
        with applied():
            coloured = looks(record.starts, record.scratch)
            sections = [local_steps.section(record, coloured), watched.section(record, coloured)]
            drawings.append([d for section in sections if section for block in section.blocks for d in block.drawings])
            found = [written(drawing) for drawing in drawings[-1]]
        drawings[-1].append(found)
    assert drawings[0].pop() == drawings[1].pop()
    assert [drawing.name for drawing in drawings[0]] == ["tau-1", "way-1-1", "way-1-layers-1"]
    for drawing in drawings[0]:
        assert re.search("n = 1 (pair|run) ", drawing.caption)
        assert "95 %" not in drawing.caption


def test_other_numbers_and_odd_names_are_drawn_too(tmp_path: Path) -> None:
    directory = tiny(tmp_path / "study", {"<b>a</b>": (2, 40), "../b": (8, 10)})
    summary = json.loads((directory / "summary.json").read_text())
    for row in summary["watched"]:
        row["probe"] = "../client_drift"
    place(directory / "summary.json", summary)
    record = read(directory)
    with applied():
        section = watched.section(record, looks(record.starts, record.scratch))
    assert section is not None
    assert [block.heading for block in section.blocks] == ["../client drift: share", ""]
    assert [drawing.name for drawing in section.blocks[0].drawings] == ["way-1-1", "way-1-layers-1"]
    assert "Equation 8" not in section.blocks[0].drawings[0].caption


@pytest.mark.parametrize(
    ("key", "message"),
    [("targets", "targets entry 0 lacks 'rounds_ratio'"), ("watched", "watched entry 0 lacks 'layer'")],
)
def test_an_incomplete_entry_is_named(tmp_path: Path, key: str, message: str) -> None:
    directory = tiny(tmp_path / "study")
    summary = json.loads((directory / "summary.json").read_text())
    summary[key][0].pop(message.split("'")[1])
    place(directory / "summary.json", summary)
    with pytest.raises(ValueError, match=message):
        build(directory)
