"""The report of a study after the paper: claims, published numbers, choices, personalised scores and break-even."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fabricated import Cells, Page, fabricate, place, read_page, sheet, small, with_paper
from fedstart.report import build, claims
from fedstart.report.reading import read

COPREFL = "coprefl (balance 0.5)"
NOTE = "† chosen on the test tasks themselves, as in the paper; optimistic."
SECTIONS = ("claims", "paper", "personal", "choosing", "costs")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fabricated study with all that a summary may hold, and its report; tests do not change it."""
    directory = with_paper(fabricate(tmp_path_factory.mktemp("study") / "whole", tasks=2))
    build(directory)
    return directory


@pytest.fixture(scope="module")
def summary(study: Path) -> dict[str, Any]:
    return json.loads((study / "summary.json").read_text())


@pytest.fixture(scope="module")
def page(study: Path) -> Page:
    return Page((study / "report.html").read_text())


def test_every_section_is_there_and_can_be_reached(study: Path, page: Page) -> None:
    text = (study / "report.html").read_text()
    assert set(SECTIONS) <= set(page.ids)
    for section in SECTIONS:
        assert f'href="#{section}"' in text
    assert page.loaded == []
    assert "script" not in page.tags
    assert len(page.ids) == len(set(page.ids))
    assert Cells(text).bare == 0
    assert len(re.findall(r'<svg[^>]* role="img" aria-label="[^"]+', text)) == page.tags.count("figure")
    for caption in re.findall(r"<figcaption>(.*?)</figcaption>", text, flags=re.DOTALL):
        assert re.search(r"\bn = [\d,]+ ", caption), caption


def test_published_numbers_stand_beside_ours(study: Path, summary: dict[str, Any]) -> None:
    rows = sheet(study, "paper")
    ours = {(row["start"], row["partition"]): row for row in summary["rows"]}
    assert len(rows) == len(summary["published"]) == 6
    for row, published in zip(rows, summary["published"], strict=True):
        mine = ours[row["start"], row["partition"]]
        for key in ("mean", "low", "high", "variance", "variance_squared_mean_deviation", "worst10", "worst30"):
            assert float(row[key]) == mine[key]
        assert float(row["published_accuracy"]) == published["accuracy"]
        assert float(row["published_variance"]) == published["variance"]
        assert float(row["published_low20"]) == published["low20"]
        assert row["published_low30"] == ""
    first = Cells((study / "report.html").read_text()).headed("start", "n", "accuracy")[0]
    cells = dict(zip(first[0], first[1], strict=True))
    mine, published = ours["fedavg", "dirichlet(0.5)"], summary["published"][0]
    assert cells["accuracy"] == f"{mine['mean']:.2f}"
    assert cells["published accuracy"] == f"{published['accuracy']:.2f}"
    assert cells["(mean std)²"] == f"{mine['variance_squared_mean_deviation']:.2f}"
    assert cells["published Low30"] == "–"


def test_the_caption_names_table_paper_reading_and_scale(page: Page, tmp_path: Path) -> None:
    assert "Table 1a of arXiv:2402.02225v4" in page.words
    assert "squared mean standard deviation" in page.words
    assert "[inferred" in page.words
    assert "Scale of our run: smoke." in page.words
    assert 'Our numbers at a scale other than "paper" are not expected to agree in digits.' in page.words
    directory = with_paper(small(tmp_path / "study"))
    changed = json.loads((directory / "summary.json").read_text())
    changed["published"].append({**changed["published"][0], "table": "3a"})
    place(directory / "summary.json", {**changed, "scale": "paper"})
    words = read_page(directory).words
    assert "Tables 1a, 3a of arXiv:2402.02225v4" in words
    assert "Scale of our run: paper." in words


def test_claims_have_their_numbers_and_a_verdict_in_words_and_colour(study: Path, summary: dict[str, Any]) -> None:
    rows = sheet(study, "claims")
    assert len(rows) == len(summary["claims"]) == 6
    for row, claim in zip(rows, summary["claims"], strict=True):
        for key in ("difference", "low", "high"):
            assert float(row[key]) == claim[key]
        assert row["published"] == ("" if claim["published"] is None else str(claim["published"]))
        assert [float(value) for value in row["by_seed"].split(";")] == claim["by_seed"]
        names = ("text", "source", "score", "first", "second", "verdict")
        assert [row[name] for name in names] == [claim[name] for name in names]
    cells = Cells((study / "report.html").read_text())
    table = cells.headed("claim", "verdict")[0]
    shown = dict(zip(table[0], table[1], strict=True))
    assert shown["our difference"] == f"{summary['claims'][0]['difference']:+.2f}"
    assert shown["published difference"] == "+4.33"
    styles = {text: style for text, style in cells.styles if "verdict " in style}
    assert styles["not reproduced"] == "word verdict not-reproduced"
    assert set(styles) == {"reproduced", "not reproduced", "undecided"}
    assert "2 reproduced, 2 not reproduced, 2 undecided" in Page((study / "report.html").read_text()).words


def test_the_forest_is_turned_towards_the_claim(study: Path, summary: dict[str, Any]) -> None:
    record = read(study)
    lower = summary["claims"][1]
    assert lower["score"] == "variance"
    assert lower["difference"] < 0
    drawing = claims.forest(record, [lower], ("fedavg", "iid"), "one")
    axes = drawing.figure.axes[0]
    marks = [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() not in ("None", "", None)]
    assert marks == [-lower["difference"], -lower["published"]]
    assert "second minus first" in axes.get_xlabel()
    higher = claims.forest(record, [summary["claims"][0]], ("fedavg", "iid"), "two").figure.axes[0]
    marks = [line for line in higher.lines if line.get_marker() not in ("None", "", None)]
    assert float(marks[0].get_xdata()[0]) == summary["claims"][0]["difference"]
    assert marks[1].get_markerfacecolor() == "none"


def test_one_seed_is_said(tmp_path: Path) -> None:
    words = read_page(with_paper(small(tmp_path / "study", tasks=3), seeds=1)).words
    assert "One seed: every start was made once, so no verdict rests on more than that." in words


def test_a_start_chosen_on_the_test_tasks_has_its_dagger_in_every_table(study: Path, page: Page) -> None:
    found = 0
    for path in sorted((study / "tables").glob("*.md")):
        text = path.read_text()
        if COPREFL not in text:
            continue
        found += 1
        assert len(re.findall(re.escape(COPREFL) + "(?!†)", text)) == 0, path
        assert NOTE in text
        latex = path.with_suffix(".tex").read_text()
        assert rf"{COPREFL}\textdagger{{}}" in latex
        assert r"\multicolumn" in latex
        rows = sheet(study, path.stem)
        named = [row for row in rows if COPREFL in (row.get("start"), row.get("first"), row.get("second"))]
        assert [row for row in rows if row["chosen_on_test_tasks"] == COPREFL] == named != []
    assert found == 8
    assert f"<h1>Undecided: {COPREFL}† leads" in (study / "report.html").read_text()
    assert f"{COPREFL}†: settings chosen on the test tasks themselves" in page.words
    assert "fedavg†" not in page.words


def test_an_honest_choice_has_no_dagger(tmp_path: Path) -> None:
    directory = with_paper(small(tmp_path / "study"), rule="validation")
    page = read_page(directory)
    assert "†" not in page.words
    assert "Chosen on tasks of pre-training classes." in page.words
    assert "chosen_on_test_tasks" not in (directory / "tables/summary.csv").read_text()
    text = (directory / "study.toml").read_text()
    (directory / "study.toml").write_text(f'{text}\n[pretraining.left_out]\ncolumn = "Domain"\n')
    assert "Chosen on tasks of pre-training rows, of another Domain." in read_page(directory).words


def test_candidates_are_listed_and_drawn(study: Path, summary: dict[str, Any]) -> None:
    rows = sheet(study, "choices")
    expected = [(start, one) for start, how in summary["selection"].items() for one in how["candidates"]]
    assert [(row["start"], float(row["mean"])) for row in rows] == [(start, one["mean"]) for start, one in expected]
    assert [row["settings"] for row in rows if row["chosen"]] == ["settings.balance = 0.5"] * 2
    assert [row["rule"] for row in rows] == ["validation"] * 5 + ["paper"] * 5
    assert {path.stem for path in (study / "figures").glob("choice-*.svg")} == {"choice-1", "choice-2"}


def test_a_grid_of_two_settings_or_of_words_is_reported_too(tmp_path: Path) -> None:
    directory = with_paper(small(tmp_path / "study"))
    changed = json.loads((directory / "summary.json").read_text())
    (words, how), (both, other) = changed["selection"].items()
    names = ["sum", "mean", "other", "a", "b"]
    for name, one in zip(names, how["candidates"], strict=True):
        one["changes"] = {"settings.reduction": name}
    for one in other["candidates"]:
        one["changes"]["plan.lr"] = 0.01
    how["chosen"], other["chosen"] = {"settings.reduction": "mean"}, {"settings.balance": 0.5, "plan.lr": 0.01}
    place(directory / "summary.json", changed)
    page = read_page(directory)
    assert "Chosen: settings.balance = 0.5, plan.lr = 0.01." in page.words
    assert "choice-1" in page.ids and "choice-2" not in page.ids
    assert words != both


def test_costs_count_passes_seconds_and_break_even(study: Path, summary: dict[str, Any]) -> None:
    rows = {(row["start"], row["stage"]): row for row in sheet(study, "costs")}
    cost = summary["cost"]["fedavg"]["pretraining"]
    row = rows["fedavg", "pre-training"]
    for key in ("exchanges", "bytes_up", "bytes_down", "examples", "backward"):
        assert int(row[key]) == cost[key]
    assert float(row["seconds"]) == 60.0
    assert float(rows["random", "downstream run"]["seconds"]) == 2.0
    assert rows["fedavg", "downstream run"]["seconds"] == ""
    cells = Cells((study / "report.html").read_text())
    shown = next(row for row in cells.headed("start", "stage")[0] if row[:2] == ["fedavg", "pre-training"])
    assert shown[2:5] == ["150", "6,400", "3,200"]
    paid = {row["start"]: row for row in sheet(study, "break_even")}
    assert (paid[COPREFL]["tasks_bytes"], paid[COPREFL]["tasks_examples"]) == ("4", "3")
    assert (paid[COPREFL]["rounds"], paid[COPREFL]["saved_rounds"]) == ("6", "14")
    assert paid["fedavg"]["tasks_bytes"] == paid["fedavg"]["rounds"] == ""
    never = next(row for row in cells.headed("start", "accuracy to reach")[0] if row[0] == "fedavg")
    assert never.count("never within 20 rounds") == 3


def test_personalised_scores_stand_beside_the_global_ones(study: Path, summary: dict[str, Any]) -> None:
    rows = sheet(study, "personal")
    for row, known in zip(rows, summary["rows"], strict=True):
        assert float(row["mean"]) == known["mean"]
        for key, value in known["personal"].items():
            if key != "variance_squared_mean_deviation":
                assert float(row[f"personal_{key}"]) == value
        assert float(row["gain"]) == pytest.approx(3.5)
    detailed = sheet(study, "summary")
    assert [float(row["jain"]) for row in detailed] == [row["jain"] for row in summary["rows"]]
    assert [float(row["entropy"]) for row in detailed] == [row["entropy"] for row in summary["rows"]]
