"""Settings chosen by a study of candidates: on tasks of their own, or as the paper does on those reported on."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from scipy import stats

from fedstart import study
from fedstart.data import sources
from fedstart.data.tasks import load_partition
from fedstart.engines.execution import Execution
from fedstart.files import write_json
from fedstart.runs import RunDirectory
from fedstart.study import choosing, selection
from fedstart.study.cells import Material
from fedstart.types import Counts
from study_files import results, run_and_kill

TABLES: dict[str, Any] = {
    "name": "chosen",
    "seeds": [3, 4],
    "data": {"source": "digits"},
    "model": {"name": "mlp", "settings": {"hidden": [6]}},
    "pretraining": {
        "held_out": 4,
        "clients": 5,
        "partition": {"name": "iid"},
        "plan": {"rounds": 2, "cohort": 3, "local_steps": 3, "lr": 0.1},
    },
    "downstream": {
        "tasks": 1,
        "classes_per_task": 3,
        "clients": 3,
        "partitions": [{"name": "iid"}],
        "plan": {"rounds": 2, "local_epochs": 1, "lr": 0.1},
    },
    "starts": [
        {"method": "random"},
        {"method": "coprefl", "settings": {"balance": 0.3}, "choose": {"settings.balance": [0.25, 1.0]}},
        {"method": "fedavg", "choose": {"plan.lr": [0.05, 0.1]}},
    ],
    "algorithms": [{"method": "fedavg"}],
    "selection": {"classes": 2, "tasks": 2},
    "execution": {**asdict(Execution()), "together": 3},
}
ROUNDS = 4 * 2 + 4 * 2 * 2 + 2 * (2 * 2 + 3 * 2)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "study.toml"
    path.write_text(tomli_w.dumps(TABLES))
    return path


@pytest.fixture(scope="module")
def finished(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, run without interruption in one process. Tests only read it."""
    return study.run(study.load(file), tmp_path_factory.mktemp("study") / "whole")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def labels(partitions: Path) -> set[int]:
    """The classes of all rows that any client of the saved federations holds."""
    files = list(partitions.glob("*.parquet"))
    assert files
    federations = [load_partition(sources.load("digits"), path) for path in files]
    return {
        int(label)
        for federation in federations
        for part in federation.parts.values()
        for label in federation.examples.labels[part.values]
    }


class Bar:
    """Progress that keeps count."""

    def __init__(self) -> None:
        self.totals: list[int] = []
        self.done = 0

    def total(self, n: int) -> None:
        self.totals.append(n)

    def advance(self, text: str) -> None:
        self.done += 1


# The grid


def test_candidates_are_the_product_and_are_named_after_it(file: Path) -> None:
    words = ['starts.fedavg.choose={"plan.lr"=[0.1, 0.2], "plan.local_epochs"=[1, 2]}']
    found = selection.candidates(study.load(file, None, words).starts[2])
    assert [candidate.entry.name for candidate in found] == [
        f"fedavg lr={lr}, local_epochs={epochs}" for lr in (0.1, 0.2) for epochs in (1, 2)
    ]
    assert found[2].changes == {"plan.lr": 0.2, "plan.local_epochs": 1}
    assert found[2].entry.plan == {"lr": 0.2, "local_epochs": 1} and found[2].entry.choose is None
    entry = study.load(file).starts[1]
    assert [candidate.entry.settings["balance"] for candidate in selection.candidates(entry)] == [0.25, 1.0]


def test_paths_of_one_last_step_are_told_apart() -> None:
    choose = {"plan.lr": [1], "settings.lr": [2], "pretraining.partition": [{"name": "iid"}]}
    entry = study.schema.Entry(method="m", name="m", choose=choose)
    (found,) = selection.candidates(entry)
    assert found.entry.name == 'm plan.lr=1, settings.lr=2, partition={"name": "iid"}'
    assert (found.entry.settings, found.entry.pretraining) == ({"lr": 2}, {"partition": {"name": "iid"}})


def test_what_is_set_later_is_not_chosen(file: Path) -> None:
    fixed = study.load(file, None, ["starts.coprefl.settings.balance=0.5", "starts.fedavg.plan.lr=0.5"])
    assert fixed.starts[1].choose is None and fixed.starts[1].settings == {"balance": 0.5}
    assert fixed.starts[2].choose is None and fixed.starts[2].plan == {"lr": 0.5}
    both = ['starts.fedavg.choose={"plan.batch_size"=[8]}', "starts.fedavg.plan.lr=0.5"]
    assert study.load(file, None, both[:1]).starts[2].choose == {"plan.lr": [0.05, 0.1], "plan.batch_size": [8]}
    other = study.load(file, None, ["starts.coprefl.method=fedprox", "starts.fedavg.choose=none"])
    assert not selection.wanted(other)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('starts.coprefl.choose={"settings.balanse"=[0.5]}', r"coprefl settings: unknown setting 'balanse'.*'balance'"),
        ('starts.coprefl.choose={"settings.balance"=[0.5, 2]}', r"coprefl balance=2 settings balance: .*less than"),
        ('starts.coprefl.choose={"settings.balance"=[]}', r"choose\.settings\.balance: .*at least 1 item"),
        (
            'starts.coprefl.choose={"settings.balance"=[0, 0.0]}',
            r"coprefl choose settings\.balance: 0\.0 is there twice",
        ),
        (
            'starts.coprefl.choose={"balance"=[0.5]}',
            r"coprefl choose 'balance': not a path into the entry \(allowed: set",
        ),
        ('starts.coprefl.choose={"name.x"=["a"]}', r"choose 'name\.x': not a path"),
        ('starts.coprefl.choose={"settings."=[1]}', r"choose 'settings\.': not a path"),
        (
            'algorithms=[{method="fedavg", choose={"plan.lr"=[1]}}]',
            r"\[\[algorithms\]\] fedavg choose: only \[\[starts",
        ),
        ("selection.rule=best", r"\[selection\] rule: .*'validation' or 'paper' \(given: 'best'\)"),
        ("selection.classes=1", r"\[selection\] classes: .*greater than or equal to 2"),
        ("selection.clases=3", r"\[selection\]: unknown setting 'clases'; did you mean 'classes'"),
        ("selection.seeds=[]", r"\[selection\] seeds: .*at least 1 item"),
    ],
)
def test_a_wrong_choice_is_named_in_one_line(file: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        study.load(file, None, [override])
    assert "\n" not in str(caught.value)


def test_a_choice_must_be_settled_before_anything_trains(file: Path) -> None:
    with pytest.raises(ValueError, match=r"\[\[starts\]\] coprefl choose: not settled"):
        Material(study.load(file))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("selection.classes=5", r"\[selection\] classes: 5 .* but 6 classes .* 6 of them .*\(allowed: 2 to 4\)"),
        ("pretraining.held_out=[0, 1, 2, 3, 4, 5, 6]", r"3 classes are pre-trained on.*\(allowed: none; give rule"),
        ("downstream.classes=seen", r"6 classes are pre-trained on, 0 of them in no downstream task"),
        ("pretraining.partition.minimum=150", r"\[selection\]: .*too few for 5 clients"),
    ],
)
def test_what_cannot_be_validated_ends_before_any_work(file: Path, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        study.run(study.load(file, None, [override]), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


# Running


def test_validation_leaves_every_downstream_class_alone(finished: Path) -> None:
    assert labels(finished / "partitions") == set(range(10))
    inner = finished / "selection"
    assert labels(inner / "partitions") == {0, 1, 2, 3, 4, 5}
    holdings = read(inner / "partitions.json")
    assert holdings["pretraining"][0]["class_names"] == ["0", "1", "2", "3"]
    assert [task["class_names"] for task in holdings["downstream"]] == [["4", "5"]] * 2
    held = tomllib.loads((inner / "study.toml").read_text())
    assert (held["name"], held["seeds"], held["downstream"]["tasks"]) == ("chosen-selection", [3], 2)
    assert len(list((inner / "cells").iterdir())) == 4 * (1 + 2)


def test_validation_takes_no_class_of_a_task_where_these_are_seen_ones(file: Path) -> None:
    loaded = study.load(file, None, ["downstream.classes=[1, 5, 8]"])
    assert selection.selecting(loaded, range(6), {1, 5, 8}).pretraining.held_out == [3, 4]
    assert selection.selecting(loaded, range(6), {1, 5, 8}).pretraining.classes == [0, 1, 2, 5]


def test_the_best_candidate_is_chosen(finished: Path) -> None:
    summary, inner = read(finished / "summary.json"), read(finished / "selection" / "summary.json")
    found = summary["selection"]
    assert read(finished / "selection.json") == found and list(found) == ["coprefl", "fedavg"]
    means = {row["start"]: row for row in inner["rows"]}
    assert list(means) == [
        *("coprefl balance=0.25", "coprefl balance=1.0"),
        *("fedavg lr=0.05", "fedavg lr=0.1"),
    ]
    for start, choice in found.items():
        own = [row for name, row in means.items() if name.startswith(start)]
        assert (choice["rule"], choice["score"]) == ("validation", "mean")
        for candidate, row in zip(choice["candidates"], own, strict=True):
            assert {key: candidate[key] for key in ("mean", "low", "high", "n")} == {
                key: pytest.approx(row[key]) for key in ("mean", "low", "high", "n")
            }
        best = max(choice["candidates"], key=lambda candidate: candidate["mean"])
        assert choice["chosen"] == best["changes"]


def test_what_was_chosen_is_what_runs(file: Path, finished: Path, tmp_path: Path) -> None:
    summary = read(finished / "summary.json")
    assert [row["start"] for row in summary["rows"]] == ["random", "coprefl", "fedavg"]
    assert tomllib.loads((finished / "study.toml").read_text()) == study.load(file).tables()
    chosen = summary["selection"]["coprefl"]["chosen"]["settings.balance"]
    plain = selection.settled(study.load(file), choosing.chosen(summary["selection"]))
    assert [entry.choose for entry in plain.starts] == [None] * 3
    assert (plain.starts[1].settings, plain.starts[1].name) == ({"balance": chosen}, "coprefl")
    again = study.run(plain, tmp_path)
    assert {**read(again / "summary.json"), "selection": summary["selection"]} == summary
    cells = {path.name: path.read_bytes() for path in (finished / "cells").rglob("clients.parquet")}
    assert cells == {path.name: path.read_bytes() for path in (again / "cells").rglob("clients.parquet")}
    assert not (again / "selection").exists() and not (again / "selection.json").exists()


def test_the_papers_rule_judges_by_the_downstream_tasks(file: Path, tmp_path: Path) -> None:
    loaded = study.load(file, None, ["selection.rule=paper", "starts.fedavg.choose=none", "seeds=[3]"])
    out = study.run(loaded, tmp_path)
    prints = [read(folder / "summary.json")["fingerprints"] for folder in (out, out / "selection")]
    assert prints[0] == prints[1]
    summary, inner = (read(folder / "summary.json") for folder in (out, out / "selection"))
    assert summary["selection"]["coprefl"]["rule"] == "paper"
    # The same tasks, so what is reported of the chosen one is the highest of the candidates' scores.
    reported = next(row["mean"] for row in summary["rows"] if row["start"] == "coprefl")
    assert reported == max(row["mean"] for row in inner["rows"])


def test_progress_counts_both_parts_and_a_second_run_does_nothing(file: Path, finished: Path, tmp_path: Path) -> None:
    before: dict[str, int] = {}
    for _ in range(2):
        bar = Bar()
        study.run(study.load(file), tmp_path, progress=bar)
        assert bar.totals == [ROUNDS, ROUNDS] and bar.done == ROUNDS
        assert results(tmp_path) == results(finished)
        after = {str(path): path.stat().st_mtime_ns for path in tmp_path.rglob("rounds.jsonl")}
        assert before in ({}, after)
        before = after


def test_a_study_killed_while_it_chooses_ends_with_the_same_bytes(file: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for target in (5, 30):
        run_and_kill(file, out, target)
    assert not (out / "summary.json").exists()
    study.run(study.load(file), out)
    assert results(out) == results(finished)


def test_a_candidate_that_diverges_is_not_chosen(file: Path, tmp_path: Path) -> None:
    words = ["seeds=[3]", "starts.coprefl.choose=none"]
    choose = 'starts.fedavg.choose={"plan.lr"=[1e25, 0.1]}'
    out = study.run(study.load(file, None, [*words, choose]), tmp_path / "one")
    found = read(out / "selection.json")["fedavg"]
    assert found["chosen"] == {"plan.lr": 0.1}
    assert found["candidates"][0] == {"changes": {"plan.lr": 1e25}, "mean": None, "low": None, "high": None, "n": 0}
    assert study.failures(out) == [] and len(study.failures(out / "selection")) == 1
    choose = 'starts.fedavg.choose={"plan.lr"=[1e25, 1e26]}'
    with pytest.raises(
        ValueError, match=r"\[\[starts\]\] fedavg choose: no candidate finished all its runs; see .*sel"
    ):
        study.run(study.load(file, None, [*words, choose]), tmp_path / "none")


def test_no_choice_any_more_takes_the_record_away(file: Path, tmp_path: Path) -> None:
    words = ["seeds=[3]", "starts.coprefl.choose=none"]
    study.run(study.load(file, None, words), tmp_path)
    assert (tmp_path / "selection.json").exists()
    study.run(study.load(file, None, [*words, "starts.fedavg.choose=none"]), tmp_path)
    assert not (tmp_path / "selection.json").exists()
    assert read(tmp_path / "summary.json")["selection"] == {}


def finished_cell(folder: Path, start: str, task: int, partition: str, *percents: int) -> None:
    """A finished downstream run in which the clients had these accuracies."""
    directory = RunDirectory(folder / "cells" / f"{start}-{partition}-{task}")
    directory.open({})
    place = {"kind": "downstream", "start": start, "algorithm": "fedavg", "partition": partition}
    write_json(directory.path / "cell.json", {**place, "task": task, "seed": 0})
    total = np.full(len(percents), 100)
    directory.write_clients({"test": Counts(np.array(percents), total, 0.5 * total)})
    directory.finish()


def test_the_choice_by_hand(file: Path, tmp_path: Path) -> None:
    """Means over partitions first, then over (task, seed). One without all runs is not chosen, nor a later equal."""
    words = ['starts.fedavg.choose={"plan.lr"=[0.1, 0.2, 0.3, 0.4]}', "starts.coprefl.choose=none"]
    accuracies = {0.1: [(50, 60), (70, 90)], 0.2: [(60, 80), (80, 90)], 0.3: [(70, 70), (70, 100)], 0.4: [(90, 99)]}
    for lr, tasks in accuracies.items():
        for task, (one, other) in enumerate(tasks):
            finished_cell(tmp_path, f"fedavg lr={lr}", task, "iid", one - 10, one + 10)
            finished_cell(tmp_path, f"fedavg lr={lr}", task, "dirichlet(0.5)", other)
    found = choosing.record(study.load(file, None, words), tmp_path)
    assert list(found) == ["fedavg"] and found["fedavg"]["chosen"] == {"plan.lr": 0.2}
    numbers = [(row["mean"], row["n"]) for row in found["fedavg"]["candidates"]]
    assert numbers == [(67.5, 2), (77.5, 2), (77.5, 2), (94.5, 1)]
    limits = stats.ttest_1samp([70, 85], 0).confidence_interval(0.95)
    second = found["fedavg"]["candidates"][1]
    assert (second["low"], second["high"]) == pytest.approx((limits.low, limits.high))
    assert found["fedavg"]["candidates"][3]["low"] is None


DOMAIN = ("data.source=synthetic:examples=3000", "pretraining.held_out=none", "seeds=[3]")


def test_a_domain_is_validated_on_another_and_its_rows_are_not_used(file: Path, tmp_path: Path) -> None:
    words = [*DOMAIN, 'pretraining.left_out={column="group", values=[4]}', "data.columns=['group']"]
    out = study.run(study.load(file, None, words), tmp_path)
    examples = sources.load("synthetic:examples=3000", columns=["group"])

    def groups(folder: Path, kind: str) -> set[int]:
        federations = [load_partition(examples, path) for path in (folder / "partitions").glob(f"{kind}*.parquet")]
        rows = [part.values for federation in federations for part in federation.parts.values()]
        return set(examples.columns["group"][np.concatenate(rows)].tolist())

    every = set(examples.columns["group"].tolist())
    assert groups(out, "downstream") == {4} and groups(out, "pretraining") == every - {4}
    assert len(groups(out / "selection", "downstream")) == 1 and 4 not in groups(out / "selection", "downstream")
    assert groups(out / "selection", "pretraining") == every - {4} - groups(out / "selection", "downstream")
    assert read(out / "summary.json")["selection"]["coprefl"]["rule"] == "validation"


def test_domains_that_are_each_left_out_cannot_be_validated(file: Path, tmp_path: Path) -> None:
    loaded = study.load(file, None, [*DOMAIN, 'pretraining.left_out={column="group"}'])
    with pytest.raises(ValueError, match=r"\[selection\] rule: 'validation' needs two values of 'group' .*there are 0"):
        study.run(loaded, tmp_path)
    assert list(tmp_path.iterdir()) == []
