"""Weights from a file as a start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from fedstart import tree
from fedstart.data.federation import Federation
from fedstart.models import Model
from fedstart.models.resnet18 import ResNet18
from fedstart.starts.checkpoint import Checkpoint
from fedstart.types import Plan

GROUP = Model(ResNet18(width=4), (3, 16, 16), 5)
BATCH = Model(ResNet18(norm="batch", width=4), (3, 16, 16), 5)


def checkpoint(path: Path, content: Any) -> Checkpoint:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return Checkpoint(path=str(path))


@pytest.mark.parametrize("file", ["w.safetensors", "w.pt", "w.pth"])
def test_checkpoint_is_the_file(tmp_path: Path, file: str, federation: Federation, plan: Plan) -> None:
    weights = BATCH.init(1)
    start = checkpoint(tmp_path / file, weights)
    assert tree.fingerprint(start.begin(BATCH, 9)) == tree.fingerprint(weights)
    assert start.prepare(federation, plan)[1].rounds == 0


def test_checkpoint_reads_a_nested_state_dict_and_brings_it_to_float32(tmp_path: Path) -> None:
    weights = {name: tensor.half() for name, tensor in GROUP.init(1).items()}
    found = checkpoint(tmp_path / "w.pt", {"epoch": 3, "state_dict": weights}).begin(GROUP, 0)
    assert all(torch.equal(found[name], weights[name].float()) for name in GROUP.shapes)


def test_checkpoint_reads_a_parameter_without_its_gradient(tmp_path: Path) -> None:
    state = {name: torch.nn.Parameter(tensor) for name, tensor in GROUP.init(1).items()}
    found = checkpoint(tmp_path / "w.pt", state).begin(GROUP, 0)
    assert not any(tensor.requires_grad for tensor in found.values())


def test_batchnorm_checkpoint_in_a_groupnorm_model(tmp_path: Path) -> None:
    weights = BATCH.init(1)
    weights["layer1.0.bn1.weight"] += 1
    found = checkpoint(tmp_path / "w.safetensors", weights).begin(GROUP, 0)
    assert set(found) == set(GROUP.shapes) < set(weights)
    assert all(torch.equal(found[name], weights[name]) for name in GROUP.shapes)


def test_groupnorm_checkpoint_in_a_batchnorm_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"w.safetensors: the weights lack tensor 'bn1.running_mean'"):
        checkpoint(tmp_path / "w.safetensors", GROUP.init(1)).begin(BATCH, 0)


@pytest.mark.parametrize("head", ["other", "absent", "half"])
def test_checkpoint_with_another_head_gets_the_fresh_one(tmp_path: Path, head: str) -> None:
    many = Model(GROUP.architecture, GROUP.shape, 80 if head == "other" else 5)
    weights = many.init(1)
    gone = {"other": (), "absent": many.head, "half": many.head[:1]}[head]
    start = checkpoint(tmp_path / "w.pt", {name: tensor for name, tensor in weights.items() if name not in gone})
    found, fresh = start.begin(GROUP, 7), GROUP.transfer(GROUP.init(2), 5, seed=7)[1]
    for name in GROUP.shapes:
        assert torch.equal(found[name], fresh[name] if name in GROUP.head else weights[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv1.weight": None}, "the weights lack tensor 'conv1.weight' of shape (4, 3, 3, 3)"),
        ({"conv1.weight": torch.zeros(4, 3, 7, 7)}, "tensor 'conv1.weight' has shape (4, 3, 7, 7), but the model"),
        ({"layer5.0.conv1.weight": torch.zeros(1)}, "unknown tensor 'layer5.0.conv1.weight'; did you mean"),
        ({"layer5.0.bn1.running_mean": torch.zeros(1)}, "unknown tensor 'layer5.0.bn1.running_mean'"),
        ({"conv1.weight": torch.full((4, 3, 3, 3), torch.nan)}, "the weights hold NaN or infinity"),
    ],
)
def test_checkpoint_that_does_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    weights = {name: tensor for name, tensor in {**GROUP.init(1), **changes}.items() if tensor is not None}
    with pytest.raises(ValueError) as caught:
        checkpoint(tmp_path / "w.safetensors", weights).begin(GROUP, 0)
    assert str(caught.value).startswith(f"{tmp_path / 'w.safetensors'}: {message}")
    assert "\n" not in str(caught.value)


class Code:
    """An object that unpickling would run code for."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("touched"),))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("w.npz", b"", "unknown kind of weights file (allowed: .safetensors, .pt, .pth)"),
        ("none.pt", None, "no such file"),
        ("w.safetensors", b"damaged", "cannot be read as weights"),
        ("w.pt", b"damaged", "cannot be read as weights"),
        ("w.pt", b"", "cannot be read as weights"),
        ("w.pt", Code(), "cannot be read as weights"),
        ("w.pt", [torch.zeros(1)], "holds list (allowed: a state dict of tensors)"),
        ("w.pt", {"epoch": 3}, "holds dict (allowed: a state dict of tensors)"),
    ],
)
def test_files_that_are_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / file
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError) as caught:
        Checkpoint(path=str(path)).begin(GROUP, 0)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)
    assert not Path("touched").exists()
