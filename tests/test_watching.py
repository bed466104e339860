"""Probes of weights on the way: when they look, at what, what stays of it, and the means over tasks and seeds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomli_w
from scipy import stats

from fedstart import checkpoints, study, tree
from fedstart.algorithms.scaffold import Scaffold
from fedstart.data.federation import Federation
from fedstart.engines.execution import Execution
from fedstart.engines.local import LocalEngine
from fedstart.models import Model
from fedstart.probes import Subject
from fedstart.probes.dead_filters import DeadFilters
from fedstart.probes.drift import Drift
from fedstart.probes.movement import Movement
from fedstart.runs import RunDirectory, execute
from fedstart.study import watching
from fedstart.study.cells import Cell, Material, plan_cells
from fedstart.training import train
from fedstart.types import Plan, Weights

TABLES: dict[str, Any] = {
    "name": "watched",
    "seeds": [0, 1],
    "data": {"source": "digits"},
    "model": {"name": "mlp", "settings": {"hidden": [6]}},
    "pretraining": {"held_out": 4, "clients": 3, "partition": {"name": "iid"}, "plan": {"rounds": 1, "local_steps": 1}},
    "downstream": {
        "tasks": 2,
        "classes_per_task": 3,
        "clients": 3,
        "partitions": [{"name": "dirichlet", "alpha": 0.5}],
        "plan": {"rounds": 5, "local_steps": 2, "lr": 0.1},
        "watch": {"at": [0.6, 0.0, 0.25], "probes": {"movement": {}, "drift": {}, "dead_filters": {"examples": 30}}},
    },
    "starts": [{"method": "random"}],
    "algorithms": [{"method": "fedavg"}, {"method": "scaffold", "plan": {"rounds": 2}}],
    "execution": asdict(Execution()),
}
KEPT = {"fedavg": [0, 1, 3], "scaffold": [0, 1]}
"""0.6, 0 and 0.25 of 5 rounds and of 2: 3, 0 and 1, and 1, 0 and 0."""


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    path = tmp_path_factory.mktemp("files") / "study.toml"
    path.write_text(tomli_w.dumps(TABLES))
    return Material(study.load(path))


@pytest.fixture(scope="module")
def finished(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study.run(material.study, tmp_path_factory.mktemp("study") / "out")


def found_in(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "probes.json").read_text())["found"]


# --- when ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rounds", "at", "expected"),
    [
        (10, (0.75, 0.0, 0.1), (0, 1, 8)),
        (4, (0.0, 0.1, 0.25, 0.5, 0.75), (0, 1, 2, 3)),
        (3, (0.1, 0.2, 0.3), (0, 1)),
        # What would be the last round is not on the way.
        (4, (0.5, 0.95), (2,)),
        (1, (0.0, 0.9), (0,)),
        (0, (0.0, 0.5), ()),
        (5, (), ()),
    ],
)
def test_shares_of_the_rounds_by_hand(rounds: int, at: tuple[float, ...], expected: tuple[int, ...]) -> None:
    run: Any = SimpleNamespace(plan=Plan(rounds=rounds, local_steps=1), watched_at=at)
    assert watching.rounds(run) == expected


@pytest.mark.parametrize("every", [0.0, 1e9])
def test_a_run_keeps_the_weights_that_it_is_asked_for(
    tmp_path: Path, model: Model, federation: Federation, plan: Plan, weights: Weights, every: float
) -> None:
    with LocalEngine(1, Execution()) as engine:
        rounds = {r.number: r.state for r in train(Scaffold(), model, federation, plan, weights, engine)}
        directory = RunDirectory(tmp_path / "kept")
        directory.open({})
        execute(directory, Scaffold(), model, federation, plan, weights, engine, every=every, keep=(2, 7))
        bare = RunDirectory(tmp_path / "bare")
        bare.open({})
        execute(bare, Scaffold(), model, federation, plan, weights, engine, every=every)
    kept = checkpoints.read(directory.kept(2))
    assert kept.number == 2 and kept.memories == {} and kept.state.memory == {}
    assert rounds[2].memory and tree.fingerprint(kept.state.weights) == tree.fingerprint(rounds[2].weights)
    files = [{path.name for path in folder.path.iterdir()} for folder in (directory, bare)]
    assert files[0] - files[1] == {directory.kept(2).name} and files[1] < files[0]
    for name in ("checkpoint.safetensors", "rounds.jsonl"):
        assert (directory.path / name).read_bytes() == (bare.path / name).read_bytes()


# --- what ------------------------------------------------------------------------------------------------------------


def test_a_study_s_probes_look_at_the_weights_of_these_rounds(finished: Path, material: Material) -> None:
    probes = {"movement": Movement(), "drift": Drift(), "dead_filters": DeadFilters(examples=30)}
    tasks = [cell for cell in plan_cells(material) if cell.kind == "downstream" and cell.seed == 1]
    assert len(tasks) == 2 * 2
    for cell in tasks:
        run = material.downstream_run(cell.start, cell.algorithm, cell.partition, cell.task, 1, cell.begin)
        begin = material.transfer("random", material.begin("random", 1), 3, cell.task, 1)
        with LocalEngine(1, Execution()) as engine:
            rounds = train(run.method.method, run.model, run.federation, run.plan, begin, engine)
            weights = {0: begin} | {r.number: tree.clone(r.state.weights) for r in rounds}
            expected = []
            for number in KEPT[cell.algorithm]:
                others = {"start": begin, "end": weights[run.plan.rounds]}
                subject = Subject(run.model, run.federation, weights[number], run.plan, engine, others)
                for name, probe in probes.items():
                    measured = probe.measure(subject)
                    rows = json.loads(json.dumps(measured.rows))
                    expected.append({"round": number, "probe": name, "values": dict(measured.values), "rows": rows})
        held = json.loads((finished / "cells" / cell.key / "probes.json").read_text())
        assert held == {"format": 1, "rounds": run.plan.rounds, "found": expected}


def test_at_the_start_nothing_has_moved(finished: Path) -> None:
    looks = [look for folder in sorted(finished.glob("cells/random-*")) for look in found_in(folder)]
    moved = {look["round"]: look["values"]["from_start"] for look in looks if look["probe"] == "movement"}
    assert moved[0] == 0 and min(moved[1], moved[3]) > 0


def test_weights_that_were_kept_are_removed(finished: Path) -> None:
    assert list(finished.rglob("round-*")) == []
    assert len(list(finished.glob("cells/*/probes.json"))) == 2 * 2 * 2
    assert list(finished.glob("cells/pretrain-*/probes.json")) == []


def test_without_watch_nothing_is_looked_at(material: Material, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(tomli_w.dumps(TABLES))
    study.run(
        study.load(tmp_path / "study.toml", None, ["downstream.watch=none", "downstream.tasks=1", "seeds=[0]"]),
        tmp_path / "out",
    )
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["watched"] == [] and list(tmp_path.rglob("probes.json")) == []


# --- the means -------------------------------------------------------------------------------------------------------


def looked(folder: Path, key: str, looks: Iterable[dict[str, Any]], rounds: int = 4, **place: Any) -> Cell:
    """A finished cell with a probes.json."""
    (folder / key).mkdir()
    content = {"format": 1, "rounds": rounds, "found": list(looks)}
    (folder / key / "probes.json").write_text(json.dumps(content))
    place = {"start": "random", "algorithm": "fedavg", "partition": "iid", **place}
    return Cell("downstream", place["start"], 0, key, rounds, place["algorithm"], place["partition"])


def look(
    number: int, values: dict[str, Any], rows: list[dict[str, Any]] | None = None, probe: str = "p"
) -> dict[str, Any]:
    return {"round": number, "probe": probe, "values": values, "rows": rows or []}


def test_means_and_intervals_by_hand(tmp_path: Path) -> None:
    cells = [
        looked(tmp_path, str(n), [look(2, {"share": share}, [{"layer": "fc", "share": share / 2, "filters": 8}])])
        for n, share in enumerate((0.1, 0.2, 0.6))
    ]
    whole, layer, filters = watching.watched(cells, tmp_path)
    place = {
        "start": "random",
        "algorithm": "fedavg",
        "partition": "iid",
        "round": 2,
        "rounds": 4,
        "probe": "p",
        "n": 3,
    }
    limits = stats.ttest_1samp([0.1, 0.2, 0.6], 0).confidence_interval(0.95)
    assert whole == {
        **place,
        "value": "share",
        "layer": "",
        "mean": 0.3,
        "low": pytest.approx(limits.low, rel=1e-9),
        "high": pytest.approx(limits.high, rel=1e-9),
    }
    assert (layer["value"], layer["layer"], layer["mean"]) == ("share", "fc", 0.15)
    assert layer["low"] == pytest.approx(limits.low / 2, rel=1e-9)
    assert filters == {**place, "value": "filters", "layer": "fc", "mean": 8.0, "low": 8.0, "high": 8.0}


def test_every_place_round_probe_value_and_layer_has_a_row_of_its_own(tmp_path: Path) -> None:
    rows = [{"layer": "a", "x": 1.0}, {"layer": "b", "x": 2.0}]
    cells = [
        looked(
            tmp_path, "0", [look(0, {"x": 3.0, "y": 4.0}, rows), look(1, {"x": 5.0}), look(1, {"x": 6.0}, probe="q")]
        ),
        looked(tmp_path, "1", [look(0, {"x": 7.0})], algorithm="fedprox"),
        looked(tmp_path, "2", [look(0, {"x": 8.0})], partition="dirichlet(0.1)"),
        looked(tmp_path, "3", [look(0, {"x": 9.0})], start="made"),
    ]
    found = watching.watched(cells, tmp_path)
    columns = ("start", "algorithm", "partition", "round", "probe", "value", "layer", "mean")
    assert [tuple(row[column] for column in columns) for row in found] == [
        ("random", "fedavg", "iid", 0, "p", "x", "", 3.0),
        ("random", "fedavg", "iid", 0, "p", "y", "", 4.0),
        ("random", "fedavg", "iid", 0, "p", "x", "a", 1.0),
        ("random", "fedavg", "iid", 0, "p", "x", "b", 2.0),
        ("random", "fedavg", "iid", 1, "p", "x", "", 5.0),
        ("random", "fedavg", "iid", 1, "q", "x", "", 6.0),
        ("random", "fedprox", "iid", 0, "p", "x", "", 7.0),
        ("random", "fedavg", "dirichlet(0.1)", 0, "p", "x", "", 8.0),
        ("made", "fedavg", "iid", 0, "p", "x", "", 9.0),
    ]
    assert {(row["n"], row["low"], row["high"]) for row in found} == {(1, None, None)}


def test_what_is_no_number_of_a_layer_is_left_out(tmp_path: Path) -> None:
    rows = [{"client": 3, "x": 1.0}, {"layer": "a", "kind": "conv", "x": None, "y": 2}]
    cells = [
        looked(tmp_path, "0", [look(0, {"x": None, "z": 1.0}, rows)]),
        looked(tmp_path, "1", [look(0, {"x": 5.0, "z": 2.0})]),
        Cell("downstream", "random", 0, "without", 4, "fedavg", "iid"),
    ]
    found = {(row["value"], row["layer"]): (row["n"], row["mean"]) for row in watching.watched(cells, tmp_path)}
    assert found == {("z", ""): (2, 1.5), ("y", "a"): (1, 2.0), ("x", ""): (1, 5.0)}


def test_the_summary_has_the_means_of_all_tasks_and_seeds(finished: Path) -> None:
    rows = json.loads((finished / "summary.json").read_text())["watched"]
    places = {(row["algorithm"], row["round"], row["rounds"], row["n"]) for row in rows}
    assert places == {("fedavg", n, 5, 4) for n in KEPT["fedavg"]} | {("scaffold", n, 2, 4) for n in KEPT["scaffold"]}
    assert {(row["start"], row["partition"]) for row in rows} == {("random", "dirichlet(0.5)")}
    looks = [found_in(folder) for folder in finished.glob("cells/random-fedavg-dirichlet-*")]
    values = [
        one["values"]["to_end"] for found in looks for one in found if one["probe"] == "movement" and one["round"] == 3
    ]
    (row,) = [
        row
        for row in rows
        if (row["algorithm"], row["round"], row["value"], row["layer"]) == ("fedavg", 3, "to_end", "")
    ]
    assert len(values) == 4 and row["mean"] == pytest.approx(sum(values) / 4, rel=1e-9)


# --- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("at=[]", r"at: .*at least 1 item"),
        ("at=[1.0]", r"at\.0: .*less than 1 \(given: 1\.0\)"),
        ("at=[0.5, -0.1]", r"at\.1: .*greater than or equal to 0"),
        ("at=none", r"at: Field required"),
        ("probes=none", r"probes: Field required"),
        ("probes=[]", r"probes: "),
        ("prob=1", r"unknown setting '(watch\.)?prob'.*'probes'"),
        ("probes.movment={}", r"probes\]: unknown probe 'movment'.*'movement'"),
        ("probes.dead_filters.exampls=3", r"dead_filters\]: unknown setting 'exampls'.*'examples'"),
        ("probes.dead_filters.examples=0", r"dead_filters\] examples: .*\(given: 0\)"),
    ],
)
def test_a_wrong_watch_is_named_in_one_line(tmp_path: Path, override: str, message: str) -> None:
    (tmp_path / "study.toml").write_text(tomli_w.dumps(TABLES))
    with pytest.raises(ValueError, match=rf"study\.toml \[downstream[] .]+watch.*{message}") as caught:
        study.load(tmp_path / "study.toml", None, [f"downstream.watch.{override}"])
    assert "\n" not in str(caught.value)
