"""The report of what is small, unfinished, broken, hostile or large."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from fabricated import make_counts, place, read_page, small, write_run
from fedstart import keys
from fedstart.report import build
from fedstart.scores import Scores
from fedstart.types import Counts


def test_names_are_shown_and_never_run(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> & $\\frac{a}{b}$ 你好 \x07_%"
    page = read_page(small(tmp_path / "study", starts={evil: 70.0, "random": 60.0}, name="<b>bold</b>", tasks=2))
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert "<b>bold</b>" in page.words
    assert "<script>alert(1)</script> & $\\frac{a}{b}$ 你好" in page.words
    latex = (tmp_path / "study/tables/summary.tex").read_text()
    assert r"\textbackslash{}frac\{a\}\{b\}\$" in latex


def test_one_task_and_one_seed_are_not_decided(tmp_path: Path) -> None:
    page = read_page(small(tmp_path / "study"))
    assert "Undecided: fedavg leads with" in page.words
    assert "rests on a single run" in page.words
    assert "One task and one seed" in page.words


def test_a_lead_that_may_be_chance_is_not_decided(tmp_path: Path) -> None:
    directory = small(tmp_path / "study", starts={"random": 70.0, "fedavg": 70.0}, tasks=2, seeds=2)
    page = read_page(directory)
    contrast = json.loads((directory / "summary.json").read_text())["contrasts"][0]
    assert contrast["low"] < 0 < contrast["high"]
    assert "Undecided:" in page.words
    assert "may be chance" in page.words


def test_a_single_start_is_reported_alone(tmp_path: Path) -> None:
    page = read_page(small(tmp_path / "study", starts={"coprefl": 70.0}))
    assert "Only coprefl was tested" in page.words
    assert not list((tmp_path / "study/figures").glob("differences*"))


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    directory = small(tmp_path / "study", tasks=2)
    before = json.loads((directory / "summary.json").read_text())
    for name in ("partitions.json", "timing.json", "summary.json"):
        (directory / name).unlink()
    failed, torn, broken = sorted((directory / "cells").iterdir())[:3]
    place(failed / "run.json", {"status": "failed", "error": "round 3: the loss is NaN"})
    lines = (torn / "rounds.jsonl").read_text()
    (torn / "rounds.jsonl").write_text(lines[: len(lines) // 2])
    (broken / "clients.parquet").write_bytes(b"nonsense")
    page = read_page(directory)
    assert "round 3: the loss is NaN" in page.words
    assert f"{broken.name} cannot be read" in page.words
    assert "no partitions.json" in page.words
    assert "computed from the cells" in page.words
    rows = {row["start"]: row for row in csv.DictReader((directory / "tables/summary.csv").read_text().splitlines())}
    assert (rows["random"]["n"], rows["fedavg"]["n"]) == ("1", "1")
    assert before["rows"][0]["n"] == 2


def test_a_start_without_any_finished_run_is_named(tmp_path: Path) -> None:
    directory = small(tmp_path / "study", starts={"random": 60.0})
    with (directory / "study.toml").open("a") as stream:
        stream.write("\n[[starts]]\nmethod = 'coprefl'\nname = 'lost'\n")
    assert "No downstream run from lost has finished." in read_page(directory).words


def test_the_start_without_pretraining_is_known_by_its_method(tmp_path: Path) -> None:
    directory = small(tmp_path / "study", starts={"fedavg": 72.0, "coprefl": 76.0, "from zero": 60.0}, tasks=3)
    text = (directory / "study.toml").read_text().replace("method = 'from'", "method = 'random'")
    (directory / "study.toml").write_text(text)
    assert "above from zero" in read_page(directory).words


def test_nothing_finished_yet(tmp_path: Path) -> None:
    place(tmp_path / "summary.json", {"format": 1, "study": "empty", "rows": [], "contrasts": []})
    page = read_page(tmp_path)
    assert "No downstream run has finished" in page.words
    assert "figure" not in page.tags


def test_a_run_directory_has_a_small_report(tmp_path: Path) -> None:
    counts = make_counts(70.0, 8.0, 0, 0, 0, 0)
    directory = tmp_path / "run"
    directory.mkdir()
    write_run(directory, counts, np.linspace(20, 70, 300))
    page = read_page(directory)
    assert f"Mean accuracy {Scores(counts).mean:.1f} % over 10 clients" in page.words
    assert {"rounds", "loss", "clients", "spread"} <= set(page.ids)
    assert page.loaded == []


def test_a_pretraining_run_without_clients_has_a_report(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    write_run(directory, make_counts(70.0, 8.0, 0, 0, 0, 0), np.linspace(20, 70, 5))
    (directory / "clients.parquet").unlink()
    lines = [json.loads(line) for line in (directory / "rounds.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({**line, "accuracy": None}) + "\n" for line in lines)
    (directory / "rounds.jsonl").write_text(text)
    page = read_page(directory)
    assert "5 rounds of training; no client was evaluated." in page.words
    assert "loss" in page.ids
    assert "rounds" not in page.ids


def test_many_clients_stay_small_and_are_said_to_be_a_sample(tmp_path: Path) -> None:
    directory = small(tmp_path / "study", starts={"random": 60.0, "fedavg": 70.0})
    for number, cell in enumerate(sorted((directory / "cells").iterdir())):
        draw = keys.generator(0, "test-report-many", number)
        total = np.full(30_000, 20)
        write_run(cell, Counts(draw.binomial(20, 0.6 + 0.1 * number, 30_000), total, total * 0.5), np.array([50.0]))
    page = read_page(directory)
    assert "1,500 of 30,000 clients, drawn at random" in page.words
    assert (directory / "report.html").stat().st_size < 1_500_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", "hello", "neither a study nor a run directory"),
        ("summary.json", "{", r"summary.json: not readable as JSON"),
        ("summary.json", "[]", "a JSON object is needed, got list"),
        ("summary.json", '{"rows": [{"start": "a"}]}', "rows entry 0 lacks 'algorithm'"),
    ],
)
def test_what_is_no_study_is_refused_in_one_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        build(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such directory"):
        build(tmp_path / "nowhere")
