"""Names of torchvision, timm and Hugging Face, wrapped or bare: each tensor arrives where it belongs, or is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedstart import keys, tree
from fedstart.cli import main
from fedstart.models import Model
from fedstart.models.resnet18 import ResNet18
from fedstart.starts import _naming
from fedstart.starts.checkpoint import Checkpoint
from fedstart.types import Weights

MODEL = Model(ResNet18(norm="batch", stem="imagenet", width=4), (3, 32, 32), 5)
GROUP = dataclasses.replace(MODEL, architecture=ResNet18(norm="group", stem="imagenet", width=4))
LAYERS = {
    "conv1": "resnet.embedder.embedder.convolution",
    "bn1": "resnet.embedder.embedder.normalization",
    "layer1.0.conv1": "resnet.encoder.stages.0.layers.0.layer.0.convolution",
    "layer1.0.bn1": "resnet.encoder.stages.0.layers.0.layer.0.normalization",
    "layer1.1.conv2": "resnet.encoder.stages.0.layers.1.layer.1.convolution",
    "layer2.0.downsample.0": "resnet.encoder.stages.1.layers.0.shortcut.convolution",
    "layer2.0.downsample.1": "resnet.encoder.stages.1.layers.0.shortcut.normalization",
    "layer3.1.bn2": "resnet.encoder.stages.2.layers.1.layer.1.normalization",
    "layer4.0.conv1": "resnet.encoder.stages.3.layers.0.layer.0.convolution",
    "fc": "classifier.1",
}
"""Read off the state dict of transformers 5.23.0, not off the table that is tested."""


def theirs(name: str) -> str:
    """Hugging Face's name for one of torchvision's tensors, told apart by the words in it."""
    layer, _, kind = name.rpartition(".")
    if layer in LAYERS:
        return f"{LAYERS[layer]}.{kind}"
    stage, block, *place = layer.removeprefix("layer").split(".")
    home = f"resnet.encoder.stages.{int(stage) - 1}.layers.{block}"
    if place[0] == "downsample":
        return f"{home}.shortcut.{('convolution', 'normalization')[int(place[1])]}.{kind}"
    word = "convolution" if place[0].startswith("conv") else "normalization"
    return f"{home}.layer.{int(place[0][-1]) - 1}.{word}.{kind}"


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Every tensor with values of its own: two of one shape that are exchanged do not pass for each other."""
    draws = keys.generator(0, "naming")
    template = MODEL.init(0)
    return {
        name: torch.from_numpy(np.asarray(9 * draws.random(tuple(shape)) + 1)).to(template[name].dtype)
        for name, shape in MODEL.shapes.items()
    }


def begun(path: Path, content: Any, model: Model = MODEL, seed: int = 0) -> Weights:
    torch.save(content, path)
    return Checkpoint(path=str(path)).begin(model, seed)


def same(found: Weights, expected: Weights) -> bool:
    assert found.keys() == MODEL.shapes.keys()
    return all(torch.equal(found[name], expected[name]) for name in found)


def renamed(weights: Weights, by: Callable[[str], str]) -> Weights:
    return {by(name): tensor for name, tensor in weights.items()}


# --- Hugging Face ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "other"), LAYERS.items())
def test_each_layer_of_hugging_face_has_the_name_of_torchvision(layer: str, other: str) -> None:
    shapes = {f"{layer}.weight": torch.Size([3])}
    assert _naming.ours({f"{other}.weight": torch.zeros(3)}, shapes) == {f"{other}.weight": f"{layer}.weight"}


@pytest.mark.parametrize("wrapper", ["", "module.", "model._orig_mod."])
def test_hugging_face_classifier(tmp_path: Path, weights: Weights, wrapper: str) -> None:
    assert same(begun(tmp_path / "w.pt", renamed(weights, lambda name: wrapper + theirs(name))), weights)


def test_hugging_face_network_without_a_classifier_gets_the_fresh_head(tmp_path: Path, weights: Weights) -> None:
    body = {name: tensor for name, tensor in weights.items() if name not in MODEL.head}
    content = renamed(body, lambda name: theirs(name).removeprefix("resnet."))
    found = begun(tmp_path / "w.pt", content, seed=7)
    assert same(found, weights | MODEL.fresh_head(7))


def test_hugging_face_classifier_of_other_classes_gets_the_fresh_head(tmp_path: Path, weights: Weights) -> None:
    many = dataclasses.replace(MODEL, classes=80)
    found = begun(tmp_path / "w.pt", renamed(weights | many.fresh_head(1), theirs), seed=7)
    assert same(found, weights | MODEL.fresh_head(7))


def test_hugging_face_in_a_groupnorm_model_leaves_the_running_statistics(tmp_path: Path, weights: Weights) -> None:
    found = begun(tmp_path / "w.pt", renamed(weights, theirs), GROUP)
    assert tree.fingerprint(found) == tree.fingerprint({name: weights[name] for name in GROUP.shapes})


def test_logits_are_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        layer_type="basic", depths=[2] * 4, hidden_sizes=[64, 128, 256, 512], embedding_size=64, num_labels=7
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = transformers.ResNetForImageClassification(config).eval()
        # At its own values BatchNorm would be the same whichever layer it was taken for.
        for name, tensor in network.state_dict().items():
            if "normalization" in name and tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    model = Model(ResNet18(norm="batch", stem="imagenet"), (3, 64, 64), 7)
    found = begun(tmp_path / "w.pt", network.state_dict(), model)
    images = torch.from_numpy(keys.generator(1, "naming").normal(size=(4, 3, 64, 64))).float()
    with torch.inference_mode():
        expected, logits = network(images).logits, model.apply(found, images)
    assert float(expected.std()) > 1e-3
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


# --- wrappers and nesting --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrapper",
    ["module.", "_orig_mod.", "model.", "backbone.", "timm_model.", "module._orig_mod.", "_orig_mod.module."],
)
def test_a_wrapper_of_all_names_is_taken_away(tmp_path: Path, weights: Weights, wrapper: str) -> None:
    body = {name: tensor for name, tensor in weights.items() if name not in MODEL.head}
    for content in (weights, body):
        found = begun(tmp_path / "w.pt", renamed(content, lambda name: wrapper + name), seed=3)
        assert same(found, MODEL.fresh_head(3) | {name: weights[name] for name in MODEL.shapes if name in content})


def test_wrappers_are_those_of_torch(tmp_path: Path) -> None:
    module = MODEL.module()
    for wrapped in (torch.nn.DataParallel(module), torch.compile(module, backend="eager")):
        content = wrapped.state_dict()
        assert "conv1.weight" not in content
        assert same(begun(tmp_path / "w.pt", content), module.state_dict())


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_state_dict_among_other_things(tmp_path: Path, weights: Weights, key: str) -> None:
    content = {"epoch": 3, key: dict(weights), "optimizer": {"param_groups": [{"lr": 0.1}]}}
    assert same(begun(tmp_path / "w.pt", content), weights)


def test_a_wrapper_of_some_names_only_is_an_error(tmp_path: Path, weights: Weights) -> None:
    content = {**renamed(weights, lambda name: f"module.{name}"), "n_averaged": torch.tensor(3)}
    with pytest.raises(
        ValueError, match=r"w\.pt: unknown tensor 'module\.conv1\.weight'; did you mean 'conv1\.weight'"
    ):
        begun(tmp_path / "w.pt", content)


# --- what is not changed ---------------------------------------------------------------------------------------------


def test_names_that_fit_stay(weights: Weights) -> None:
    for given in (weights, {"fc.weight": torch.zeros(1)}, {}):
        assert _naming.ours(given, MODEL.shapes) == {name: name for name in given}


def test_names_of_the_models_own_stay_though_they_look_like_wrappers() -> None:
    shapes = {"model.weight": torch.Size([2]), "weight": torch.Size([3])}
    assert _naming.ours({"model.weight": torch.zeros(3)}, shapes) == {"model.weight": "model.weight"}


def test_names_that_would_not_fit_better_stay() -> None:
    given = {"module.conv1.weight": torch.zeros(2, 2)}
    assert _naming.ours(given, MODEL.shapes) == {"module.conv1.weight": "module.conv1.weight"}


def test_of_equally_good_ways_the_least_change() -> None:
    given = {"module.classifier.1.weight": torch.zeros(2), "module.a": torch.zeros(1)}
    shapes = {"classifier.1.weight": torch.Size([2]), "fc.weight": torch.Size([2]), "a": torch.Size([1])}
    assert _naming.ours(given, shapes) == {name: name.removeprefix("module.") for name in given}


def test_two_tensors_that_would_share_a_name_stay_an_error(tmp_path: Path, weights: Weights) -> None:
    content = renamed(weights, theirs) | {"conv1.weight": weights["conv1.weight"]}
    with pytest.raises(ValueError, match=r"unknown tensor 'resnet\.embedder\.embedder\.convolution\.weight'"):
        begun(tmp_path / "w.pt", content)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        # A deeper network's block, a squeeze-and-excitation layer, timm's resnet18d and another head.
        (
            "resnet.encoder.stages.0.layers.2.layer.0.convolution.weight",
            "unknown tensor 'layer1.2.conv1.weight'; did you mean 'layer1.1.conv1.weight'",
        ),
        ("resnet.encoder.stages.0.layers.0.se.fc1.weight", "unknown tensor 'resnet.encoder.stages.0.layers.0.se"),
        ("layer2.0.downsample.2.weight", "unknown tensor 'layer2.0.downsample.2.weight'; did you mean"),
        ("classifier.2.weight", "unknown tensor 'classifier.2.weight'"),
    ],
)
def test_a_tensor_that_nothing_is_known_of_is_an_error(
    tmp_path: Path, weights: Weights, extra: str, message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        begun(tmp_path / "w.pt", renamed(weights, theirs) | {extra: torch.zeros(1)})
    told = str(caught.value)
    assert told.startswith(f"{tmp_path / 'w.pt'}: {message}") and "\n" not in told
    assert extra in told


def test_a_body_tensor_that_is_missing_is_an_error(tmp_path: Path, weights: Weights) -> None:
    content = {theirs(name): tensor for name, tensor in weights.items() if name != "layer3.1.conv1.weight"}
    with pytest.raises(ValueError, match=re.escape("the weights lack tensor 'layer3.1.conv1.weight'")):
        begun(tmp_path / "w.pt", content)


def test_files_older_than_the_count_of_batches(tmp_path: Path, weights: Weights) -> None:
    old = {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}
    found = begun(tmp_path / "w.pt", old)
    counts = {name: torch.tensor(0) for name in weights if name not in old}
    assert len(counts) == 20 and same(found, weights | counts)


# --- fedstart diagnose -----------------------------------------------------------------------------------------------


def test_diagnose_takes_a_start_and_an_end_with_foreign_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = Model(ResNet18(norm="batch", width=4), (1, 8, 8), 4)
    first, last = model.init(1), model.init(2)
    torch.save(renamed(first, theirs), "start.pt")
    torch.save(renamed(last, lambda name: f"module.{theirs(name)}"), "end.pt")
    data = "--data digits --classes 0-3 --clients 4 --probes movement"
    line = f"diagnose start.pt {data} --model resnet18 model.norm=batch model.width=4 --end end.pt --out x -q"
    assert main(shlex.split(line)) == 0
    written = json.loads(Path("x/diagnosis.json").read_text())
    (result,) = written["probes"][0]["results"]

    def flat(weights: Weights) -> Tensor:
        return torch.cat([weights[name].double().flatten() for name in model.parameters])

    distance = float(np.linalg.norm((flat(first) - flat(last)).numpy()))
    assert result["values"]["to_end"] == pytest.approx(distance, rel=1e-5)
