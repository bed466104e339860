"""Starts with examples or an architecture of their own, and starts made on drawn images, in a study that watches."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from torch import Tensor

from fedstart import keys, study, tree
from fedstart.data import fitting, sources, tasks
from fedstart.data.partitions import IID
from fedstart.engines.execution import Execution
from fedstart.engines.local import LocalEngine
from fedstart.models import Model
from fedstart.models.mlp import MLP
from fedstart.models.plain_cnn import PlainCNN
from fedstart.runs import RunDirectory
from fedstart.starts import Start
from fedstart.starts.centralized import Centralized
from fedstart.starts.fractals import Fractals
from fedstart.study import watching, work
from fedstart.study.cells import Material, plan_cells
from fedstart.training import train
from fedstart.types import Plan
from study_files import results, run_and_kill

OTHER = "synthetic:classes=3,size=12,channels=3,examples=60"
CNN = {"name": "plain_cnn", "settings": {"channels": [4]}}
TABLES: dict[str, Any] = {
    "name": "starts",
    "seeds": [0, 1],
    "data": {"source": "digits"},
    "model": {"name": "mlp", "settings": {"hidden": [8]}},
    "pretraining": {
        "held_out": 4,
        "clients": 3,
        "partition": {"name": "iid"},
        "plan": {"rounds": 2, "local_steps": 3, "lr": 0.1},
    },
    "downstream": {
        "tasks": 1,
        "classes_per_task": 3,
        "clients": 4,
        "partitions": [{"name": "dirichlet", "alpha": 0.5}],
        "plan": {"rounds": 4, "local_steps": 2, "lr": 0.1},
        "watch": {"at": [0.0, 0.5, 0.75], "probes": {"movement": {}, "misalignment": {"examples": 40}}},
    },
    "starts": [
        {"method": "random"},
        {"method": "centralized", "name": "own data", "pretraining": {"data": {"source": OTHER}}},
        {"method": "fedavg", "name": "own model", "model": CNN},
        {"method": "centralized", "name": "both", "model": CNN, "pretraining": {"data": {"source": OTHER}}},
        {"method": "fractals", "settings": {"classes": 5, "images": 4, "objects": 1}},
    ],
    "algorithms": [{"method": "fedavg"}, {"method": "scaffold"}],
    "claims": [{"text": "FedAvg is better", "start": "own model", "first": "fedavg", "second": "scaffold"}],
    "execution": asdict(Execution()),
}
ROUNDS = 2 * 4 * 2 + 2 * 5 * 2 * 4
PRETRAINING = Plan(rounds=2, local_steps=3, lr=0.1)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "study.toml"
    path.write_text(tomli_w.dumps(TABLES))
    return path


@pytest.fixture(scope="module")
def finished(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, run without interruption in one process. Tests only read it."""
    return study.run(study.load(file), tmp_path_factory.mktemp("study") / "whole")


@pytest.fixture(scope="module")
def material(file: Path) -> Material:
    return Material(study.load(file))


def cells(out: Path, **place: Any) -> list[Path]:
    """The cells at a place, such as `start="random", seed=0`, by their names."""
    found = {path.parent: json.loads(path.read_text()) for path in sorted(out.glob("cells/*/cell.json"))}
    return [folder for folder, held in found.items() if place.items() <= held.items()]


def without_none(value: Any) -> Any:
    """Nested tables without what is None, for which TOML has no word."""
    if isinstance(value, dict):
        return {key: without_none(held) for key, held in value.items() if held is not None}
    return [without_none(held) for held in value] if isinstance(value, list) else value


def starts(**changes: dict[str, Any]) -> list[dict[str, Any]]:
    """`[[starts]]` with changes to those of these names (`own_data` is "own data"); None takes a key out."""
    names = [entry.get("name", entry["method"]).replace(" ", "_") for entry in TABLES["starts"]]
    return [{**entry, **changes.get(name, {})} for name, entry in zip(names, TABLES["starts"], strict=True)]


def material_of(folder: Path, **changes: Any) -> Material:
    """The material of the study with other tables at its top; None takes one out."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "changed.toml"
    path.write_text(tomli_w.dumps(without_none({**TABLES, "claims": None, **changes})))
    return Material(study.load(path))


def made(out: Path, start: str, seed: int = 1) -> Start:
    (folder,) = cells(out, kind="pretrain", start=start, seed=seed)
    return Start.load(folder / "start")


# --- what a start is made on and of ----------------------------------------------------------------------------------


def test_a_start_is_pre_trained_on_its_own_examples_with_all_their_classes(finished: Path) -> None:
    for name, network in (("own data", "mlp"), ("both", "plain_cnn")):
        card = made(finished, name).card
        assert card.data.startswith("pre-training on synthetic") and card.architecture == network
        assert (card.shape, card.classes, len(card.class_names)) == ((1, 8, 8), 3, 3)
        examples = fitting.fitted(sources.load(OTHER), (1, 8, 8))
        assert (card.mean, card.std) == (examples.mean, examples.std)
    assert made(finished, "own model").card.data == "pre-training"
    assert (made(finished, "own model").card.classes, made(finished, "own model").card.architecture) == (6, "plain_cnn")


def test_what_it_learns_there_is_what_training_by_hand_gives(finished: Path) -> None:
    federation = tasks.federate(
        fitting.fitted(sources.load(OTHER), (1, 8, 8)),
        classes=(0, 1, 2),
        partition=IID(),
        clients=3,
        seed=1,
        name="by hand",
        test_fraction=0,
    )
    plan = replace(PRETRAINING, seed=keys.number(1, "pretraining"))
    for name, network in (("own data", MLP(hidden=(8,))), ("both", PlainCNN(channels=(4,)))):
        model = Model(network, (1, 8, 8), 3)
        found = by_hand(Centralized(), model, federation, plan)
        assert tree.fingerprint(found) == tree.fingerprint(made(finished, name).weights)


def test_fractals_are_learned_with_as_many_outputs_as_there_are_sets(finished: Path, material: Material) -> None:
    start = Fractals(classes=5, images=4, objects=1)
    found = by_hand(
        start,
        Model(MLP(hidden=(8,)), (1, 8, 8), 5),
        material.pretraining(1),
        replace(PRETRAINING, seed=keys.number(1, "pretraining")),
    )
    assert tree.fingerprint(found) == tree.fingerprint(made(finished, "fractals").weights)
    assert (made(finished, "fractals").card.classes, made(finished, "fractals").card.data) == (5, "fractals")
    assert tree.fingerprint(found) != tree.fingerprint(made(finished, "fractals", seed=0).weights)


def by_hand(start: Any, model: Model, federation: Any, plan: Plan) -> dict[str, Tensor]:
    federation, plan = start.prepare(federation, plan)
    with LocalEngine(1, Execution()) as engine:
        *_, last = train(start, model, federation, plan, start.begin(model, 1), engine)
    return last.state.weights


def test_a_start_begins_at_its_own_architecture_s_initial_weights(material: Material) -> None:
    networks = {"own data": (MLP(hidden=(8,)), 3), "own model": (PlainCNN(channels=(4,)), 6)}
    networks |= {"both": (PlainCNN(channels=(4,)), 3), "fractals": (MLP(hidden=(8,)), 5), "random": (MLP((8,)), 6)}
    for name, (network, classes) in networks.items():
        expected = Model(network, (1, 8, 8), classes).init(1)
        assert tree.fingerprint(material.begin(name, 1)) == tree.fingerprint(expected)


def test_pre_training_of_other_starts_is_left_as_it_is(material: Material) -> None:
    assert len(material.pretraining(0).classes) == 6 and material.pretraining(0).examples is material.examples
    other = material.pretraining(0, "", "own data")
    assert other is material.pretraining(0, "", "both") and other.clients == 3
    assert other.classes == (0, 1, 2) and len(other.parts["train"].values) == 60
    assert [(shared.start, shared.label) for shared in material.federations.shared()] == [
        ("", "iid"),
        ("own data", "iid, for own data"),
    ]


def test_what_is_left_out_or_chosen_of_the_study_s_data_leaves_a_start_s_own_as_they_are(tmp_path: Path) -> None:
    pretraining = {"left_out": {"column": "group", "values": [0, 1]}, "held_out": None, "classes": [1, 2]}
    downstream = {"classes": "seen", "classes_per_task": 2, "clients": 2, "watch": None}
    built = material_of(
        tmp_path,
        data={"source": "synthetic:classes=4,examples=400"},
        pretraining={**TABLES["pretraining"], **pretraining},
        downstream={**TABLES["downstream"], **downstream},
    )
    for case in ("0", "1"):
        assert built.pretraining(0, case).classes == (1, 2)
        assert len(built.pretraining(0, case, "own data").parts["train"].values) == 60
        assert len(built.pretraining(0, case, "own data").classes) == 3


# --- downstream ------------------------------------------------------------------------------------------------------


def test_downstream_every_start_keeps_its_architecture_and_meets_the_same_tasks(finished: Path) -> None:
    for seed in (0, 1):
        runs = {}
        for folder in cells(finished, kind="downstream", algorithm="fedavg", seed=seed):
            run = json.loads((folder / "run.json").read_text())
            runs[json.loads((folder / "cell.json").read_text())["start"]] = run
        assert {name: run["settings"]["model"]["name"] for name, run in runs.items()} == {
            "random": "mlp",
            "own data": "mlp",
            "own model": "plain_cnn",
            "both": "plain_cnn",
            "fractals": "mlp",
        }
        assert len({json.dumps([run["fingerprints"], run["settings"]["plan"]]) for run in runs.values()}) == 1


def test_a_task_begins_from_the_start_s_body_under_one_fresh_head(finished: Path, material: Material) -> None:
    for network, names in (
        (MLP(hidden=(8,)), ("own data", "fractals", "random")),
        (PlainCNN((4,)), ("own model", "both")),
    ):
        model = Model(network, (1, 8, 8), 3)
        head = model.fresh_head(keys.number(1, "downstream-head", 0))
        for name in names:
            start = made(finished, name)
            weights = material.transfer(name, start.weights, 3, 0, 1)
            assert weights.keys() == model.shapes.keys()
            for key, tensor in weights.items():
                assert tensor.equal(head[key] if key in model.head else start.weights[key])


def test_weights_of_any_head_are_adopted() -> None:
    model, other = (Model(MLP(hidden=(8,)), (1, 8, 8), classes) for classes in (3, 7))
    given = {name: tensor.double() for name, tensor in other.init(2).items()}
    found = model.adopt(given, 5)
    assert tree.fingerprint(found) == tree.fingerprint(other.transfer(given, 3, 5)[1])
    for name, tensor in found.items():
        assert tensor.dtype == torch.float64
        assert tensor is given[name] or name in model.head
        assert name not in model.head or tensor.equal(model.fresh_head(5)[name].double())
    body = next(name for name in model.shapes if name not in model.head)
    with pytest.raises(ValueError, match=f"lack tensor '{body}'"):
        model.adopt({name: tensor for name, tensor in given.items() if name != body}, 5)
    with pytest.raises(ValueError, match=f"lack tensor '{model.head[0]}'"):
        model.adopt({name: tensor for name, tensor in given.items() if name not in model.head}, 5)
    with pytest.raises(ValueError, match="but the model needs"):
        Model(MLP(hidden=(9,)), (1, 8, 8), 3).adopt(given, 5)


def test_how_to_compute_is_measured_once_for_each_architecture(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[str, int]] = []

    def calibrate(model: Model, *_: Any) -> Execution:
        measured.append((model.describe()["name"], model.classes))
        return Execution(together=len(measured))

    monkeypatch.setattr("fedstart.study.cells.calibrate", calibrate)
    built = Material(study.load(file, None, ["execution=none"]))
    plan_cells(built)
    assert sorted(measured) == [("mlp", 3), ("mlp", 6), ("plain_cnn", 3), ("plain_cnn", 6)]
    kinds = ("pretrain", "downstream")
    shared = {kind: [built.execution(kind, name) for name in ("own data", "fractals")] for kind in kinds}
    own = {kind: [built.execution(kind, name) for name in ("own model", "both")] for kind in kinds}
    assert all(first is second for first, second in [*shared.values(), *own.values()])
    assert len({pair[0].together for pair in [*shared.values(), *own.values()]}) == 4
    again = Material(study.load(file, None, ["execution=none"]), built.executions)
    assert [cell.key for cell in plan_cells(again)] == [cell.key for cell in plan_cells(built)]
    assert len(measured) == 4


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keyed(material: Material) -> dict[tuple[Any, ...], str]:
    return keys_of(material)


def keys_of(material: Material) -> dict[tuple[Any, ...], str]:
    """The key of each cell by its kind, start and further place."""
    return {tuple(cell.place().values()): cell.key for cell in plan_cells(material)}


def moved(before: dict[tuple[Any, ...], str], material: Material) -> tuple[set[str], set[str]]:
    """The starts whose pre-training has another key than before, and those whose tasks have."""
    after = keys_of(material)
    assert before.keys() == after.keys()
    other = [place for place in before if before[place] != after[place]]
    before_tasks, in_tasks = ({place[1] for place in other if place[0] == kind} for kind in ("pretrain", "downstream"))
    return before_tasks, in_tasks


def test_other_data_are_another_start(keyed: dict[tuple[Any, ...], str], tmp_path: Path) -> None:
    other = {"pretraining": {"data": {"source": f"{OTHER},seed=1"}}}
    assert moved(keyed, material_of(tmp_path, starts=starts(own_data=other))) == ({"own data"}, {"own data"})
    shared = starts(own_data={"pretraining": None})
    assert moved(keyed, material_of(tmp_path, starts=shared)) == ({"own data"}, {"own data"})
    # Without training, a task's result depends on the weights alone, but for those of a head of another size.
    assert moved(keyed, material_of(tmp_path, starts=starts(random=other)))[0] == {"random"}
    assert moved(keyed, material_of(tmp_path)) == (set(), set())


def test_another_model_is_another_start(keyed: dict[tuple[Any, ...], str], tmp_path: Path) -> None:
    wider = {"model": {"name": "plain_cnn", "settings": {"channels": [6]}}}
    assert moved(keyed, material_of(tmp_path, starts=starts(both=wider))) == ({"both"}, {"both"})
    shared = starts(own_model={"model": None})
    assert moved(keyed, material_of(tmp_path, starts=shared)) == ({"own model"}, {"own model"})
    names = {"random", "own data", "fractals"}
    other = {"name": "mlp", "settings": {"hidden": [9]}}
    assert moved(keyed, material_of(tmp_path, model=other)) == (names, names)
    # The study's own model, said once more.
    assert moved(keyed, material_of(tmp_path, starts=starts(random={"model": TABLES["model"]}))) == (set(), set())


def test_what_is_watched_changes_the_tasks_alone(keyed: dict[tuple[Any, ...], str], tmp_path: Path) -> None:
    names = {entry.get("name", entry["method"]) for entry in TABLES["starts"]}
    base = TABLES["downstream"]

    def with_watch(**changes: Any) -> Material:
        return material_of(tmp_path, downstream={**base, "watch": {**base["watch"], **changes}})

    assert moved(keyed, material_of(tmp_path, downstream={**base, "watch": None})) == (set(), names)
    assert moved(keyed, with_watch(at=[0.0, 0.5])) == (set(), names)
    assert moved(keyed, with_watch(probes={"movement": {}})) == (set(), names)
    assert moved(keyed, with_watch(probes={"movement": {}, "misalignment": {"examples": 41}})) == (set(), names)
    assert moved(keyed, with_watch(at=[0, 0.5, 0.75])) == (set(), set())


def test_further_starts_leave_the_keys_of_the_others(keyed: dict[tuple[Any, ...], str], tmp_path: Path) -> None:
    few = keys_of(material_of(tmp_path, starts=starts()[:1]))
    assert len(few) == 2 + 2 * 2 and few.items() < keyed.items()


# --- however it is run -----------------------------------------------------------------------------------------------


def test_processes_and_threads_change_no_bit(file: Path, finished: Path, tmp_path: Path) -> None:
    study.run(study.load(file), tmp_path, jobs=2, threads=1)
    assert results(tmp_path) == results(finished)


def test_the_order_of_names_in_a_file_changes_no_bit_of_a_norm() -> None:
    """Weights that were read have their names in whatever order the reader gives, and SCAFFOLD reports a norm."""
    weights = {"a": torch.ones(1), "b": torch.full((1,), 1e-8), "c": torch.full((1,), 1e-8)}
    turned = dict(reversed(weights.items()))
    assert tree.dot(weights, weights) == tree.dot(turned, turned)


def test_a_killed_study_that_watches_ends_with_the_same_bytes(file: Path, finished: Path, tmp_path: Path) -> None:
    run_and_kill(file, tmp_path, ROUNDS // 2)
    study.run(study.load(file), tmp_path)
    assert results(tmp_path) == results(finished)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("every", [0.0, 1e9])
@pytest.mark.parametrize("round_number", [2, 4])
def test_a_task_that_is_killed_between_rounds_is_watched_all_the_same(
    file: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: float, round_number: int
) -> None:
    append = RunDirectory.append_round

    def killed(self: RunDirectory, last: Any, *rest: Any) -> None:
        append(self, last, *rest)
        if last.number == round_number and "scaffold" in self.path.name:
            raise Killed

    monkeypatch.setattr("fedstart.study.work.execute", lambda *a, **k: EXECUTE(*a, **{**k, "every": every}))
    interrupted(file, finished, tmp_path, monkeypatch, RunDirectory, "append_round", killed)


@pytest.mark.parametrize("when", ["before the probes", "while the second file goes", "after them"])
def test_a_task_that_is_killed_around_its_probes_is_watched_all_the_same(
    file: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    look, unlink = watching.look, Path.unlink
    gone: list[Path] = []

    def removed(self: Path, missing_ok: bool = False) -> None:
        if self.name.startswith("round-"):
            gone.append(self)
        if len(gone) == 2:
            raise Killed
        unlink(self, missing_ok)

    def killed(*given: Any) -> None:
        if when == "after them":
            look(*given)
        raise Killed

    if when == "while the second file goes":
        interrupted(file, finished, tmp_path, monkeypatch, Path, "unlink", removed)
    else:
        interrupted(file, finished, tmp_path, monkeypatch, watching, "look", killed)


EXECUTE = work.execute
ONE = '{method="fedavg", name="own model", model={name="plain_cnn", settings={channels=[4]}}}'


def interrupted(
    file: Path, finished: Path, out: Path, monkeypatch: pytest.MonkeyPatch, home: Any, name: str, killed: Any
) -> None:
    """One start and seed of the study, killed once where `killed` says so, and taken up again."""
    small = study.load(file, None, ["seeds=[1]", f"starts=[{ONE}]"])
    with monkeypatch.context() as patch:
        patch.setattr(home, name, killed)
        with pytest.raises(Killed):
            study.run(small, out)
    study.run(small, out)
    ended = {name: held for name, held in results(out).items() if name.startswith("cells/")}
    assert len(cells(out)) == 3 and ended.items() <= results(finished).items()
    assert {Path(name).name for name in ended} == {
        "cell.json",
        "card.json",
        "checkpoint.safetensors",
        "clients.parquet",
        "probes.json",
        "rounds.jsonl",
        "run.json",
        "weights.safetensors",
    }


# --- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("starts.both.model.name=plain_cn", r"\[\[starts\]\] both \[model\] name: unknown model.*'plain_cnn'"),
        ("starts.both.model.settings.chanels=[1]", r"both \[model\.settings\]: unknown setting 'chanels'.*'channels'"),
        ("starts.both.model.settings.channels=[3]", r"both \[model\.settings\].*groups must divide channels"),
        ("starts.both.model=mlp", r"\[\[starts\]\] number 4 model: "),
        ("algorithms.fedavg.model.name=mlp", r"\[\[algorithms\]\] fedavg model: not allowed here; .*\[\[starts\]\]"),
        ("starts.both.pretraining.data.sorce=x", r"both pretraining\.data: unknown setting 'sorce'.*'source'"),
        ("starts.both.pretraining.data.source=none", r"both pretraining\.data source: Field required"),
        ("starts.both.pretraining.data=digits", r"both pretraining data: "),
        ("starts.both.pretraining.dat.source=x", r"both pretraining: unknown setting 'dat'.*'data'"),
    ],
)
def test_a_wrong_start_is_named_in_one_line(file: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        study.load(file, None, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("starts.both.pretraining.data.source=path:/nowhere", "/nowhere"),
        ("starts.both.pretraining.data.source=digit", "unknown data 'digit'; did you mean 'digits'"),
        ("starts.both.pretraining.data.source=synthetic:channels=2", r"\(2, 8, 8\) cannot be fitted to \(1, 8, 8\)"),
        ("starts.both.pretraining.clients=90", "too few for 90 clients"),
    ],
)
def test_examples_that_do_not_fit_end_before_any_work(file: Path, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        study.run(study.load(file, None, [override]), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_resolved_study_loads_as_itself(file: Path, finished: Path) -> None:
    assert study.load(finished / "study.toml") == study.load(file)
