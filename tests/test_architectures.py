"""Architectures: tensors, shapes and values against the published networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedstart.models import Model, load_architecture, renormalise
from fedstart.models.cnn import CNN
from fedstart.models.cnn3x3 import CNN3x3
from fedstart.models.mlp import MLP
from fedstart.models.plain_cnn import PlainCNN
from fedstart.models.resnet18 import ResNet18
from fedstart.models.simple_cnn import SimpleCNN
from fedstart.models.two_layer_cnn import TwoLayerCNN
from fedstart.models.vgg import VGG

# The state dict of torchvision.models.resnet18(): every convolution as (name, shape), its BatchNorm, and whether a
# stage projects its shortcut.
CONVOLUTIONS = {
    "conv1": (64, 3, 7, 7),
    "layer1.0.conv1": (64, 64, 3, 3),
    "layer1.0.conv2": (64, 64, 3, 3),
    "layer1.1.conv1": (64, 64, 3, 3),
    "layer1.1.conv2": (64, 64, 3, 3),
    "layer2.0.conv1": (128, 64, 3, 3),
    "layer2.0.conv2": (128, 128, 3, 3),
    "layer2.0.downsample.0": (128, 64, 1, 1),
    "layer2.1.conv1": (128, 128, 3, 3),
    "layer2.1.conv2": (128, 128, 3, 3),
    "layer3.0.conv1": (256, 128, 3, 3),
    "layer3.0.conv2": (256, 256, 3, 3),
    "layer3.0.downsample.0": (256, 128, 1, 1),
    "layer3.1.conv1": (256, 256, 3, 3),
    "layer3.1.conv2": (256, 256, 3, 3),
    "layer4.0.conv1": (512, 256, 3, 3),
    "layer4.0.conv2": (512, 512, 3, 3),
    "layer4.0.downsample.0": (512, 256, 1, 1),
    "layer4.1.conv1": (512, 512, 3, 3),
    "layer4.1.conv2": (512, 512, 3, 3),
}
NORMALISATIONS = {
    "bn1": 64,
    "layer1.0.bn1": 64,
    "layer1.0.bn2": 64,
    "layer1.1.bn1": 64,
    "layer1.1.bn2": 64,
    "layer2.0.bn1": 128,
    "layer2.0.bn2": 128,
    "layer2.0.downsample.1": 128,
    "layer2.1.bn1": 128,
    "layer2.1.bn2": 128,
    "layer3.0.bn1": 256,
    "layer3.0.bn2": 256,
    "layer3.0.downsample.1": 256,
    "layer3.1.bn1": 256,
    "layer3.1.bn2": 256,
    "layer4.0.bn1": 512,
    "layer4.0.bn2": 512,
    "layer4.0.downsample.1": 512,
    "layer4.1.bn1": 512,
    "layer4.1.bn2": 512,
}
PARAMETERS = {
    **{f"{name}.weight": shape for name, shape in CONVOLUTIONS.items()},
    **{f"{name}.{kind}": (width,) for name, width in NORMALISATIONS.items() for kind in ("weight", "bias")},
    "fc.weight": (1000, 512),
    "fc.bias": (1000,),
}
STATISTICS = {
    f"{name}.{kind}": (width,) if kind != "num_batches_tracked" else ()
    for name, width in NORMALISATIONS.items()
    for kind in ("running_mean", "running_var", "num_batches_tracked")
}


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in model.shapes.items()}


def test_resnet18_has_the_tensors_of_torchvision() -> None:
    model = Model(ResNet18(norm="batch", stem="imagenet"), (3, 64, 64), 1000)
    assert shapes(model) == {**PARAMETERS, **STATISTICS}
    assert (len(model.parameters), len(model.shapes)) == (62, 122)
    assert set(model.parameters) == set(PARAMETERS)
    assert model.describe()["parameters"] == 11_689_512


def test_resnet18_with_group_normalisation_keeps_the_names_and_has_no_statistics() -> None:
    model = Model(ResNet18(groups=32, stem="imagenet"), (3, 64, 64), 1000)
    assert shapes(model) == PARAMETERS
    assert model.describe()["normalisation"] == "group"
    assert {m.num_groups for m in model.module().modules() if isinstance(m, nn.GroupNorm)} == {32}


def test_resnet18_small_image_stem_changes_the_first_convolution_only() -> None:
    model = Model(ResNet18(), (1, 32, 32), 1000)
    assert shapes(model) == {**PARAMETERS, "conv1.weight": (64, 1, 3, 3)}


@pytest.mark.parametrize(("stem", "sides"), [("cifar", (32, 16, 8, 4)), ("imagenet", (8, 4, 2, 1))])
def test_resnet18_stages_have_the_sides_of_the_paper(stem: str, sides: tuple[int, ...]) -> None:
    module, seen = load_architecture("resnet18", {"stem": stem, "width": 2}).build((3, 32, 32), 2), []
    for number in range(1, 5):
        stage = getattr(module, f"layer{number}")
        stage.register_forward_hook(lambda _m, _i, output: seen.append(output.shape[-1]))
    module(torch.zeros(1, 3, 32, 32))
    assert tuple(seen) == sides


def test_resnet18_computes_what_its_layers_say() -> None:
    model = Model(ResNet18(norm="batch", width=4), (3, 16, 16), 5)
    module, inputs = model.module().eval(), torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    state = module.state_dict()

    def norm(maps: torch.Tensor, name: str) -> torch.Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        scaled = (maps - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return scaled * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]

    def convolve(maps: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        return torch.nn.functional.conv2d(maps, weight, stride=stride, padding=weight.shape[-1] // 2)

    for name in NORMALISATIONS:
        state[f"{name}.running_mean"].normal_(generator=torch.Generator().manual_seed(len(name)))
    maps = norm(convolve(inputs, "conv1"), "bn1").relu()
    for stage in range(1, 5):
        for block in range(2):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            inner = norm(convolve(maps, f"{name}.conv1", stride), f"{name}.bn1").relu()
            inner = norm(convolve(inner, f"{name}.conv2"), f"{name}.bn2")
            if stride == 2:
                maps = norm(convolve(maps, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            maps = (inner + maps).relu()
    expected = maps.mean(dim=(2, 3)) @ state["fc.weight"].T + state["fc.bias"]
    torch.testing.assert_close(module(inputs), expected, rtol=1e-4, atol=1e-4)


def test_resnet18_initial_convolutions_have_the_variance_of_he() -> None:
    weights = Model(ResNet18(), (3, 32, 32), 10).init(3)
    for name in ("layer2.0.conv2.weight", "layer4.1.conv1.weight"):
        expected = (2 / (weights[name].shape[0] * 9)) ** 0.5
        assert weights[name].std().item() == pytest.approx(expected, rel=0.02)
    assert all(bool((weights[f"{name}.weight"] == 1).all()) for name in NORMALISATIONS)


def test_cnn_is_the_femnist_model_of_leaf() -> None:
    model = Model(CNN(), (1, 28, 28), 62)
    assert shapes(model) == {
        "conv1.weight": (32, 1, 5, 5),
        "conv1.bias": (32,),
        "conv2.weight": (64, 32, 5, 5),
        "conv2.bias": (64,),
        "hidden.weight": (2048, 3136),
        "hidden.bias": (2048,),
        "fc.weight": (62, 2048),
        "fc.bias": (62,),
    }
    assert model.describe()["parameters"] == 6_603_710


def test_cnn3x3_shapes() -> None:
    model = Model(CNN3x3(), (1, 28, 28), 5)
    assert shapes(model)["conv2.weight"] == (64, 32, 3, 3)
    assert shapes(model)["hidden.weight"] == (128, 3136)
    assert shapes(model)["fc.weight"] == (5, 128)


def test_simple_cnn_is_the_one_of_pfl_research() -> None:
    """3x3 filters without padding: 32x32, 30x30, 28x28, pooled to 14x14."""
    model = Model(SimpleCNN(), (3, 32, 32), 10)
    assert shapes(model) == {
        "conv1.weight": (32, 3, 3, 3),
        "conv1.bias": (32,),
        "conv2.weight": (64, 32, 3, 3),
        "conv2.bias": (64,),
        "hidden.weight": (128, 64 * 14 * 14),
        "hidden.bias": (128,),
        "fc.weight": (10, 128),
        "fc.bias": (10,),
    }
    assert model.describe()["parameters"] == 1_626_442
    assert model.head == ("fc.weight", "fc.bias")


@pytest.mark.parametrize("size", [(6, 6), (7, 10)])
def test_simple_cnn_computes_convolution_relu_twice_then_pools(size: tuple[int, int]) -> None:
    model = Model(SimpleCNN(channels=(3, 4), hidden=5), (2, *size), 6)
    weights, inputs = model.init(1), torch.randn(3, 2, *size, generator=torch.Generator().manual_seed(1))
    maps = inputs
    for name in ("conv1", "conv2"):
        maps = nn.functional.conv2d(maps, weights[f"{name}.weight"], weights[f"{name}.bias"]).relu()
    pooled = nn.functional.max_pool2d(maps, 2).flatten(1)
    hidden = (pooled @ weights["hidden.weight"].T + weights["hidden.bias"]).relu()
    expected = hidden @ weights["fc.weight"].T + weights["fc.bias"]
    torch.testing.assert_close(model.apply(weights, inputs), expected)


STACKS = {
    "plain_cnn": (PlainCNN, {"channels": (4, 6, 8)}, (1, 2), 3, (2, 5, 7)),
    "vgg": (VGG, {"width": 4}, (2, 4, 6, 8), 8, (2, 16, 19)),
}


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
@pytest.mark.parametrize("name", STACKS)
def test_stacks_compute_what_their_layers_say(name: str, norm: str) -> None:
    kind, settings, pooled, layers, shape = STACKS[name]
    model = Model(kind(**settings, norm=norm), shape, 5)
    draws = torch.Generator().manual_seed(1)
    weights = {
        key: tensor if key.startswith("conv") and key.endswith("weight") else torch.rand(tensor.shape, generator=draws)
        for key, tensor in model.init(1).items()
    }
    inputs = torch.randn(3, *shape, generator=draws)
    maps = inputs
    for number in range(1, layers + 1):
        maps = nn.functional.conv2d(maps, weights[f"conv{number}.weight"], weights.get(f"conv{number}.bias"), padding=1)
        if norm == "group":
            grouped = maps.unflatten(1, (2, -1))
            mean, var = grouped.mean((2, 3, 4), keepdim=True), grouped.var((2, 3, 4), correction=0, keepdim=True)
            maps = ((grouped - mean) / (var + 1e-5).sqrt()).flatten(1, 2)
        elif norm == "batch":
            mean, var = weights[f"norm{number}.running_mean"], weights[f"norm{number}.running_var"]
            maps = (maps - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        if norm != "none":
            scale, shift = weights[f"norm{number}.weight"], weights[f"norm{number}.bias"]
            maps = maps * scale[:, None, None] + shift[:, None, None]
        maps = maps.relu()
        if number in pooled:
            maps = nn.functional.max_pool2d(maps, 2)
    expected = maps.mean(dim=(2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]
    torch.testing.assert_close(model.apply(weights, inputs), expected, rtol=1e-4, atol=1e-4)
    assert ("conv1.bias" in weights) == (norm == "none")


def test_sizes_of_the_stacks() -> None:
    three, vgg = (Model(architecture, (3, 32, 32), 10) for architecture in (PlainCNN(), VGG()))
    assert [shapes(three)[f"conv{number}.weight"] for number in (1, 2, 3)] == [
        (32, 3, 3, 3),
        (64, 32, 3, 3),
        (128, 64, 3, 3),
    ]
    assert three.describe()["parameters"] == 94_762
    assert [shapes(vgg)[f"conv{number}.weight"][0] for number in range(1, 9)] == [64, 64, 128, 128, 256, 256, 512, 512]
    assert vgg.describe()["parameters"] == 4_692_426
    two = Model(PlainCNN(channels=(6,)), (3, 1, 1), 4)
    assert shapes(two) == {
        "conv1.weight": (6, 3, 3, 3), "norm1.weight": (6,), "norm1.bias": (6,), "fc.weight": (4, 6), "fc.bias": (4,),
    }  # fmt: skip
    with pytest.raises(ValueError, match="at least 2"):
        Model(PlainCNN(channels=(4, 4)), (3, 1, 1), 4).init(0)
    assert (three.head, vgg.head) == (("fc.weight", "fc.bias"), ("fc.weight", "fc.bias"))


@pytest.mark.parametrize("architecture", [PlainCNN(norm="none"), VGG(norm="none")])
def test_initial_values_of_the_stacks_are_those_of_he(architecture: VGG) -> None:
    weights = Model(architecture, (3, 32, 32), 10).init(3)
    last = weights["conv3.weight"]
    assert last.std().item() == pytest.approx((2 / (last.shape[0] * 9)) ** 0.5, rel=0.02)
    assert not any(weights["conv3.bias"])


@pytest.mark.parametrize(
    "model",
    [
        Model(PlainCNN(channels=(4, 6, 8), norm="batch"), (2, 8, 8), 5),
        Model(VGG(width=4, norm="batch"), (2, 16, 16), 5),
    ],
    ids=["plain_cnn", "vgg"],
)
def test_batchnorm_of_the_stacks_can_be_replaced(model: Model) -> None:
    draws = torch.Generator().manual_seed(2)
    weights = {
        name: tensor + torch.rand(tensor.shape, generator=draws) if name.startswith("norm") else tensor
        for name, tensor in model.init(1).items()
        if not name.endswith("num_batches_tracked")
    } | {name: tensor for name, tensor in model.init(1).items() if name.endswith("num_batches_tracked")}
    inputs = torch.randn(3, *model.shape, generator=draws)
    for to in ("frozen", "folded"):
        new, moved = renormalise(model, weights, to)
        torch.testing.assert_close(new.apply(moved, inputs), model.apply(weights, inputs), rtol=1e-3, atol=1e-4)
    grouped, moved = renormalise(model, weights, "group", groups=2)
    assert grouped.describe()["normalisation"] == "group"
    assert torch.equal(moved["norm3.weight"], weights["norm3.weight"])


def test_mlp_without_hidden_layers_is_logistic_regression() -> None:
    model = Model(MLP(hidden=()), (2, 3), 4)
    weights, inputs = model.init(0), torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(1))
    assert shapes(model) == {"fc.weight": (4, 6), "fc.bias": (4,)}
    torch.testing.assert_close(
        model.apply(weights, inputs), inputs.flatten(1) @ weights["fc.weight"].T + weights["fc.bias"]
    )


@pytest.mark.parametrize(
    ("architecture", "shape", "message"),
    [
        (CNN(), (1, 3, 28), "at least 4"),
        (CNN3x3(), (64,), "(channels, height, width)"),
        (SimpleCNN(), (3, 6, 5), "at least 6"),
        (ResNet18(), (3, 32), "(channels, height, width)"),
        (PlainCNN(), (3, 3, 8), "at least 4"),
        (VGG(), (3, 16, 15), "at least 16"),
        (VGG(), (16, 16), "(channels, height, width)"),
        (TwoLayerCNN(), (200,), "(patches, d) or images (channels, height, width)"),
    ],
)
def test_unsuitable_input_shape(architecture: CNN, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Model(architecture, shape, 2).init(0)
    assert message in str(caught.value)
    assert str(shape) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("resnet", {}, "unknown model 'resnet'; did you mean 'resnet18'?"),
        ("resnet18", {"norms": "group"}, "model 'resnet18': unknown setting 'norms'; did you mean 'norm'?"),
        ("resnet18", {"norm": "layer"}, "model 'resnet18': norm: "),
        ("resnet18", {"width": 6, "groups": 4}, "model 'resnet18': groups must divide width, got groups 4 and width 6"),
        ("mlp", {"hidden": [10, 0]}, "model 'mlp': hidden.1: "),
        ("cnn", {"channels": [1]}, "model 'cnn': channels"),
        ("simple_cnn", {"channels": [0, 4]}, "model 'simple_cnn': channels"),
        ("simple_cnn", {"hidden": 0}, "model 'simple_cnn': hidden: "),
        ("two_layer_cnn", {"filter": 3}, "model 'two_layer_cnn': unknown setting 'filter'; did you mean 'filters'?"),
        ("two_layer_cnn", {"sigma_0": 0.0}, "model 'two_layer_cnn': sigma_0: "),
        ("vgg", {"width": 6, "groups": 4}, "model 'vgg': groups must divide width, got groups 4 and width 6"),
        ("vgg", {"norm": "layer"}, "model 'vgg': norm: "),
        ("plain_cnn", {"channels": []}, "model 'plain_cnn': channels"),
        (
            "plain_cnn",
            {"channels": [4, 6, 8], "groups": 4},
            "model 'plain_cnn': groups must divide channels, got groups 4 and channels (4, 6, 8)",
        ),
        ("custom", {"factory": "torch.nn.Linear", "head": "fc"}, "model 'custom': factory: "),
    ],
)
def test_wrong_names_and_settings(name: str, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_architecture(name, wrong)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_batch_normalisation_takes_any_width() -> None:
    assert Model(ResNet18(norm="batch", width=3), (3, 8, 8), 2).init(0)["bn1.weight"].shape == (3,)
    assert Model(VGG(norm="batch", width=3), (3, 16, 16), 2).init(0)["norm1.weight"].shape == (3,)
    assert Model(PlainCNN((3, 5, 7), "batch"), (3, 4, 4), 2).init(0)["norm3.weight"].shape == (7,)


@pytest.mark.parametrize(("shape", "classes"), [((), 2), ((0, 3), 2), ((3,), 0)])
def test_model_sizes(shape: tuple[int, ...], classes: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Model(MLP(), shape, classes)
