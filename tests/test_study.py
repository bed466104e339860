"""Studies: what a file may say, and cells that can be killed, split over processes, reused and compared."""

from __future__ import annotations

import json
import random
import tomllib
from itertools import combinations
from pathlib import Path
from typing import Any

import filelock
import pytest
import tomli_w

from fedstart import study, tree
from fedstart.data.tasks import load_partition
from fedstart.starts import Start
from fedstart.study import Study
from fedstart.study.cells import Material, plan_cells
from study_files import results, run_and_kill

TABLES: dict[str, Any] = {
    "name": "small",
    "seeds": [0, 1],
    "data": {"source": "digits"},
    "model": {"name": "mlp", "settings": {"hidden": [8]}},
    "pretraining": {
        "held_out": 4,
        "clients": 8,
        "partition": {"name": "dirichlet", "alpha": 0.5},
        "withheld": 0.05,
        "plan": {"rounds": 4, "cohort": 3, "local_steps": 3, "lr": 0.1},
    },
    "downstream": {
        "tasks": 2,
        "classes_per_task": 3,
        "clients": 4,
        "partitions": [{"name": "dirichlet", "alpha": 0.5}],
        "plan": {"rounds": 3, "local_epochs": 1, "lr": 0.1},
    },
    "starts": [
        {"method": "random"},
        {"method": "centralized", "plan": {"rounds": 2}},
        {"method": "coprefl", "settings": {"meta_lr": 0.01}},
    ],
    "algorithms": [{"method": "fedavg"}],
    "scales": {
        "tiny": {"seeds": [5], "downstream": {"tasks": 1}, "starts": {"coprefl": {"settings": {"balance": 1.0}}}},
        "iid": {"pretraining": {"partition": {"name": "iid"}, "plan": {"local_epochs": 2}}},
    },
}
ROUNDS = 2 * (0 + 2 + 4) + 2 * 2 * 3 * 3


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "study.toml"
    path.write_text(tomli_w.dumps(TABLES))
    return path


@pytest.fixture(scope="module")
def finished(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, run without interruption in one process. Tests only read it."""
    return study.run(study.load(file), tmp_path_factory.mktemp("study") / "whole")


def cells(out: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted((out / "cells").iterdir())}


def place(cell: Path) -> dict[str, Any]:
    return json.loads((cell / "cell.json").read_text())


class Bar:
    """Progress that keeps count."""

    def __init__(self) -> None:
        self.all = self.done = 0
        self.texts: set[str] = set()

    def total(self, n: int) -> None:
        self.all = n

    def advance(self, text: str) -> None:
        self.done += 1
        self.texts.add(text)


# Reading


def test_every_preset_and_scale_loads() -> None:
    assert {"digits", "coprefl-cifar100"} <= study.presets().keys()
    for name, description in study.presets().items():
        assert description and study.load(name).name == name
    for scale in ("paper", "small", "smoke"):
        assert study.load("coprefl-cifar100", scale).scale == scale
    assert study.load("coprefl-cifar100").scale == "small"


def test_the_paper_scale_is_the_published_setting() -> None:
    loaded = study.load("coprefl-cifar100", "paper")
    plan = {"rounds": 50, "local_epochs": 5, "batch_size": 32, "lr": 0.001}
    assert loaded.model.name == "resnet18" and loaded.model.settings["norm"] == "group"
    assert loaded.pretraining.plan == {**plan, "cohort": 20, "query_fraction": 0.2}
    assert loaded.downstream.plan == plan
    assert (loaded.pretraining.held_out, loaded.pretraining.clients, loaded.pretraining.withheld) == (20, 100, 0.05)
    assert (loaded.downstream.tasks, loaded.downstream.classes_per_task, loaded.downstream.clients) == (10, 5, 10)
    settings = {start.name: (start.settings, start.plan) for start in loaded.starts}
    assert settings["coprefl"] == ({"balance": 0.5, "meta_lr": 0.001}, {})
    assert settings["centralized"] == ({}, {"rounds": 50, "local_epochs": 1, "batch_size": 64})


def test_scale_and_overrides_are_merged_deep(file: Path) -> None:
    words = ["downstream.plan.rounds=7", "starts.coprefl.settings.meta_lr=0.5", "data.label=fine", "seeds=[3, 4]"]
    loaded = study.load(file, "tiny", words)
    assert (loaded.scale, loaded.seeds, loaded.downstream.tasks) == ("tiny", [3, 4], 1)
    assert loaded.downstream.plan == {"rounds": 7, "local_epochs": 1, "lr": 0.1}
    assert loaded.starts[2].settings == {"balance": 1.0, "meta_lr": 0.5}
    assert loaded.starts[1].plan == {"rounds": 2}
    assert loaded.data.label == "fine"


def test_what_is_replaced_takes_its_settings_along(file: Path) -> None:
    loaded = study.load(
        file, "iid", ["model.name=cnn3x3", "starts.coprefl.method=fedavg", "pretraining.plan.cohort=none"]
    )
    assert loaded.pretraining.partition == {"name": "iid"}
    assert loaded.pretraining.plan == {"rounds": 4, "local_epochs": 2, "lr": 0.1}
    assert loaded.model.settings == {}
    assert (loaded.starts[2].method, loaded.starts[2].name, loaded.starts[2].settings) == ("fedavg", "fedavg", {})
    both = study.load(file, None, ["model.settings.hidden=[4, 4]", 'model.name="mlp"'])
    assert both.model.settings == {"hidden": [4, 4]}


def test_an_entrys_plan_may_change_the_kind_of_local_work(file: Path) -> None:
    loaded = study.load(file, None, ["starts.centralized.plan={rounds=1, local_epochs=2}"])
    assert loaded.starts[1].plan == {"rounds": 1, "local_epochs": 2}


def test_a_resolved_study_loads_as_itself(file: Path, tmp_path: Path) -> None:
    for loaded in (study.load(file), study.load(file, "tiny"), study.load("coprefl-cifar100")):
        (tmp_path / "study.toml").write_text(tomli_w.dumps(loaded.tables()))
        assert study.load(tmp_path / "study.toml") == loaded


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pretraining.plan.lr=-1", r"study\.toml \[pretraining\.plan\] lr: .*greater than 0 \(given: -1\)"),
        ("pretraining.plan.round=3", r"\[pretraining\.plan\]: unknown setting 'round'; did you mean 'rounds'"),
        ("pretraining.plan.seed=3", r"\[pretraining\.plan\] seed: not allowed here"),
        ("pretraining.plan.local_steps=none", r"\[pretraining\.plan\]: .*exactly one of local_steps and local_epochs"),
        ("downstream.plan.rounds=1.5", r"\[downstream\.plan\] rounds: .*integer"),
        ("downstream.plan.lr=nan", r"\[downstream\.plan\] lr: .*\(given: nan\)"),
        ("downstream.classes_per_task=1", r"\[downstream\] classes_per_task: .*greater than or equal to 2"),
        ("downstream.test_fraction=1", r"\[downstream\] test_fraction: .*less than 1"),
        ("downstream.partitions=[]", r"\[downstream\] partitions: .*at least 1 item"),
        ('downstream.partitions=[{name="dirichlt"}]', r"\[\[downstream\.partitions\]\] name: unknown .*'dirichlet'"),
        ('downstream.partitions=[{name="iid"}, {name="iid"}]', r"partitions\]\]: 'iid' is there twice"),
        ('downstream.partitions=[{name="dirichlet", alpha=0}]', r"partitions\]\] alpha: .*greater than 0"),
        ("pretraining.partition.name=none", r"\[pretraining\.partition\] name: Field required .*dirichlet"),
        ("pretraining.partition.alpha=x", r"\[pretraining\.partition\] alpha: .*\(given: 'x'\)"),
        ("pretraining.held_out=0", r"\[pretraining\] held_out"),
        ("pretraining=3", r"\[pretraining\]: this must be a table, got 3"),
        ("downstrem.tasks=3", r"unknown setting 'downstrem'; did you mean 'downstream'"),
        ("data.sauce=digits", r"\[data\]: unknown setting 'sauce'; did you mean 'source'"),
        ("model.name=resnet19", r"\[model\] name: unknown model 'resnet19'; did you mean 'resnet18'"),
        ("model.settings.hiden=[1]", r"\[model\.settings\]: unknown setting 'hiden'; did you mean 'hidden'"),
        ("starts.coprefl.settings.balance=2", r"\[\[starts\]\] coprefl settings balance: .*less than or equal to 1"),
        ("starts.coprefl.plan.lr=0", r"\[\[starts\]\] coprefl plan lr: .*greater than 0"),
        ("starts.copreffl.plan.lr=1", r"unknown entry 'copreffl'; did you mean 'coprefl'"),
        ("starts.coprefl.name=random", r"\[\[starts\]\]: 'random' is there twice"),
        ('starts=[{method="coprefll"}]', r"\[\[starts\]\] coprefll method: unknown method .*'coprefl'"),
        ('starts=[{name="x"}]', r"\[\[starts\]\] number 1 method: Field required"),
        ('algorithms=[{method="random"}]', r"\[\[algorithms\]\] random method: unknown method 'random'"),
        ("seeds=[]", r"study\.toml seeds: .*at least 1 item"),
        ("seeds=[-1]", r"study\.toml seeds\.0: .*greater than or equal to 0"),
        ("name=a/b", r"study\.toml name: "),
        ("data.source=[1", r"setting 'data\.source=\[1': not a TOML value"),
        ("rounds", r"setting 'rounds': write path\.to\.key=value"),
        ("data..source=1", r"write path\.to\.key=value"),
    ],
)
def test_a_wrong_study_is_named_in_one_line(file: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        study.load(file, None, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "missing", ["name", "seeds", "data", "model", "pretraining", "downstream", "starts", "algorithms"]
)
def test_a_missing_table_is_named(tmp_path: Path, missing: str) -> None:
    (tmp_path / "s.toml").write_text(tomli_w.dumps({key: value for key, value in TABLES.items() if key != missing}))
    with pytest.raises(ValueError, match=rf"s\.toml {missing}: Field required$"):
        study.load(tmp_path / "s.toml")


def test_what_cannot_be_read_is_named(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown study 'digit'; did you mean 'digits'.*or the path of a TOML file"):
        study.load("digit")
    with pytest.raises(ValueError, match=r"none\.toml: cannot be read: no such file"):
        study.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = \n")
    with pytest.raises(ValueError, match=r"bad\.toml: not valid TOML"):
        study.load(tmp_path / "bad.toml")
    with pytest.raises(ValueError, match=r"unknown scale 'tinny'; did you mean 'tiny'"):
        study.load(file, "tinny")


# Running


def test_a_study_leaves_what_it_says(file: Path, finished: Path) -> None:
    assert tomllib.loads((finished / "study.toml").read_text()) == study.load(file).tables()
    summary = json.loads((finished / "summary.json").read_text())
    assert (summary["format"], summary["study"], summary["scale"], summary["cells"]) == (1, "small", "", 18)
    assert [(row["start"], row["n"], row["tasks"], row["seeds"]) for row in summary["rows"]] == [
        (start, 4, 2, 2) for start in ("random", "centralized", "coprefl")
    ]
    assert len(summary["contrasts"]) == 3 and summary["failures"] == [] == study.failures(finished)
    assert summary["cost"]["random"]["pretraining"] == dict.fromkeys(
        ("examples", "exchanges", "bytes_down", "bytes_up", "backward"), 0
    )
    assert summary["cost"]["coprefl"]["pretraining"]["exchanges"] == 8
    assert summary["cost"]["coprefl"]["downstream"]["exchanges"] == 3
    holdings = json.loads((finished / "partitions.json").read_text())
    pretraining, first = holdings["pretraining"][0], holdings["downstream"][0]
    assert len(pretraining["label_counts"]) == 8 and len(pretraining["class_names"]) == 6
    assert [sum(client) for client in first["label_counts"]] == first["sizes"]["train"]
    assert 0 < pretraining["heterogeneity"] < 1
    assert {place(cell)["kind"] for cell in cells(finished).values()} == {"pretrain", "downstream"}
    assert len(json.loads((finished / "timing.json").read_text())["cells"]) == 18


def test_a_study_saves_who_holds_what(file: Path, finished: Path) -> None:
    material = Material(study.load(file))
    kept = {path.stem: load_partition(material.examples, path) for path in (finished / "partitions").iterdir()}
    assert len(kept) == 2 * (1 + 2)
    assert kept["pretraining-s1"].fingerprint == material.pretraining(1).fingerprint
    task = material.tasks("dirichlet(0.5)", 0)[1]
    assert kept["downstream-p0-t1-s0"].fingerprint == task.fingerprint


def test_every_start_meets_the_same_tasks_batches_and_head(finished: Path) -> None:
    runs: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for cell in cells(finished).values():
        where = place(cell)
        if where["kind"] == "downstream":
            record = json.loads((cell / "run.json").read_text())
            runs.setdefault((where["seed"], where["task"]), []).append(record)
    plans = set()
    for group in runs.values():
        assert len(group) == 3
        assert len({json.dumps([run["fingerprints"], run["settings"]["plan"]]) for run in group}) == 1
        plans.add(group[0]["settings"]["plan"]["seed"])
    assert len(plans) == 4
    material = Material(Study(**tomllib.loads((finished / "study.toml").read_text())))
    starts = [
        Start.load(cell / "start").weights for key, cell in cells(finished).items() if "s0" in key.split("-")[2:3]
    ]
    assert len(starts) == 3 and len({tree.fingerprint(weights) for weights in starts}) == 3
    moved = [material.transfer("random", weights, 3, 1, 0) for weights in starts]
    for first, second in combinations(moved, 2):
        assert all(first[name].equal(second[name]) for name in material.model("random", 3).head)


def test_one_seed_one_result(file: Path, finished: Path, tmp_path: Path) -> None:
    again = study.run(study.load(file), tmp_path, threads=2)
    assert results(again) == results(finished)
    coprefl = [cell for key, cell in cells(finished).items() if key.startswith("pretrain-coprefl")]
    first, second = (Start.load(cell / "start").weights for cell in coprefl)
    assert tree.fingerprint(first) != tree.fingerprint(second)


def test_processes_change_no_bit(file: Path, finished: Path, tmp_path: Path) -> None:
    bar = Bar()
    study.run(study.load(file), tmp_path, jobs=2, progress=bar)
    assert results(tmp_path) == results(finished)
    assert bar.all == bar.done == ROUNDS


def test_workers_follow_the_process_into_another_directory(
    file: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same worker processes serve both studies, and the paths are relative."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        study.run(study.load(file), "out", jobs=2)
        assert results(tmp_path / name / "out") == results(finished)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_study_ends_with_the_same_bytes(file: Path, finished: Path, tmp_path: Path, jobs: int) -> None:
    draws = random.Random(jobs)
    for target in sorted(draws.sample(range(2, ROUNDS - 4), 4 - jobs)):
        run_and_kill(file, tmp_path / "out", target, jobs, later=draws.random() * 0.02)
    assert not (tmp_path / "out" / "summary.json").exists()
    study.run(study.load(file), tmp_path / "out")
    assert results(tmp_path / "out") == results(finished)


def test_cells_that_did_not_change_are_kept(file: Path, finished: Path, tmp_path: Path) -> None:
    study.run(study.load(file), tmp_path)
    before = {key: (cell / "run.json").stat().st_mtime_ns for key, cell in cells(tmp_path).items()}
    bar = Bar()
    study.run(
        study.load(file, None, ["downstream.tasks=3", "starts.coprefl.settings.balance=1"]), tmp_path, progress=bar
    )
    after = {key: (cell / "run.json").stat().st_mtime_ns for key, cell in cells(tmp_path).items()}
    kept = {key for key in after if before.get(key) == after[key]}
    assert len(after) == 6 + 2 * 3 * 3 and len(kept) == 4 + 2 * 2 * 2
    assert not [key for key in kept if "coprefl" in key]
    assert len(list((tmp_path / "unused").iterdir())) == 2 + 2 * 2
    assert bar.all == bar.done
    study.run(study.load(file), tmp_path)
    assert (tmp_path / "summary.json").read_bytes() == (finished / "summary.json").read_bytes()
    assert {key: (cell / "run.json").stat().st_mtime_ns for key, cell in cells(tmp_path).items()} == before


def test_other_pretraining_settings_leave_runs_from_scratch_alone(file: Path) -> None:
    first, second = (plan_cells(Material(study.load(file, None, [f"pretraining.plan.lr={lr}"]))) for lr in (0.1, 0.2))
    same = {cell.key for cell in first} & {cell.key for cell in second}
    assert {key.split("-")[0] for key in same} == {"random"} and len(same) == 4


def test_a_start_that_diverges_does_not_end_the_study(file: Path, tmp_path: Path) -> None:
    words = ["starts.coprefl.plan.lr=1e20", "starts.coprefl.plan.rounds=3", "seeds=[0]"]
    study.run(study.load(file, None, words), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [row["start"] for row in summary["rows"]] == ["random", "centralized"]
    assert [line.startswith("pretrain-coprefl-s0-") for line in study.failures(tmp_path)] == [True]
    assert "round 1" in study.failures(tmp_path)[0]
    failed = next(cell for key, cell in cells(tmp_path).items() if key.startswith("pretrain-coprefl"))
    assert json.loads((failed / "run.json").read_text())["status"] == "failed"
    assert len(cells(tmp_path)) == 3 + 2 * 2


def test_a_downstream_run_that_diverges_is_listed_by_either_way_of_running(file: Path, tmp_path: Path) -> None:
    words = ['algorithms=[{method="fedavg"}, {method="fedavg", name="wild", plan={lr=1e20}}]', "seeds=[0]"]
    for jobs in (1, 2):
        study.run(study.load(file, None, words), tmp_path / str(jobs), jobs=jobs)
    assert results(tmp_path / "1") == results(tmp_path / "2")
    assert len(study.failures(tmp_path / "1")) == 6
    assert {row["algorithm"] for row in json.loads((tmp_path / "1" / "summary.json").read_text())["rows"]} == {"fedavg"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pretraining.held_out=10", r"cannot hold out 10 of 10 classes"),
        ("downstream.classes_per_task=5", r"5 classes per task asked for \(allowed: 1 to 4\)"),
        ("pretraining.clients=900", r"too few for 900 clients"),
        ("downstream.clients=200", r"too few for 200 clients"),
        ("pretraining.plan.cohort=9", r"cohort = 9, but only 8 clients"),
        ("downstream.plan.cohort=5", r"fedavg: .*cohort = 5, but only 4 clients"),
        ("data.source=path:/nowhere", r"/nowhere"),
        ('starts=[{method="checkpoint", settings={path="none.pt"}}]', r"none\.pt: no such file"),
    ],
)
def test_what_does_not_fit_the_data_ends_before_any_work(
    file: Path, tmp_path: Path, override: str, message: str
) -> None:
    loaded = study.load(file, None, [override])
    with pytest.raises(ValueError, match=message) as caught:
        study.run(loaded, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_directory_of_something_else_is_refused(file: Path, tmp_path: Path) -> None:
    loaded = study.load(file, "tiny")
    with pytest.raises(ValueError, match="jobs must be at least 1"):
        study.run(loaded, tmp_path / "jobs", jobs=0)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds no study, but 'thesis\.tex'"):
        study.run(loaded, tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]
    (tmp_path / "study.toml").write_text('name = "other"\n')
    with pytest.raises(ValueError, match=r"holds the study 'other', not 'small'"):
        study.run(loaded, tmp_path)
    (tmp_path / "busy").mkdir()
    with (
        filelock.FileLock(tmp_path / "busy" / ".lock"),
        pytest.raises(ValueError, match="another process is running a study there"),
    ):
        study.run(loaded, tmp_path / "busy")
    with pytest.raises(OSError, match=r"cannot make .*thesis\.tex"):
        study.run(loaded, tmp_path / "thesis" / "thesis.tex")


def test_a_checkpoint_of_an_earlier_study_is_a_start(file: Path, finished: Path, tmp_path: Path) -> None:
    made = next(cell for key, cell in cells(finished).items() if key.startswith("pretrain-coprefl-s0"))
    starts = f'starts=[{{method="random"}}, {{method="checkpoint", settings={{path="{made}/start"}}}}]'
    study.run(study.load(file, None, [starts, "seeds=[0]"]), tmp_path)
    rows = json.loads((tmp_path / "summary.json").read_text())["rows"]
    assert [row["start"] for row in rows] == ["random", "checkpoint"]
    # The same weights, so the same downstream results as from the start itself.
    scores = {
        key: [
            (cell / "clients.parquet").read_bytes()
            for name, cell in cells(out).items()
            if name.startswith(f"{key}-") and name.split("-")[-2] == "s0"
        ]
        for key, out in (("checkpoint", tmp_path), ("coprefl", finished))
    }
    assert len(scores["coprefl"]) == 2 and scores["checkpoint"] == scores["coprefl"]


def test_progress_counts_every_round_also_those_found_done(file: Path, tmp_path: Path) -> None:
    loaded = study.load(file, "tiny")
    for _ in range(2):
        bar = Bar()
        study.run(loaded, tmp_path, progress=bar)
        assert bar.all == bar.done == 6 + 9
    assert "coprefl, fedavg, dirichlet(0.5), task 0, seed 5" in bar.texts
