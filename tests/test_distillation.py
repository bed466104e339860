"""Distillation after surgery: a converted network fitted to what the original says of unlabelled inputs."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fedstart import keys, tree
from fedstart.models import Model, calibrated, distilled, renormalise
from fedstart.models.custom import Custom
from fedstart.models.resnet18 import ResNet18
from fedstart.types import Diverged, Weights

HERE = __name__
SHAPE = (3, 8, 8)
MODEL = Model(ResNet18(norm="batch", width=4), SHAPE, 4)


class Small(nn.Module):
    """A convolution that may be kept from training, BatchNorm, dropout and a head."""

    def __init__(self, shape: tuple[int, ...], classes: int, trains: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(shape[0], 4, 3, padding=1).requires_grad_(trains)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(4, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(self.drop(torch.relu(self.norm(self.conv(inputs))).mean(dim=(2, 3))))


def small(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Small(shape, classes, trains=True)


def kept(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Small(shape, classes, trains=False)


SMALL = Model(Custom(factory=f"{HERE}:small", head="out"), SHAPE, 4)
KEPT = Model(Custom(factory=f"{HERE}:kept", head="out"), SHAPE, 4)


def images(count: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Noisy pictures of four classes, each with a pattern of its own, and their labels."""
    patterns = keys.generator(0, "test-distillation-patterns").normal(size=(4, *SHAPE))
    draws = keys.generator(seed, "test-distillation-images")
    labels = draws.integers(0, 4, count)
    pictures = patterns[labels] + draws.normal(size=(count, *SHAPE))
    inputs = torch.from_numpy(pictures).to(dtype).contiguous(memory_format=torch.channels_last)
    return inputs, torch.from_numpy(labels)


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Those of the ResNet after a few steps of training, with the running statistics of these."""
    found = tree.clone(MODEL.init(0))
    parameters = [found[name].requires_grad_() for name in MODEL.parameters]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    for step in range(40):
        inputs, labels = images(32, 100 + step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(MODEL.apply(found, inputs, training=True), labels).backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in found.items()}


def distance(original: Weights, model: Model, found: Weights, inputs: Tensor) -> float:
    """Mean squared error of the model's logits to those of the ResNet."""
    with torch.no_grad():
        return float((model.apply(found, inputs) - MODEL.apply(original, inputs)).square().mean())


def test_logits_come_nearer_on_inputs_seen_and_not_seen(weights: Weights) -> None:
    inputs, unseen = images(160, 1)[0], images(160, 2)[0]
    model, moved = renormalise(MODEL, weights, "group")
    begun = calibrated(MODEL, weights, model, moved, inputs.split(32))
    before = tree.fingerprint(weights), tree.fingerprint(begun), inputs.clone()
    found = distilled(MODEL, weights, model, begun, inputs.split(32), epochs=20, lr=3e-3)
    assert (tree.fingerprint(weights), tree.fingerprint(begun)) == before[:2]
    assert torch.equal(inputs, before[2]) and not inputs.requires_grad
    assert distance(weights, model, found, inputs) < 0.3 * distance(weights, model, begun, inputs)
    assert distance(weights, model, found, unseen) < 0.5 * distance(weights, model, begun, unseen)
    assert found.keys() == begun.keys() and list(found) == list(begun)
    assert all(not torch.equal(found[name], begun[name]) for name in model.parameters)
    assert not any(tensor.requires_grad for tensor in found.values())


def test_same_arguments_same_bits_and_the_seed_orders_the_batches(weights: Weights) -> None:
    inputs = images(96, 1)[0].split(16)
    model, moved = renormalise(MODEL, weights, "group")

    def run(seed: int) -> str:
        return tree.fingerprint(distilled(MODEL, weights, model, moved, inputs, epochs=2, seed=seed))

    before = torch.random.get_rng_state()
    assert run(0) == run(0) != run(1)
    with torch.inference_mode():
        assert run(1) == run(1) != run(0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_steps_are_adam_s_with_a_cosine_rate() -> None:
    """Against Adam and the cosine as their definitions have them, on one batch."""
    inputs = images(12, 1, torch.float64)[0]
    weights = {name: t.double() if t.is_floating_point() else t for name, t in SMALL.init(1).items()}
    model, begun = renormalise(SMALL, weights, "layer")
    found = distilled(SMALL, weights, model, begun, [inputs], epochs=4, lr=0.02)
    wanted, held = SMALL.apply(weights, inputs), tree.clone(begun)
    first = {name: torch.zeros_like(held[name]) for name in model.parameters}
    second = tree.clone(first)
    for step in range(4):
        leaves = {name: held[name].clone().requires_grad_() for name in model.parameters}
        loss = (model.apply({**held, **leaves}, inputs) - wanted).square().mean()
        rate = 0.02 * (1 + math.cos(math.pi * step / 4)) / 2
        for name, gradient in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            mean, square = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.999 ** (step + 1))
            held[name] = held[name] - rate * mean / (square.sqrt() + 1e-8)
    # Rounding is made large where a gradient is 0 but for rounding, as Adam divides by its size: not in the head.
    for name in ("out.weight", "out.bias", "norm.weight"):
        assert torch.allclose(found[name], held[name], rtol=1e-9, atol=1e-12), name
        assert not torch.allclose(found[name], begun[name], rtol=1e-3), name


def test_no_epochs_leave_the_weights_as_they_are(weights: Weights) -> None:
    model, moved = renormalise(MODEL, weights, "group")
    found = distilled(MODEL, weights, model, moved, [images(8, 1)[0]], epochs=0)
    assert tree.fingerprint(found) == tree.fingerprint(moved)
    assert all(found[name].data_ptr() != moved[name].data_ptr() for name in moved)


def test_identical_networks_stay_as_they_are(weights: Weights) -> None:
    inputs = images(64, 1)[0]
    same = distilled(MODEL, weights, MODEL, weights, inputs.split(16), epochs=3)
    assert tree.fingerprint(same) == tree.fingerprint(weights)
    model, folded = renormalise(MODEL, weights, "folded")
    found = distilled(MODEL, weights, model, folded, inputs.split(16), epochs=3, lr=1e-5)
    # Twelve steps, each of at most about the rate.
    assert all(float((found[name] - folded[name]).abs().max()) <= 12 * 1e-5 for name in folded)
    assert distance(weights, model, found, inputs) < 1e-4 * float(MODEL.apply(weights, inputs).square().mean())


@pytest.mark.parametrize("to", ["batch", "frozen"])
def test_running_statistics_stay_as_they_are(weights: Weights, to) -> None:
    inputs = images(32, 1)[0]
    model, moved = renormalise(MODEL, weights, to, keep_affine=False)
    found = distilled(MODEL, weights, model, moved, inputs.split(16), epochs=2, lr=1e-3)
    buffers = [name for name in moved if "running" in name or "tracked" in name]
    assert buffers and all(torch.equal(found[name], moved[name]) for name in buffers)
    assert distance(weights, model, found, inputs) < distance(weights, model, moved, inputs)


def test_types_are_kept(weights: Weights) -> None:
    model, moved = renormalise(MODEL, weights, "group")
    half = {name: tensor if name == "fc.bias" else tensor.bfloat16() for name, tensor in moved.items()}
    original = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    found = distilled(MODEL, original, model, half, [images(16, 1)[0]], epochs=2, lr=1e-2)
    assert [tensor.dtype for tensor in found.values()] == [tensor.dtype for tensor in half.values()]
    assert not torch.equal(found["fc.weight"], half["fc.weight"])


def test_a_convolution_that_is_not_trained_stays(tmp_path: Path) -> None:
    """In a process of its own: torch 2.13 crashes there without a gradient of the images."""
    code = f"""
import torch
from {HERE} import KEPT, images
from fedstart.models import distilled, renormalise
weights = KEPT.init(0)
model, moved = renormalise(KEPT, weights, "group")
found = distilled(KEPT, weights, model, moved, images(16, 1)[0].split(8), epochs=2, lr=1e-2)
print(torch.equal(found["conv.weight"], moved["conv.weight"]), torch.equal(found["out.weight"], moved["out.weight"]))
"""
    paths = [str(Path(__file__).parent), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True False\n"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batches": []}, "distillation needs at least one input"),
        ({"batches": [torch.zeros(0, *SHAPE)]}, "distillation needs at least one input"),
        (
            {"batches": [torch.zeros(2, 3, 9, 9)]},
            "the original and all inputs must have the model's shape (3, 8, 8), got (3, 9, 9)",
        ),
        (
            {"original": Model(MODEL.architecture, (3, 9, 9), 4)},
            "the original and all inputs must have the model's shape (3, 8, 8), got (3, 9, 9)",
        ),
        (
            {"original": Model(MODEL.architecture, SHAPE, 3)},
            "tensor 'fc.weight' has shape (4, 32), but the model needs",
        ),
        ({"other head": 3}, "the original must have the model's 4 classes, got 3"),
        ({"epochs": -1}, "epochs must be a whole number of at least 0, got -1"),
        ({"epochs": 1.5}, "epochs must be a whole number of at least 0, got 1.5"),
        ({"epochs": True}, "epochs must be a whole number of at least 0, got True"),
        ({"lr": 0.0}, "lr must be above 0 and at most 1, got 0.0"),
        ({"lr": -1e-3}, "lr must be above 0 and at most 1, got -0.001"),
        ({"lr": 1.5}, "lr must be above 0 and at most 1, got 1.5"),
        ({"lr": math.nan}, "lr must be above 0 and at most 1, got nan"),
        ({"weights": {}}, "the weights lack tensor 'conv1.weight' of shape (4, 3, 3, 3)"),
        ({"original_weights": {}}, "the weights lack tensor 'conv1.weight' of shape (4, 3, 3, 3)"),
    ],
)
def test_refused_in_one_line(weights: Weights, changed: dict, message: str) -> None:
    model, moved = renormalise(MODEL, weights, "group")
    given = {"original": MODEL, "original_weights": weights, "model": model, "weights": moved}
    given |= {"batches": [images(4, 1)[0]], "epochs": 1, "lr": 1e-4, **changed}
    if classes := given.pop("other head", None):
        given["original"], given["original_weights"] = MODEL.transfer(weights, classes, 0)
    with pytest.raises(ValueError) as caught:
        distilled(**given)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_an_input_that_is_no_number_is_named_by_its_epoch(weights: Weights) -> None:
    model, moved = renormalise(MODEL, weights, "group")
    inputs = images(32, 1)[0]
    inputs[5, 0, 0, 0] = math.nan
    with pytest.raises(Diverged, match=r"^epoch 1: the loss or a weight is NaN or infinite; a smaller lr may help$"):
        distilled(MODEL, weights, model, moved, inputs.split(8), epochs=3)
