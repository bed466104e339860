"""Architectures, and the functional view of them."""

from __future__ import annotations

import functools
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedstart import names, tree
from fedstart.models import Model, load_architecture
from fedstart.models.cnn import CNN
from fedstart.models.cnn3x3 import CNN3x3
from fedstart.models.mlp import MLP
from fedstart.models.plain_cnn import PlainCNN
from fedstart.models.renormalised import Renormalised
from fedstart.models.resnet18 import ResNet18
from fedstart.models.simple_cnn import SimpleCNN
from fedstart.models.two_layer_cnn import TwoLayerCNN
from fedstart.models.vgg import VGG

BATCH = {"norm": "batch", "width": 4}
SMALL = {
    "mlp": Model(MLP(hidden=(7, 6)), (3, 4), 5),
    "cnn": Model(CNN(channels=(2, 3), hidden=8), (1, 8, 9), 5),
    "cnn3x3": Model(CNN3x3(channels=(2, 3), hidden=8), (3, 9, 8), 5),
    "simple_cnn": Model(SimpleCNN(channels=(2, 3), hidden=8), (3, 9, 8), 5),
    "two_layer_cnn": Model(TwoLayerCNN(filters=3, sigma_0=0.5), (2, 9), 5),
    "two_layer_cnn images": Model(TwoLayerCNN(filters=3, sigma_0=0.5, patch=2), (3, 4, 6), 5),
    "plain_cnn group": Model(PlainCNN(channels=(2, 4, 6)), (3, 9, 8), 5),
    "plain_cnn none": Model(PlainCNN(channels=(2, 3, 4), norm="none"), (1, 8, 9), 5),
    "plain_cnn batch": Model(PlainCNN(channels=(2, 3, 4), norm="batch"), (1, 8, 9), 5),
    "vgg group": Model(VGG(width=4), (3, 16, 17), 5),
    "vgg none": Model(VGG(width=2, norm="none"), (3, 16, 16), 5),
    "vgg batch": Model(VGG(width=2, norm="batch"), (3, 16, 32), 5),
    "resnet18 group": Model(ResNet18(width=4), (3, 16, 16), 5),
    "resnet18 batch": Model(ResNet18(norm="batch", width=4), (3, 16, 16), 5),
    "resnet18 imagenet": Model(ResNet18(stem="imagenet", width=4), (1, 32, 32), 5),
    "renormalised group": Model(Renormalised("resnet18", {**BATCH, "width": 8}, "group", 4), (3, 16, 16), 5),
    "renormalised frozen": Model(Renormalised("resnet18", BATCH, "frozen"), (3, 16, 16), 5),
    "renormalised folded": Model(Renormalised("resnet18", BATCH, "folded"), (3, 16, 16), 5),
}
# In training, BatchNorm writes its running statistics, which a transform does not allow.
WITHOUT_STATISTICS = [name for name in SMALL if not name.endswith(" batch")]
each_model = pytest.mark.parametrize("model", SMALL.values(), ids=SMALL.keys())


def batch(model: Model, size: int = 4, seed: int = 1) -> torch.Tensor:
    return torch.randn(size, *model.shape, generator=torch.Generator().manual_seed(seed))


# --- the functional view ---------------------------------------------------------------------------------------------


@each_model
def test_every_architecture_keeps_the_contract(model: Model) -> None:
    weights = model.init(0)
    assert set(weights) == set(model.shapes)
    assert all(t.dtype == torch.float32 for t in weights.values() if t.is_floating_point())
    assert not any(t.requires_grad for t in weights.values())
    assert model.head == (("filters.weight",) if "filters.weight" in weights else ("fc.weight", "fc.bias"))
    assert model.apply(weights, batch(model)).shape == (4, 5)
    assert model.module().load_state_dict(weights).missing_keys == []
    architecture = load_architecture(model.describe()["name"], model.describe()["settings"])
    assert Model(architecture, model.shape, 5) == model


def test_no_layer_works_in_place() -> None:
    found = [m for model in SMALL.values() for m in model.module().modules() if getattr(m, "inplace", False)]
    assert found == []


def test_every_file_is_covered_here() -> None:
    assert set(names.discover("fedstart.models")) == {name.split()[0] for name in SMALL} | {"custom"}


@each_model
def test_init_depends_on_the_seed_only(model: Model) -> None:
    first, again = tree.fingerprint(model.init(3)), tree.fingerprint(Model(*model.__reduce__()[1]).init(3))
    assert first == again != tree.fingerprint(model.init(4))


@each_model
def test_the_global_generator_is_left_alone(model: Model) -> None:
    before = torch.get_rng_state()
    weights = Model(*model.__reduce__()[1]).init(3)
    model.transfer(weights, 2, seed=1)
    model.module()
    assert torch.equal(torch.get_rng_state(), before)


@each_model
def test_apply_is_the_module(model: Model) -> None:
    weights, inputs = model.init(5), batch(model)
    module = model.module()
    module.load_state_dict(weights)
    with torch.no_grad():
        assert torch.equal(model.apply(weights, inputs), module.eval()(inputs))
        assert torch.equal(model.apply(weights, inputs, training=True), module.train()(inputs))
    assert all(torch.equal(weights[name], value) for name, value in module.state_dict().items())


@each_model
def test_apply_changes_no_weights_in_evaluation(model: Model) -> None:
    weights = model.init(5)
    before = tree.fingerprint(weights)
    model.apply(weights, batch(model)).sum()
    assert tree.fingerprint(weights) == before


def test_batchnorm_statistics_follow_the_batch_in_training() -> None:
    model = SMALL["resnet18 batch"]
    weights, inputs = model.init(5), batch(model)
    expected = torch.nn.functional.conv2d(inputs, weights["conv1.weight"], padding=1).mean(dim=(0, 2, 3)) * 0.1
    model.apply(weights, inputs, training=True)
    torch.testing.assert_close(weights["bn1.running_mean"], expected)
    assert int(weights["layer4.1.bn2.num_batches_tracked"]) == 1


@pytest.mark.parametrize("name", WITHOUT_STATISTICS)
def test_functional_gradient_is_autograd(name: str) -> None:
    model = SMALL[name]
    weights, inputs = model.init(5), batch(model)
    labels = torch.tensor([0, 1, 2, 3])

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(model.apply(parameters, inputs, training=True), labels)

    gradient = torch.func.grad(loss)(weights)
    module = model.module()
    module.load_state_dict(weights)
    nn.functional.cross_entropy(module(inputs), labels).backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(gradient[key], parameter.grad)


@pytest.mark.parametrize("name", WITHOUT_STATISTICS)
def test_second_derivative_is_the_central_difference_of_the_first(name: str) -> None:
    model = SMALL[name]
    weights = {key: tensor.double() for key, tensor in model.init(5).items()}
    inputs, labels = batch(model).double(), torch.tensor([0, 1, 2, 3])
    direction = {key: torch.sin(torch.arange(t.numel())).double().view(t.shape) for key, t in weights.items()}

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(model.apply(parameters, inputs, training=True), labels)

    _, pull = torch.func.vjp(torch.func.grad(loss), weights)
    (product,) = pull(direction)
    forward, back = (torch.func.grad(loss)(tree.add(weights, direction, scale=step)) for step in (1e-7, -1e-7))
    expected = tree.scale(tree.subtract(forward, back), 0.5e7)
    assert tree.norm(tree.subtract(product, expected)) < 1e-4 * tree.norm(expected)


@pytest.mark.parametrize("name", WITHOUT_STATISTICS)
def test_a_model_may_be_used_first_inside_a_transform(name: str) -> None:
    known = SMALL[name]
    weights, inputs = known.init(5), batch(known)
    twice = {key: torch.stack([tensor, tensor]) for key, tensor in weights.items()}
    before = torch.get_rng_state()
    for use in ("grad", "hessian product", "vmap", "inference"):
        model = Model(known.architecture, known.shape, known.classes)
        total = functools.partial(lambda fresh, w: fresh.apply(w, inputs).square().sum(), model)
        if use == "grad":
            torch.func.grad(total)(weights)
        elif use == "hessian product":
            torch.func.vjp(torch.func.grad(total), weights)[1](weights)
        elif use == "vmap":
            torch.vmap(total)(twice)
        else:
            with torch.inference_mode():
                total(weights)
        assert model.shapes == known.shapes
        assert not any(t.is_inference() for t in model.init(0).values())
        first, second = torch.func.grad(total)(weights), torch.func.grad(total)(model.init(5))
        assert tree.fingerprint(first) == tree.fingerprint(second)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", WITHOUT_STATISTICS)
def test_vmap_over_weights(name: str) -> None:
    model = SMALL[name]
    several, inputs = [model.init(seed) for seed in range(3)], batch(model)
    stacked = {key: torch.stack([weights[key] for weights in several]) for key in model.shapes}
    logits = torch.vmap(model.apply, in_dims=(0, None))(stacked, inputs)
    for weights, rows in zip(several, logits, strict=True):
        torch.testing.assert_close(rows, model.apply(weights, inputs), rtol=1e-4, atol=1e-5)


def test_apply_takes_float64() -> None:
    model = SMALL["resnet18 group"]
    weights = {name: tensor.double() for name, tensor in model.init(0).items()}
    assert model.apply(weights, batch(model).double()).dtype == torch.float64
    assert {t.dtype for t in model.transfer(weights, 2, seed=0)[1].values()} == {torch.float64}


def test_threads_do_not_disturb_one_another() -> None:
    model = Model(ResNet18(width=4), (3, 16, 16), 5)
    together = threading.Barrier(4)
    global_state = torch.get_rng_state()

    def work(seed: int) -> tuple[str, torch.Tensor]:
        together.wait()
        weights, inputs = model.init(seed), batch(model)
        with torch.no_grad():
            logits = [model.apply(weights, inputs) for _ in range(20)]
        assert all(torch.equal(rows, logits[0]) for rows in logits)
        return tree.fingerprint(weights), logits[0]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(4)))
    assert torch.equal(torch.get_rng_state(), global_state)
    for seed, (fingerprint, logits) in enumerate(results):
        assert fingerprint == tree.fingerprint(model.init(seed))
        with torch.no_grad():
            torch.testing.assert_close(logits, model.apply(model.init(seed), batch(model)))


def test_a_model_travels_as_its_settings() -> None:
    model = Model(CNN(), (1, 28, 28), 62)
    model.init(0)
    content = pickle.dumps(model)
    assert len(content) < 1000
    assert pickle.loads(content) == model
    assert hash(pickle.loads(content)) == hash(model)
    with pytest.raises(FrozenInstanceError):
        model.classes = 3  # pyright: ignore[reportAttributeAccessIssue]


@given(classes=st.integers(1, 9), seed=st.integers(0, 2**40))
@settings(max_examples=20, deadline=None)
def test_transfer_keeps_the_body_and_gives_every_start_the_same_head(classes: int, seed: int) -> None:
    model = SMALL["mlp"]
    first, second = model.init(1), model.init(2)
    small, moved = model.transfer(first, classes, seed)
    _, other = model.transfer(second, classes, seed)
    assert small == Model(model.architecture, model.shape, classes)
    for name in small.shapes:
        if name in small.head:
            assert torch.equal(moved[name], other[name])
        else:
            assert torch.equal(moved[name], first[name])
    assert moved["fc.weight"].shape == (classes, 6)
    _, elsewhere = model.transfer(first, classes, seed + 1)
    assert not torch.equal(moved["fc.weight"], elsewhere["fc.weight"])
    assert tree.fingerprint(first) == tree.fingerprint(model.init(1))


def test_the_head_does_not_depend_on_the_number_of_classes_before() -> None:
    many, few = Model(MLP(), (4,), 80), Model(MLP(), (4,), 10)
    heads = [model.transfer(model.init(0), 5, seed=7)[1]["fc.weight"] for model in (many, few)]
    assert torch.equal(*heads)


# --- errors ----------------------------------------------------------------------------------------------------------


def broken(model: Model, **changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    weights = {**model.init(0), **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
    return {name: tensor for name, tensor in weights.items() if tensor is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden2__bias": None}, "the weights lack tensor 'hidden2.bias' of shape (6,)"),
        ({"hidden2__bia": torch.zeros(6)}, "unknown tensor 'hidden2.bia'; did you mean 'hidden2.bias'?"),
        ({"fc__bias": torch.zeros(6)}, "tensor 'fc.bias' has shape (6,), but the model needs (5,)"),
    ],
)
def test_check_names_the_first_wrong_tensor(changes: dict[str, torch.Tensor | None], message: str) -> None:
    model = SMALL["mlp"]
    model.check(model.init(0))
    with pytest.raises(ValueError) as caught:
        model.check(broken(model, **changes))
    assert str(caught.value).startswith(message)
    with pytest.raises(ValueError):
        model.transfer(broken(model, **changes), 2, seed=0)


def test_apply_never_fills_in_a_missing_tensor() -> None:
    model = SMALL["resnet18 batch"]
    with pytest.raises(ValueError, match=r"lack tensor 'bn1.running_mean'"):
        model.apply(broken(model, bn1__running_mean=None), batch(model))
