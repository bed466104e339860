"""Normalisation surgery: BatchNorm replaced, trained weights converted, and calibrated on unlabelled inputs."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import unequal
from fedstart import keys, names, tree
from fedstart.algorithms.fedavg import FedAvg
from fedstart.engines.execution import Execution
from fedstart.engines.local import LocalEngine
from fedstart.models import Model, calibrated, load_architecture, renormalise
from fedstart.models.cnn import CNN
from fedstart.models.custom import Custom
from fedstart.models.renormalised import Renormalised
from fedstart.models.resnet18 import ResNet18
from fedstart.starts import Card, Start
from fedstart.training import train
from fedstart.types import Cost, Plan, Weights

HERE = __name__
SHAPE = unequal.SHAPES["simple_cnn"]
RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-10}
STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}


class Mixed(nn.Module):
    """BatchNorm1d and 2d, with a bias before, without scale and shift, behind a grouped convolution, and frozen."""

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 6, 3, padding=1, padding_mode="reflect")
        self.norm1 = nn.BatchNorm2d(6, eps=1e-3)
        self.second = nn.Conv2d(6, 12, 3, stride=2, groups=3, bias=False)
        self.norm2 = nn.BatchNorm2d(12, affine=False)
        self.hidden = nn.Linear(12 * ((side - 1) // 2) ** 2, 8)
        self.norm3 = nn.BatchNorm1d(8)
        self.norm3.weight.requires_grad_(False)
        self.rows = nn.Conv1d(1, 4, 3)
        self.norm4 = nn.BatchNorm1d(4)
        self.out = nn.Linear(24, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = torch.relu(self.norm1(self.first(inputs)))
        maps = self.norm2(self.second(maps)).relu_()
        hidden = torch.relu(self.norm3(self.hidden(maps.flatten(1))))
        return self.out(self.norm4(self.rows(hidden.unsqueeze(1))).flatten(1))


def mixed(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Mixed(shape[0], shape[1], classes)


class Small(nn.Module):
    """A convolution, BatchNorm and a head, in an order of its own."""

    def __init__(self, shape: tuple[int, ...], classes: int, way: str) -> None:
        super().__init__()
        norms = {"subclass": nn.SyncBatchNorm, "cubes": nn.BatchNorm3d}
        keeps = way != "without statistics"
        self.way = way
        self.conv = (nn.Conv3d if way == "cubes" else nn.Conv2d)(shape[0], shape[0], 3, padding=1)
        self.norm = norms.get(way, nn.BatchNorm2d)(shape[0], track_running_stats=keeps)
        self.other = nn.Conv2d(shape[0], shape[0], 3, padding=1)
        self.norm2 = nn.BatchNorm2d(shape[0])
        if way == "tied convolutions":
            self.other.weight = self.conv.weight
        if way == "tied scales":
            self.norm2.weight, self.norm2.bias = self.norm.weight, self.norm.bias
        if way == "hook":
            self.conv.register_forward_hook(lambda *_: None)
        self.out = nn.Linear(shape[0], classes)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = inputs
        if self.way == "norm first":
            maps = self.conv(self.norm(maps))
        elif self.way == "used elsewhere":
            maps = self.conv(maps)
            maps = maps + self.norm(maps)
        elif self.way == "changed in place":
            maps = self.norm(self.conv(maps).relu_())
        elif self.way == "norm twice":
            maps = self.norm(self.conv(self.norm(self.conv(maps))))
        elif self.way == "convolution twice":
            maps = self.norm(self.conv(self.conv(maps)))
        elif self.way == "two norms":
            maps = self.conv(maps)
            maps = self.norm(maps) * self.norm2(maps)
        elif self.way == "cubes":
            maps = self.norm(self.conv(maps.unsqueeze(-1))).squeeze(-1)
        elif self.way == "no pass":
            maps = maps.to(torch.float32) @ torch.ones(3, 3)
        else:
            maps = self.norm(self.conv(maps))
        if self.way != "two norms":
            maps = self.norm2(self.other(maps))
        return self.out(maps.mean(dim=(2, 3)))


def small(way: str) -> Callable[[tuple[int, ...], int], nn.Module]:
    return lambda shape, classes: Small(shape, classes, way)


plain, subclass, cubes = small("plain"), small("subclass"), small("cubes")
without_statistics, norm_first, used_elsewhere = (
    small("without statistics"),
    small("norm first"),
    small("used elsewhere"),
)
changed_in_place, norm_twice, two_norms = small("changed in place"), small("norm twice"), small("two norms")
convolution_twice, tied_convolutions = small("convolution twice"), small("tied convolutions")
tied_scales, hooked, no_pass = small("tied scales"), small("hook"), small("no pass")


def own(factory: str, shape: tuple[int, ...] = SHAPE, head: str = "out") -> Model:
    return Model(Custom(factory=f"{HERE}:{factory}", head=head), shape, unequal.CLASSES)


MODELS = {
    "resnet18": Model(ResNet18(norm="batch", width=8), SHAPE, unequal.CLASSES),
    "imagenet stem": Model(ResNet18(norm="batch", width=4, stem="imagenet"), (3, 33, 40), 5),
    "mixed": own("mixed"),
    "three dimensions": own("cubes"),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
RESNET = MODELS["resnet18"]


def trained(model: Model, dtype: torch.dtype = torch.float32, seed: int = 3) -> Weights:
    """Weights with scales of either sign, and statistics as training leaves them: no layer is near its beginning."""
    draws = keys.generator(seed, "test-surgery")
    weights = {n: t.to(dtype) if t.is_floating_point() else t + 7 for n, t in model.init(seed).items()}
    for name in weights:
        layer, _, kind = name.rpartition(".")
        if f"{layer}.running_var" in weights and kind != "num_batches_tracked":
            values = draws.normal(size=weights[name].shape)
            values = 0.5 + values**2 if kind == "running_var" else 1.0 * values
            weights[name] = torch.from_numpy(values).to(dtype)
    return weights


def inputs_of(model: Model, count: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    values = keys.generator(seed, "test-surgery-inputs").normal(size=(count, *model.shape))
    return torch.from_numpy(0.3 + values).to(dtype)


def close(left: Tensor, right: Tensor, relative: float) -> bool:
    return float((left - right).abs().max()) <= relative * float(right.abs().max())


def seen(model: Model, weights: Weights, inputs: Tensor, layers: set[str]) -> dict[str, Tensor]:
    """The outputs of layers in evaluation, in float64, shape (channels, values)."""
    module, found = model.module().double(), {}
    module.load_state_dict(weights, strict=False)
    for name, part in module.named_modules():
        if name in layers:
            part.register_forward_hook(lambda _, __, output, name=name: found.update({name: output.clone()}))
    with torch.no_grad():
        module.eval()(inputs.double())
    return {name: output.transpose(0, 1).flatten(1) for name, output in found.items()}


def layers_of(weights: Weights) -> set[str]:
    return {name.rpartition(".")[0] for name in weights if name.endswith("running_var")}


# --- the architecture ------------------------------------------------------------------------------------------------


def test_settings_are_told_apart_however_they_are_written() -> None:
    batch = {"norm": "batch", "width": 8}
    first = Renormalised(base="resnet18", settings=batch, to="group", groups=4)
    again = Renormalised(base="resnet18", settings={**batch, "stem": "cifar", "groups": 2}, to="group", groups=4)
    assert first == again and hash(first) == hash(again)
    for change in ({"groups": 2}, {"to": "layer"}, {"settings": {**batch, "width": 16}}):
        other = dataclasses.replace(first, **change)
        assert other != first and hash(other) != hash(first)
    assert pickle.loads(pickle.dumps(first)) == first
    assert names.build(Renormalised, dataclasses.asdict(first), "x") == first
    assert first.settings == {"norm": "batch", "groups": 2, "stem": "cifar", "width": 8}
    assert Renormalised(base="custom", settings={"factory": "a:b", "head": "z"}).head == "z"


@pytest.mark.parametrize(
    ("to", "gone", "new", "kind"),
    [
        ("group", STATISTICS, set(), "group"),
        ("layer", STATISTICS, set(), "group"),
        ("frozen", {"num_batches_tracked"}, set(), None),
        ("folded", {*STATISTICS, "weight", "bias"}, {"conv.bias"}, "none"),
        ("batch", set(), set(), "batch"),
    ],
)
def test_names_and_shapes(to, gone: set[str], new: set[str], kind: str | None) -> None:
    weights = trained(RESNET)
    model, moved = renormalise(RESNET, weights, to, groups=4)
    layers = layers_of(weights)
    kept = {n for n in weights if not (n.rpartition(".")[0] in layers and n.rpartition(".")[2] in gone)}
    convolutions = {n.replace("weight", "bias") for n in weights if weights[n].dim() == 4}
    assert set(moved) == set(model.shapes) == kept | (convolutions if new else set())
    assert list(moved) == list(model.shapes)
    for name in kept:
        assert moved[name].shape == weights[name].shape and moved[name].dtype == weights[name].dtype
        assert moved[name].data_ptr() != weights[name].data_ptr()
    assert model.head == RESNET.head and (model.shape, model.classes) == (RESNET.shape, RESNET.classes)
    assert kind is None or model.describe()["normalisation"] == kind
    assert len(layers) == 20 and all(f"{layer}.running_mean" not in model.parameters for layer in layers)


@every_model
@pytest.mark.parametrize("to", ["group", "layer", "frozen", "batch"])
@pytest.mark.parametrize("dtype", list(RELATIVE), ids=str)
def test_all_that_both_have_is_kept_bit_for_bit(model: Model, to, dtype: torch.dtype) -> None:
    weights = trained(model, dtype)
    new, moved = renormalise(model, weights, to)
    common = {name for name in weights if name in moved}
    assert all(name in common for name in model.parameters)
    assert tree.fingerprint({n: moved[n] for n in common}) == tree.fingerprint({n: weights[n] for n in common})
    # Layers that had no scale and shift begin with 1 and 0.
    fresh = {name: tensor for name, tensor in moved.items() if name not in common}
    assert all(bool((tensor == float(name.endswith("weight"))).all()) for name, tensor in fresh.items())
    assert {tensor.dtype for tensor in fresh.values()} <= {dtype}
    assert set(model.parameters) <= set(new.parameters)


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_group_is_the_network_with_group_normalisation(groups: int) -> None:
    weights, inputs = trained(RESNET), inputs_of(RESNET, 5)
    theirs = Model(ResNet18(norm="group", groups=groups, width=8), SHAPE, unequal.CLASSES)
    model, moved = renormalise(RESNET, weights, "group", groups)
    assert torch.equal(model.apply(moved, inputs), theirs.apply(moved, inputs))
    layered, same = renormalise(RESNET, weights, "layer")
    if groups == 1:
        assert torch.equal(layered.apply(same, inputs), theirs.apply(moved, inputs))
    else:
        assert not torch.allclose(layered.apply(same, inputs), theirs.apply(moved, inputs))


@pytest.mark.parametrize("to", ["group", "frozen"])
def test_fresh_scale_and_shift(to) -> None:
    weights = trained(RESNET)
    moved = renormalise(RESNET, weights, to, keep_affine=False)[1]
    for layer in layers_of(weights):
        assert bool((moved[f"{layer}.weight"] == 1).all()) and bool((moved[f"{layer}.bias"] == 0).all())
    rest = {n: t for n, t in moved.items() if n.rpartition(".")[2] not in ("weight", "bias") or t.dim() == 4}
    assert rest and tree.fingerprint(rest) == tree.fingerprint({name: weights[name] for name in rest})


@every_model
@pytest.mark.parametrize("to", ["frozen", "folded"])
@pytest.mark.parametrize("dtype", list(RELATIVE), ids=str)
def test_frozen_and_folded_compute_what_the_network_does_in_evaluation(model: Model, to, dtype: torch.dtype) -> None:
    weights, inputs = trained(model, dtype), inputs_of(model, 6, dtype)
    before = tree.fingerprint(weights)
    new, moved = renormalise(model, weights, to)
    expected = model.apply(weights, inputs)
    for training in (False, True):
        held = tree.fingerprint(moved)
        assert close(new.apply(moved, inputs, training=training), expected, RELATIVE[dtype])
        assert tree.fingerprint(moved) == held
    assert tree.fingerprint(weights) == before
    assert new.describe()["normalisation"] == "none" or to == "frozen"
    assert not close(model.apply(tree.clone(weights), inputs, training=True), expected, 1e-2)


def test_folding_with_fresh_scale_and_shift_folds_these() -> None:
    weights, inputs = trained(RESNET, torch.float64), inputs_of(RESNET, 3, torch.float64)
    model, moved = renormalise(RESNET, weights, "folded", keep_affine=False)
    expected = RESNET.apply(renormalise(RESNET, weights, "batch", keep_affine=False)[1], inputs)
    assert close(model.apply(moved, inputs), expected, 1e-10)


def test_fresh_weights_of_a_folded_model_are_the_base_s_converted() -> None:
    model, moved = renormalise(RESNET, RESNET.init(5), "folded")
    assert tree.fingerprint(model.init(5)) == tree.fingerprint(moved)


def test_what_was_not_trained_stays_so_and_ties_stay_tied() -> None:
    model = own("mixed")
    for to in ("group", "frozen"):
        new = renormalise(model, trained(model), to)[0]
        assert "norm3.weight" not in new.parameters
        assert [new.module().get_submodule(f"norm{k}").eps for k in (1, 2)] == [1e-3, 1e-5]
    tied = own("tied_scales")
    assert "norm2.weight" not in tied.shapes
    new, moved = renormalise(tied, trained(tied), "group")
    assert set(moved) == {name for name in tied.shapes if name.rpartition(".")[2] not in STATISTICS}
    module = new.module()
    assert module.get_parameter("norm.weight") is module.get_parameter("norm2.weight")


def test_a_model_left_as_it_is_can_be_renormalised_later() -> None:
    weights, inputs = trained(RESNET), inputs_of(RESNET, 4)
    model, same = renormalise(RESNET, weights, "batch")
    assert torch.equal(model.apply(same, inputs), RESNET.apply(weights, inputs))
    assert renormalise(model, same, "group", 8)[0] == renormalise(RESNET, weights, "group", 8)[0]


# --- training and keeping --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["group", "layer", "frozen", "folded", "batch"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_trains_over_clients(to, precision) -> None:
    federation = unequal.federation("simple_cnn")
    model, moved = renormalise(RESNET, trained(RESNET), to)
    plan = Plan(rounds=2, cohort=3, local_steps=1, batch_size=8, lr=0.01)
    with LocalEngine(2, Execution(precision=precision)) as engine:
        *_, last = train(FedAvg(), model, federation, plan, moved, engine)
        engine.evaluate(model, federation, last.state.weights, "train")
    assert all(not torch.equal(last.state.weights[name], moved[name]) for name in model.parameters)
    for name in set(moved) - set(model.parameters):
        assert torch.allclose(last.state.weights[name], moved[name], rtol=1e-6) == (to == "frozen")


def test_one_client_leaves_frozen_statistics_as_they_are() -> None:
    federation = unequal.federation("simple_cnn").pooled()
    model, moved = renormalise(RESNET, trained(RESNET), "frozen")
    statistics = {name for name in moved if name.rpartition(".")[2] in STATISTICS}
    with LocalEngine(1) as engine:
        cohort = engine.cohort(model, federation, Plan(local_steps=3, batch_size=8, lr=0.01), 1, (0,))
        (after,) = cohort.map(FedAvg().learn, moved)
    assert len(statistics) == 40
    assert tree.fingerprint({n: after[n] for n in statistics}) == tree.fingerprint({n: moved[n] for n in statistics})
    assert not torch.equal(after["bn1.weight"], moved["bn1.weight"])


@pytest.mark.parametrize("to", ["group", "layer", "frozen", "folded", "batch"])
@pytest.mark.parametrize("name", ["resnet18", "mixed"])
def test_a_start_is_saved_loaded_and_transferred(name: str, to, tmp_path: Path) -> None:
    base = MODELS[name]
    model, moved = renormalise(base, trained(base), to)
    federation, plan = unequal.federation("simple_cnn"), Plan(rounds=1, local_steps=1)
    card = Card.of(model, federation, plan, method="fedavg", settings={}, seed=0, cost=Cost())
    Start(moved, card).save(tmp_path)
    start = Start.load(tmp_path)
    loaded, inputs = start.model(), inputs_of(base, 4)
    assert loaded == model and start.card == card
    assert torch.equal(loaded.apply(start.weights, inputs), model.apply(moved, inputs))
    small, weights = loaded.transfer(start.weights, 2, seed=0)
    assert small.apply(weights, inputs).shape == (4, 2)


# --- calibration -----------------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("to", ["group", "layer"])
@pytest.mark.parametrize("keep_affine", [True, False])
def test_calibration_gives_every_channel_the_mean_and_variance_that_batchnorm_gave_it(model, to, keep_affine) -> None:
    weights, inputs = trained(model, torch.float64), inputs_of(model, 23, torch.float64)
    new, moved = renormalise(model, weights, to, keep_affine=keep_affine)
    found = calibrated(model, weights, new, moved, [inputs[:9], inputs[9:11], inputs[11:]])
    layers = layers_of(weights)
    expected, outputs = seen(model, weights, inputs, layers), seen(new, found, inputs, layers)
    before = seen(new, moved, inputs, layers)
    for name in layers:
        for statistic in (lambda rows: rows.mean(1), lambda rows: rows.var(1, correction=0)):
            assert close(statistic(outputs[name]), statistic(expected[name]), 1e-8), name
            assert not close(statistic(before[name]), statistic(expected[name]), 1e-2), name
        if f"{name}.weight" in weights:
            assert torch.equal(found[f"{name}.weight"].sign(), weights[f"{name}.weight"].sign())
    affine = {f"{name}.{kind}" for name in layers for kind in ("weight", "bias")}
    assert set(found) == set(moved)
    assert all(torch.equal(found[name], moved[name]) != (name in affine) for name in moved)
    assert all(tensor.dtype == moved[name].dtype for name, tensor in found.items())


@pytest.mark.parametrize("to", ["group", "layer"])
def test_calibration_depends_neither_on_the_batches_nor_on_the_scale_before(to) -> None:
    weights, inputs = trained(RESNET, torch.float64), inputs_of(RESNET, 12, torch.float64)
    results = []
    for keep_affine, batches in ((True, [inputs]), (False, [inputs[:5], inputs[5:]]), (True, inputs.split(1))):
        new, moved = renormalise(RESNET, weights, to, keep_affine=keep_affine)
        before = tree.fingerprint(moved)
        results.append(calibrated(RESNET, weights, new, moved, iter(batches)))
        assert tree.fingerprint(moved) == before
    for other in results[1:]:
        assert all(close(other[name], tensor, 1e-8) for name, tensor in results[0].items())


def test_calibration_brings_the_outputs_nearer_to_the_original() -> None:
    weights, inputs, others = trained(RESNET), inputs_of(RESNET, 64), inputs_of(RESNET, 64, seed=2)
    expected = RESNET.apply(weights, others)
    kept, moved = renormalise(RESNET, weights, "group")
    fresh = renormalise(RESNET, weights, "group", keep_affine=False)[1]
    found = calibrated(RESNET, weights, kept, moved, [inputs])
    error = {
        name: float((kept.apply(w, others) - expected).square().mean())
        for name, w in {"fresh": fresh, "kept": moved, "calibrated": found}.items()
    }
    assert error["calibrated"] < 0.2 * min(error["fresh"], error["kept"])


def test_a_channel_that_is_constant_keeps_its_scale_and_gets_the_mean() -> None:
    shape = (4, 1, 1)
    model = Model(Custom(factory=f"{HERE}:plain", head="out"), shape, 3)
    weights, inputs = trained(model, torch.float64), inputs_of(model, 20, torch.float64)
    new, moved = renormalise(model, weights, "group", groups=4)
    found = calibrated(model, weights, new, moved, [inputs])
    assert torch.equal(found["norm.weight"], moved["norm.weight"])
    expected = seen(model, weights, inputs, {"norm"})["norm"].mean(1)
    assert close(seen(new, found, inputs, {"norm"})["norm"].mean(1), expected, 1e-10)


def test_a_channel_that_batchnorm_switched_off_stays_off() -> None:
    model = own("plain", (4, 6, 6))
    weights, inputs = trained(model, torch.float64), inputs_of(model, 9, torch.float64)
    weights["norm.weight"][1] = 0.0
    new, moved = renormalise(model, weights, "layer", keep_affine=False)
    found = calibrated(model, weights, new, moved, [inputs])
    assert found["norm.weight"][1] == 0 and torch.isclose(found["norm.bias"][1], weights["norm.bias"][1])


@every_model
@pytest.mark.parametrize("to", ["frozen", "batch"])
def test_statistics_are_those_of_torch_s_own_cumulative_average(model: Model, to) -> None:
    weights, inputs = trained(model, torch.float64), inputs_of(model, 24, torch.float64)
    new, moved = renormalise(model, weights, to)
    found = calibrated(model, weights, new, moved, inputs.split(8))
    module = model.module().double()
    module.load_state_dict(weights)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.momentum = None
            part.reset_running_stats()
    with torch.no_grad():
        for batch in inputs.split(8):
            module.train()(batch)
    for name, tensor in module.state_dict().items():
        if name in found:
            assert close(found[name], tensor, 1e-9) and found[name].dtype == tensor.dtype, name
    assert found.keys() == moved.keys()
    assert int(found.get("norm1.num_batches_tracked", found.get("bn1.num_batches_tracked", torch.tensor(3)))) == 3


def test_statistics_weigh_batches_by_their_examples() -> None:
    model = own("plain")
    weights, inputs = trained(model, torch.float64), inputs_of(model, 10, torch.float64)
    new, moved = renormalise(model, weights, "frozen")
    found = calibrated(model, weights, new, moved, [inputs[:7], inputs[7:]])
    maps = torch.nn.functional.conv2d(inputs, weights["conv.weight"], weights["conv.bias"], padding=1)
    rows = [part.transpose(0, 1).flatten(1) for part in (maps[:7], maps[7:])]
    assert close(found["norm.running_mean"], 0.7 * rows[0].mean(1) + 0.3 * rows[1].mean(1), 1e-12)
    assert close(found["norm.running_var"], 0.7 * rows[0].var(1) + 0.3 * rows[1].var(1), 1e-12)


# --- what is refused -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Outside:
    """An architecture that no card can name."""

    head: ClassVar[str] = "out"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return mixed(shape, classes)


REFUSED = [
    (
        RESNET,
        "group",
        3,
        "groups = 3 does not divide the 8 channels of 'bn1' (nearest counts that suit all layers: 2, 4)",
    ),
    (
        RESNET,
        "group",
        16,
        "groups = 16 does not divide the 8 channels of 'bn1' (nearest counts that suit all layers: 8)",
    ),
    (own("mixed"), "group", 4, "groups = 4 does not divide the 6 channels of 'norm1' (nearest counts that suit all"),
    (own("mixed"), "group", 3, "groups = 3 does not divide the 8 channels of 'norm3' (nearest counts that suit all"),
    (Model(CNN(channels=(2, 3), hidden=8), (1, 8, 9), 5), "batch", 2, "the model has no BatchNorm layer to replace"),
    (Model(ResNet18(width=4), SHAPE, 3), "group", 2, "the model has no BatchNorm layer to replace"),
    (own("subclass"), "group", 2, "layer 'norm' is a SyncBatchNorm and cannot be replaced (allowed: BatchNorm1d, "),
    (own("without_statistics"), "frozen", 2, "layer 'norm' keeps no running statistics, which 'frozen' needs"),
    (own("without_statistics"), "folded", 2, "layer 'norm' keeps no running statistics, which 'folded' needs"),
    (
        own("norm_first"),
        "folded",
        2,
        "BatchNorm cannot be folded: 'norm' does not follow a convolution or linear layer",
    ),
    (own("used_elsewhere"), "folded", 2, "BatchNorm cannot be folded: 'norm2' would change, as the output of a layer"),
    (own("changed_in_place"), "folded", 2, "BatchNorm cannot be folded: 'norm' would change, as the output of a layer"),
    (own("norm_twice"), "folded", 2, "BatchNorm cannot be folded: 'norm' is used 2 times in a pass (allowed: 1)"),
    (own("convolution_twice"), "folded", 2, "BatchNorm cannot be folded: 'conv', before 'norm', is used twice, shares"),
    (own("tied_convolutions"), "folded", 2, "BatchNorm cannot be folded: 'conv', before 'norm', is used twice, shares"),
    (
        own("two_norms"),
        "folded",
        2,
        "BatchNorm cannot be folded: 'conv', before 'norm2', is used twice, shares tensors",
    ),
    (
        own("hooked"),
        "folded",
        2,
        "BatchNorm cannot be folded: 'conv', before 'norm', is used twice, shares tensors or has",
    ),
    (own("no_pass"), "folded", 2, "BatchNorm cannot be folded: no pass in float64 on made-up inputs: "),
    (Model(Outside(), SHAPE, 3), "group", 2, "Outside is no architecture of fedstart.models, so the result could not"),
    (renormalise(RESNET, RESNET.init(0), "layer")[0], "group", 2, "the model is renormalised to 'layer' already"),
]


@pytest.mark.parametrize(("model", "to", "groups", "message"), REFUSED, ids=[case[3][:60] for case in REFUSED])
def test_refused_in_one_line(model: Model, to, groups: int, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        renormalise(model, model.init(0), to, groups)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_batchnorm1d_needs_two_channels_per_group() -> None:
    settings = {"factory": f"{HERE}:mixed", "head": "out"}
    assert Model(Renormalised("custom", settings, "group", 2), SHAPE, 3).shapes
    narrow = {"factory": f"{HERE}:single_channels", "head": "1"}
    with pytest.raises(ValueError) as caught:
        _ = Model(Renormalised("custom", narrow, "group", 4), (6,), 3).shapes
    assert str(caught.value) == (
        "groups = 4 leaves one channel per group in '0.1', a BatchNorm1d (nearest counts that suit all layers: 2)"
    )


def single_channels(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Linear(shape[0], 4), nn.BatchNorm1d(4)), nn.Linear(4, classes))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"base": "resnet1", "settings": {}},
            "base: unknown model 'resnet1'; did you mean 'resnet18'? (allowed: cnn, ",
        ),
        ({"base": "renormalised", "settings": {}}, "base: unknown model 'renormalised'; did you mean "),
        (
            {"base": "resnet18", "settings": {"widht": 4}},
            "settings: model 'resnet18': unknown setting 'widht'; did you",
        ),
        (
            {"base": "resnet18", "settings": {}, "to": "grp"},
            "to: Input should be 'group', 'layer', 'frozen', 'folded' or",
        ),
        ({"base": "resnet18", "settings": {}, "groups": 0}, "groups: Input should be greater than or equal to 1"),
        ({"base": "resnet18"}, "settings: Field required"),
    ],
)
def test_wrong_settings_in_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_architecture("renormalised", settings)
    assert str(caught.value).startswith(f"model 'renormalised': {message}") and "\n" not in str(caught.value)


def test_weights_that_do_not_fit_are_refused() -> None:
    weights = trained(RESNET)
    lacking = {name: tensor for name, tensor in weights.items() if name != "bn1.bias"}
    new, moved = renormalise(RESNET, weights, "group")
    inputs = [inputs_of(RESNET, 3)]
    for call in (
        lambda: renormalise(RESNET, lacking, "group"),
        lambda: calibrated(RESNET, lacking, new, moved, inputs),
        lambda: calibrated(RESNET, weights, new, {n: t for n, t in moved.items() if n != "bn1.bias"}, inputs),
    ):
        with pytest.raises(ValueError, match=r"^the weights lack tensor 'bn1.bias' of shape \(8,\)$"):
            call()


@pytest.mark.parametrize(
    ("model", "to", "shape", "count", "message"),
    [
        (RESNET, "group", SHAPE, 0, "calibration needs at least one input"),
        (
            RESNET,
            "group",
            (3, 8, 8),
            4,
            "the original and all inputs must have the model's shape (2, 8, 8), got (3, 8, 8)",
        ),
        (RESNET, "folded", SHAPE, 4, "no layer to calibrate (allowed: models renormalised to group, layer, frozen or"),
        (own("norm_twice"), "group", SHAPE, 4, "layer 'norm' is used twice in a pass, so it cannot be calibrated"),
        (
            own("tied_scales"),
            "group",
            SHAPE,
            4,
            "tensor 'norm2.weight' is shared with another layer, so it cannot be set",
        ),
        (RESNET, "batch", SHAPE, 1, "Expected more than 1 value per channel when training"),
    ],
)
def test_calibration_refuses_in_one_line(model: Model, to, shape: tuple[int, ...], count: int, message: str) -> None:
    weights = trained(model)
    new, moved = renormalise(model, weights, to)
    with pytest.raises(ValueError) as caught:
        calibrated(model, weights, new, moved, [torch.zeros(count, *shape)])
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
