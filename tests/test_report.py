"""The report of a whole study: what the page shows, and the figures and tables beside it."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from fabricated import PARTITIONS, Page, fabricate, files, place, small
from fedstart.report import build, words
from fedstart.report.reading import read


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole fabricated study with its report; tests do not change it."""
    directory = fabricate(tmp_path_factory.mktemp("study") / "whole")
    build(directory)
    return directory


@pytest.fixture(scope="module")
def page(study: Path) -> Page:
    return Page((study / "report.html").read_text())


def test_the_page_needs_nothing_else(study: Path, page: Page) -> None:
    assert page.loaded == []
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert "@import" not in (study / "report.html").read_text()
    assert len(page.ids) == len(set(page.ids))


def test_the_answer_comes_first_and_agrees_with_the_summary(study: Path, page: Page) -> None:
    summary = json.loads((study / "summary.json").read_text())
    best = max((row for row in summary["rows"] if row["partition"] == PARTITIONS[0]), key=lambda row: row["mean"])
    against = {
        c["first"]: c for c in summary["contrasts"] if c["partition"] == PARTITIONS[0] and c["second"] == best["start"]
    }
    answer = (study / "report.html").read_text().split("<h1>")[1].split("</h1>")[0].replace("\N{NO-BREAK SPACE}", " ")
    assert answer.startswith(f"{best['start']} is the best start: {best['mean']:.1f} % mean accuracy")
    assert f"{-against['random']['difference']:.1f} above random" in answer
    assert f"({-against['centralized']['high']:.1f} to {-against['centralized']['low']:.1f}, p" in answer
    assert page.tags.index("h1") < page.tags.index("figure") < page.tags.index("h2")


def test_every_figure_has_a_caption_with_n_and_the_command(study: Path, page: Page) -> None:
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", (study / "report.html").read_text(), flags=re.DOTALL)
    assert len(captions) == page.tags.count("figure") >= 20
    for caption in captions:
        assert "fedstart report whole" in caption
        assert re.search(r"\bn = [\d,]+ ", caption), caption


def test_figures_come_as_svg_and_pdf_with_readable_text(study: Path, page: Page) -> None:
    drawn = sorted(path.stem for path in (study / "figures").glob("*.svg"))
    assert drawn == sorted(path.stem for path in (study / "figures").glob("*.pdf"))
    assert set(drawn) <= set(page.ids)
    for path in (study / "figures").glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        width = float(root.attrib["width"].removesuffix("pt"))
        sizes = [
            float(size) * min(1.0, 328 / width)
            for element in root.iter("{http://www.w3.org/2000/svg}text")
            for size in re.findall(r"font(?:-size)?:[^;]*?\b([\d.]+)px", element.attrib["style"])
        ]
        assert sizes, path
        assert min(sizes) >= 10.9, path
    for path in (study / "figures").glob("*.pdf"):
        data = path.read_bytes()
        assert data.startswith(b"%PDF")
        assert b"CreationDate" not in data


def test_text_and_lines_take_the_colours_of_the_page(study: Path) -> None:
    text = (study / "report.html").read_text()
    inline = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert "var(--fg)" in inline
    assert not re.search(r"#(1b1f25|5d6571|d3d8de|fdfdfc|000000)", inline)
    assert "prefers-color-scheme: dark" in text


def test_tables_are_exact_in_csv_and_escaped_in_latex(study: Path) -> None:
    rows = list(csv.DictReader((study / "tables/summary.csv").read_text().splitlines()))
    summary = json.loads((study / "summary.json").read_text())["rows"]
    assert [(row["start"], row["partition"], float(row["mean"])) for row in rows] == [
        (row["start"], row["partition"], row["mean"]) for row in summary
    ]
    latex = (study / "tables/summary.tex").read_text()
    assert r"worst 10 \%" in latex
    assert latex.count(r" \\") == 1 + len(rows)
    markdown = (study / "tables/contrasts.md").read_text().splitlines()
    assert markdown[0].count("|") == markdown[2].count("|") == 11


def test_partitions_show_sizes_and_heterogeneity(study: Path) -> None:
    rows = list(csv.DictReader((study / "tables/partitions.csv").read_text().splitlines()))
    held = json.loads((study / "partitions.json").read_text())
    table = np.array(held["downstream"][0]["label_counts"])
    shares = table / table.sum(1, keepdims=True)
    distances = [0.5 * abs(share - table.sum(0) / table.sum()).sum() for share in shares]
    assert float(rows[1]["heterogeneity"]) == pytest.approx(np.average(distances, weights=table.sum(1)))
    assert int(rows[1]["smallest"]) == table.sum(1).min()
    assert len(rows) == 1 + 2 * 3


def test_the_same_directory_gives_the_same_bytes(tmp_path: Path) -> None:
    directory = small(tmp_path / "one", tasks=2)
    build(directory)
    first = files(directory)
    shutil.copytree(directory, tmp_path / "two" / "one")
    build(tmp_path / "two" / "one")
    build(directory)
    assert files(directory) == first == files(tmp_path / "two" / "one")
    assert len(first) > 20


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (words.size(0), "0 B"),
        (words.size(999), "999 B"),
        (words.size(1500), "1.5 kB"),
        (words.size(6.4e9), "6.4 GB"),
        (words.size(2.5e15), "2,500 TB"),
        (words.duration(4.24), "4.2 s"),
        (words.duration(119.9), "2 min 0 s"),
        (words.duration(7500), "2 h 5 min"),
        (words.signed(-0.04), "−0.0"),
        (words.between(-1.25, None), "–"),
        (words.probability(0.0004), "p < 0.001"),
        (words.probability(None), "no p"),
        (words.plural(1, "seed"), "1 seed"),
        (words.plural(1200, "client"), "1,200 clients"),
    ],
)
def test_numbers_in_words(shown: str, expected: str) -> None:
    assert shown == expected


def test_the_doubt_is_said_of_each_lead(tmp_path: Path) -> None:
    directory = small(tmp_path / "study", starts={"random": 40.0, "fedavg": 70.0, "coprefl": 70.0}, tasks=3, seeds=2)
    assert re.search(
        r"Undecided: (\w+) leads with .*, but its lead over (\w+), the next, .* may be chance; "
        r"its lead over random, [\d.]+ points \(.*\), is more than chance\.",
        words.answer(read(directory), ("fedavg", "iid")).replace("\N{NO-BREAK SPACE}", " "),
    )


def test_fairness_names_every_start_that_ties(tmp_path: Path) -> None:
    directory = small(tmp_path / "study")
    summary = json.loads((directory / "summary.json").read_text())
    for row in summary["rows"]:
        row["worst10"] = 51.2
    place(directory / "summary.json", summary)
    said = words.fairness(read(directory), ("fedavg", "iid"))
    assert "do best from random and fedavg (51.2" in said
    even = min(summary["rows"], key=lambda row: row["variance"])
    assert f"Clients differ least from {even['start']} (" in said
