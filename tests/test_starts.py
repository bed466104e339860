"""Starts: random, centralised, from a checkpoint; and how a start is kept on disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from fedstart import names, tree
from fedstart.data.federation import Federation
from fedstart.engines.local import LocalEngine
from fedstart.models import Model
from fedstart.models.mlp import MLP
from fedstart.models.resnet18 import ResNet18
from fedstart.starts import Beginning, Card, Start
from fedstart.starts.centralized import Centralized
from fedstart.starts.checkpoint import Checkpoint
from fedstart.starts.fractals import Fractals
from fedstart.starts.random import Random
from fedstart.training import draw, train
from fedstart.types import Cost, Plan, Weights

BATCH = Model(ResNet18(norm="batch", width=4), (3, 16, 16), 5)


def run(start: Beginning, model: Model, federation: Federation, plan: Plan, seed: int = 4) -> Weights:
    """The weights after all rounds, the way a study runs a start."""
    federation, plan = start.prepare(federation, plan)
    weights = start.begin(model, seed)
    with LocalEngine(threads=1) as engine:
        for finished in train(start, model, federation, plan, weights, engine):
            weights = finished.state.weights
    return weights


# --- random and centralised ------------------------------------------------------------------------------------------


def test_the_starts_that_exist() -> None:
    assert names.discover("fedstart.starts") == {
        "random": Random,
        "centralized": Centralized,
        "checkpoint": Checkpoint,
        "fractals": Fractals,
    }


def test_random_is_the_initial_weights(model: Model, federation: Federation, plan: Plan) -> None:
    assert tree.fingerprint(run(Random(), model, federation, plan)) == tree.fingerprint(model.init(4))
    assert Random().prepare(federation, plan) == (federation, dataclasses.replace(plan, rounds=0))


def test_centralized_trains_one_client_that_holds_everything(federation: Federation, plan: Plan) -> None:
    pooled, changed = Centralized().prepare(federation, plan)
    assert (pooled.clients, changed) == (1, dataclasses.replace(plan, cohort=None))
    assert draw(pooled, changed, 1) == (0,)
    everything = np.sort(np.concatenate([federation.positions("train", k) for k in range(federation.clients)]))
    assert np.array_equal(pooled.positions("train", 0), everything)


def test_centralized_with_whole_batches_is_gradient_descent(model: Model, federation: Federation) -> None:
    plan = Plan(rounds=3, cohort=2, local_epochs=2, batch_size=10_000, lr=0.3, weight_decay=0.01)
    positions = federation.parts["train"].values
    inputs, labels = federation.batch(positions)
    expected = model.init(4)
    for _ in range(3 * 2):
        gradient = torch.func.grad(lambda w: cross_entropy(model.apply(w, inputs), labels))(expected)
        expected = {name: w - 0.3 * (gradient[name] + 0.01 * w) for name, w in expected.items()}
    found = run(Centralized(), model, federation, plan)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)


def test_centralized_takes_one_minibatch_per_local_step(model: Model, federation: Federation) -> None:
    federation, plan = Centralized().prepare(federation, Plan(rounds=2, local_steps=3, batch_size=8, cohort=1))
    with LocalEngine(threads=1) as engine:
        rounds = list(train(Centralized(), model, federation, plan, model.init(0), engine))
    assert [finished.cost.examples for finished in rounds] == [24, 24]


# --- on disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def start(model: Model, federation: Federation, plan: Plan) -> Start:
    card = Card.of(
        model,
        federation,
        plan,
        method="coprefl",
        settings={"balance": 0.5},
        seed=3,
        cost=Cost(examples=100, exchanges=4, bytes_down=50, bytes_up=60),
        scores={"accuracy": 81.25},
    )
    return Start(model.init(3), card)


def test_card_says_where_the_weights_come_from(start: Start, federation: Federation, plan: Plan) -> None:
    card = start.card
    assert (card.architecture, card.architecture_settings) == ("mlp", {"hidden": (6,)})
    assert (card.shape, card.classes, card.class_names) == ((4,), 3, ("a", "b", "c"))
    assert (card.data, card.data_fingerprint) == (federation.name, federation.fingerprint)
    assert (card.normalisation, card.plan) == ("none", plan)


def test_card_names_the_classes_in_the_order_of_the_outputs(model: Model, federation: Federation, plan: Plan) -> None:
    some = dataclasses.replace(federation, classes=(2, 0))
    card = Card.of(model, some, plan, method="random", settings={}, seed=0, cost=Cost())
    assert card.class_names == ("c", "a")


def test_start_comes_back_whole(tmp_path: Path, start: Start, model: Model) -> None:
    start.save(tmp_path / "deep" / "start")
    for path in (tmp_path / "deep" / "start", tmp_path / "deep" / "start" / "weights.safetensors"):
        again = Start.load(path)
        assert tree.fingerprint(again.weights) == tree.fingerprint(start.weights)
        assert again.card.model_dump(mode="json") == start.card.model_dump(mode="json")
        assert again.model() == model
    assert sorted(p.name for p in (tmp_path / "deep" / "start").iterdir()) == ["card.json", "weights.safetensors"]


def test_checkpoint_of_a_start_directory(tmp_path: Path, start: Start) -> None:
    start.save(tmp_path / "start")
    found = Checkpoint(path=str(tmp_path / "start")).begin(start.model(), 0)
    assert tree.fingerprint(found) == tree.fingerprint(start.weights)


def test_start_with_buffers_comes_back_whole(tmp_path: Path, start: Start) -> None:
    network = BATCH.describe()
    described = {"architecture": network["name"], "architecture_settings": network["settings"]}
    card = start.card.model_copy(update={**described, "shape": BATCH.shape, "classes": 5})
    Start(BATCH.init(1), card).save(tmp_path)
    assert tree.fingerprint(Start.load(tmp_path).weights) == tree.fingerprint(BATCH.init(1))
    assert Start.load(tmp_path).model() == BATCH


def test_equal_starts_are_equal_bytes(tmp_path: Path, start: Start) -> None:
    start.save(tmp_path / "a")
    backwards = Start(dict(reversed(tree.clone(start.weights).items())), start.card)
    backwards.save(tmp_path / "b")
    backwards.save(tmp_path / "b")
    for file in ("weights.safetensors", "card.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_transposed_and_shared_tensors_are_written(tmp_path: Path, start: Start) -> None:
    square = torch.arange(6.0).view(2, 3)
    Start({"a": square.T, "b": square}, start.card).save(tmp_path)
    assert torch.equal(Start.load(tmp_path).weights["a"], square.T)


@given(scores=st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False), max_size=4))
@settings(max_examples=25, deadline=None)
def test_scores_come_back_exactly(tmp_path_factory: pytest.TempPathFactory, scores: dict[str, float]) -> None:
    model = Model(MLP(hidden=()), (1,), 1)
    card = Card(
        **{**EMPTY, "plan": Plan(local_steps=1), "cost": Cost(), "scores": scores},
    )
    directory = tmp_path_factory.mktemp("start")
    Start(model.init(0), card).save(directory)
    assert Start.load(directory).card == card


EMPTY: dict[str, Any] = {
    "architecture": "mlp",
    "architecture_settings": {"hidden": []},
    "shape": (1,),
    "classes": 1,
    "class_names": ("one",),
    "normalisation": "none",
    "mean": (),
    "std": (),
    "method": "random",
    "settings": {},
    "seed": 0,
    "data": "none",
    "data_fingerprint": "",
}


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "card.json: format: "),
        ({"classes": "many"}, "card.json: classes: "),
        ({"method": None}, "card.json: method: "),
        ({"surprise": 1}, "card.json: unknown setting 'surprise'"),
        ({"plan": {"local_steps": 1, "local_epochs": 1}}, "card.json: plan: give exactly one"),
        ({"weights_sha256": None}, "card.json: not the card of a start"),
        ({"weights_sha256": "0"}, "weights.safetensors: these are not the weights that"),
    ],
)
def test_damaged_card(tmp_path: Path, start: Start, changes: dict[str, Any], message: str) -> None:
    start.save(tmp_path)
    edit(tmp_path / "card.json", **changes)
    with pytest.raises(ValueError) as caught:
        Start.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/{message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["card.json", "weights.safetensors"])
def test_missing_and_truncated_files(tmp_path: Path, start: Start, file: str) -> None:
    start.save(tmp_path)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=file):
        Start.load(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(ValueError, match=f"{file}: no such file"):
        Start.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "mpl"}, "unknown model 'mpl'; did you mean 'mlp'?"),
        ({"architecture_settings": {"hiden": [6]}}, "card.json model 'mlp': unknown setting 'hiden'"),
        ({"classes": 4}, "tensor 'fc.weight' has shape (3, 6), but the model needs (4, 6)"),
    ],
)
def test_card_of_another_model(tmp_path: Path, start: Start, changes: dict[str, Any], message: str) -> None:
    start.save(tmp_path)
    edit(tmp_path / "card.json", **changes)
    with pytest.raises(ValueError) as caught:
        Start.load(tmp_path).model()
    assert str(caught.value).startswith(message)


def test_a_start_moves_to_another_task(tmp_path: Path, start: Start) -> None:
    start.save(tmp_path)
    loaded = Start.load(tmp_path)
    model, weights = loaded.model().transfer(loaded.weights, 2, seed=5)
    assert torch.equal(weights["hidden1.weight"], start.weights["hidden1.weight"])
    assert model.apply(weights, torch.zeros(3, 4)).shape == (3, 2)
