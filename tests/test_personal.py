"""Personal models: every client's own fine-tuning and scores, against a literal loop, and in a study."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from pyarrow import parquet
from torch import nn
from torch.nn.functional import cross_entropy

from fedstart import study, tree
from fedstart.data.federation import Positions
from fedstart.engines.execution import Execution
from fedstart.engines.local import LocalEngine
from fedstart.engines.personal import personalise
from fedstart.files import read_json
from fedstart.models import Model
from fedstart.scores import Scores
from fedstart.starts import Start
from fedstart.study.cells import Material, plan_cells
from fedstart.types import Counts, Diverged
from reference import slow


def scored(logits: torch.Tensor, labels: torch.Tensor) -> tuple[int, float]:
    return int((logits.argmax(1) == labels).sum()), float(cross_entropy(logits, labels, reduction="sum"))


@pytest.mark.parametrize(("threads", "together"), [(1, 1), (3, 1), (1, 4), (2, 2)])
def test_each_clients_scores_are_those_of_the_literal_loop(federation, model, weights, plan, threads, together):
    before = tree.fingerprint(weights)
    with LocalEngine(threads, Execution(together=together)) as engine:
        found = personalise(engine, model, federation, plan, weights)
        shared = engine.evaluate(model, federation, weights)
    assert tree.fingerprint(weights) == before
    for k in range(federation.clients):
        train, test = federation.positions("train", k), federation.positions("test", k)
        own = slow.local_training(model, federation, plan, plan.rounds + 1, k, weights, train)
        inputs, labels = federation.batch(test, torch.float64)
        correct, loss = scored(model.apply(own, inputs, training=False), labels)
        assert (found.correct[k], found.total[k]) == (correct, len(test))
        assert found.loss[k] == pytest.approx(loss, rel=1e-9)
    assert np.abs(found.loss - shared.loss).min() > 1e-3


@dataclass(frozen=True)
class Normed:
    """Two linear layers with BatchNorm between them."""

    head: str = "2"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(shape[0], 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


def test_the_running_statistics_of_batchnorm_are_the_clients_own(federation, plan):
    model, plan = Model(Normed(), (4,), 3), replace(plan, batch_size=6, momentum=0.0, weight_decay=0.0, clip=None)
    weights = {n: t.double() if t.is_floating_point() else t for n, t in model.init(3).items()}
    with LocalEngine(2) as engine:
        found = personalise(engine, model, federation, plan, weights)
    for k in range(federation.clients):
        module = Normed().build((4,), 3).double()
        module.load_state_dict(weights)
        train = federation.positions("train", k)
        for batch in slow.minibatches(plan, plan.rounds + 1, k, len(train)):
            inputs, labels = federation.batch(train[batch], torch.float64)
            gradients = torch.autograd.grad(cross_entropy(module(inputs), labels), list(module.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(module.parameters(), gradients, strict=True):
                    parameter -= plan.lr * gradient
        inputs, labels = federation.batch(federation.positions("test", k), torch.float64)
        with torch.no_grad():
            correct, loss = scored(module.eval()(inputs), labels)
        assert found.correct[k] == correct and found.loss[k] == pytest.approx(loss, rel=1e-9)


def test_clients_without_training_examples_keep_the_weights_and_without_test_examples_have_no_score(
    federation, model, weights, plan
):
    held = federation.parts["train"]
    sizes, kept = held.sizes.copy(), [held[k] for k in range(len(held)) if k != 2]
    sizes[2] = 0
    train = Positions(np.concatenate([[0], np.cumsum(sizes)]), np.concatenate(kept))
    test = Positions(held.offsets, held.values)
    some = Positions(np.concatenate([test.offsets[:-1], test.offsets[-2:-1]]), test.values[: test.offsets[-2]])
    changed = replace(federation, parts={"train": train, "test": some})
    with LocalEngine(1) as engine:
        found = personalise(engine, model, changed, plan, weights)
        shared = engine.evaluate(model, changed, weights)
        whole = personalise(engine, model, replace(federation, parts={"train": held, "test": test}), plan, weights)
    assert found.total.tolist() == shared.total.tolist() and found.total[5] == found.correct[5] == found.loss[5] == 0
    assert (found.correct[2], found.loss[2]) == (shared.correct[2], shared.loss[2])
    assert whole.loss[2] != shared.loss[2]
    assert [found.loss[k] for k in (0, 1, 3, 4)] == [whole.loss[k] for k in (0, 1, 3, 4)]


def test_fine_tuning_that_diverges_names_the_client(federation, model, weights, plan):
    wild = replace(plan, lr=1e200, clip=None)
    with LocalEngine(1) as engine, pytest.raises(Diverged, match=r"client 0: .* after fine-tuning"):
        personalise(engine, model, federation, wild, weights)


TABLES: dict[str, Any] = {
    "name": "personal",
    "seeds": [0],
    "data": {"source": "synthetic:classes=6,examples=480,size=4"},
    "model": {"name": "mlp", "settings": {"hidden": [8]}},
    "pretraining": {
        "held_out": 3,
        "clients": 4,
        "partition": {"name": "iid"},
        "plan": {"rounds": 2, "local_steps": 2, "lr": 0.1},
    },
    "downstream": {
        "tasks": 1,
        "classes_per_task": 3,
        "clients": 4,
        "partitions": [{"name": "dirichlet", "alpha": 0.5}],
        "plan": {"rounds": 2, "local_epochs": 1, "lr": 0.1, "batch_size": 8},
        "personal": {"local_steps": 5},
    },
    "starts": [{"method": "random"}, {"method": "fedavg"}],
    "algorithms": [{"method": "fedavg"}, {"method": "fedavg", "name": "slow", "plan": {"lr": 0.01}}],
    "execution": {"precision": "float32", "together": 1, "channels_last": True, "linear": "torch"},
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "personal.toml"
    path.write_text(tomli_w.dumps(TABLES))
    return path


@pytest.fixture(scope="module")
def finished(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study.run(study.load(file), tmp_path_factory.mktemp("study") / "whole", threads=1)


def tables(out: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(out.glob("cells/*/clients.parquet"))}


def test_a_study_writes_the_personal_scores_beside_the_others(file: Path, finished: Path) -> None:
    material = Material(study.load(file))
    found: dict[tuple[str, str], Counts] = {}
    for cell in (cell for cell in plan_cells(material) if cell.kind == "downstream"):
        table = parquet.read_table(finished / "cells" / cell.key / "clients.parquet")
        assert table.column_names == ["part", "client", "correct", "total", "loss", "personal_correct", "personal_loss"]
        run = material.downstream_run(cell.start, cell.algorithm, cell.partition, cell.task, cell.seed, cell.begin)
        assert run.personal is not None and run.settings["personal"]["local_steps"] == 5
        assert (run.personal.lr, run.personal.local_epochs, run.personal.seed) == (run.plan.lr, None, run.plan.seed)
        weights = Start.load(finished / "cells" / cell.origin / "start").weights
        weights = material.transfer(cell.start, weights, 3, cell.task, cell.seed)
        with LocalEngine(2) as engine:
            for number in (1, 2):
                cohort = engine.cohort(run.model, run.federation, run.plan, number, run.federation.eligible.tolist())
                weights = cohort.mean(lambda client, broadcast: client.descend(broadcast), weights)
            own = personalise(engine, run.model, run.federation, run.personal, weights)
        assert table["personal_correct"].to_pylist() == own.correct.tolist()
        assert table["personal_loss"].to_pylist() == own.loss.tolist()
        found[cell.start, cell.algorithm] = own
    rows = read_json(finished / "summary.json")["rows"]
    assert len(rows) == len(found) == 4
    for row in rows:
        mine = Scores(found[row["start"], row["algorithm"]])
        assert row["personal"]["mean"] == pytest.approx(mine.mean)
        assert row["personal"]["variance"] == pytest.approx(mine.variance)
        assert row["personal"]["worst10"] == pytest.approx(mine.worst(10))


def test_personal_scores_do_not_depend_on_interruptions_or_processes(
    file: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:

        def killed(*_: object) -> Counts:
            raise KeyboardInterrupt

        patched.setattr("fedstart.study.work.personalise", killed)
        with pytest.raises(KeyboardInterrupt):
            study.run(study.load(file), tmp_path / "killed", threads=1)
    assert [read_json(path)["status"] for path in (tmp_path / "killed").glob("cells/*fedavg-dir*/run.json")] == [
        "running"
    ]
    study.run(study.load(file), tmp_path / "killed", threads=2)
    study.run(study.load(file), tmp_path / "processes", jobs=2)
    assert tables(tmp_path / "killed") == tables(tmp_path / "processes") == tables(finished)
    assert (tmp_path / "killed/summary.json").read_bytes() == (finished / "summary.json").read_bytes()


def test_another_plan_for_fine_tuning_is_another_run_of_the_same_start(file: Path) -> None:
    keys = {}
    for word in ("local_steps=5", "local_steps=6", "lr=0.2"):
        cells = plan_cells(Material(study.load(file, None, [f"downstream.personal.{word}"])))
        keys[word] = {kind: {cell.key for cell in cells if cell.kind == kind} for kind in ("pretrain", "downstream")}
    without = plan_cells(Material(study.load(file, None, ["downstream.personal=none"])))
    keys["none"] = {kind: {cell.key for cell in without if cell.kind == kind} for kind in ("pretrain", "downstream")}
    assert len({frozenset(kinds["pretrain"]) for kinds in keys.values()}) == 1
    assert len(set().union(*(kinds["downstream"] for kinds in keys.values()))) == 4 * 4


def test_without_the_setting_there_are_no_personal_columns(file: Path, tmp_path: Path) -> None:
    study.run(study.load(file, None, ["downstream.personal=none"]), tmp_path, threads=1)
    for path in tmp_path.glob("cells/*/clients.parquet"):
        assert parquet.read_table(path).column_names == ["part", "client", "correct", "total", "loss"]
        assert "personal" not in read_json(path.parent / "run.json")["settings"]
    assert {row["personal"] for row in read_json(tmp_path / "summary.json")["rows"]} == {None}


def test_a_run_whose_fine_tuning_diverges_has_failed(file: Path, tmp_path: Path) -> None:
    words = ["downstream.personal.lr=1e30", 'algorithms=[{method="fedavg"}]', 'starts=[{method="random"}]']
    study.run(study.load(file, None, words), tmp_path, threads=1)
    (failure,) = study.failures(tmp_path)
    assert "after fine-tuning; a smaller lr may help" in failure
    (run,) = tmp_path.glob("cells/random-*/run.json")
    assert json.loads(run.read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("downstream.personal.local_step=5", r"\[downstream\.personal\]: unknown setting 'local_step'; did you mean"),
        ("downstream.personal.rounds=5", r"\[downstream\.personal\]: unknown setting 'rounds'"),
        ("downstream.personal.seed=5", r"\[downstream\.personal\]: unknown setting 'seed'"),
        ("downstream.personal.lr=0", r"\[downstream\.personal\] lr: .*greater than 0 \(given: 0\)"),
        ("downstream.personal.local_steps=0", r"\[downstream\.personal\] local_steps: .*greater than or equal to 1"),
        ("downstream.personal={local_steps=1, local_epochs=1}", r"\[downstream\.personal\]: .*exactly one of"),
        ("downstream.personal=5", r"\[downstream\] personal: .*dictionary"),
    ],
)
def test_wrong_settings_of_fine_tuning_are_named_in_one_line(file: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        study.load(file, None, [override])
    assert "\n" not in str(caught.value)
