"""Your own modules in every way of computing: tied, scalar, transposed and added parameters, and batch statistics."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

import unequal
from fedstart import tree
from fedstart.algorithms.fedavg import FedAvg
from fedstart.engines import descent, products
from fedstart.engines.calibration import calibrate
from fedstart.engines.execution import Execution
from fedstart.engines.local import LocalEngine
from fedstart.models import Model, load_architecture
from reference import slow

PLAN, CLASSES = unequal.PLAN, unequal.CLASSES
MODES = {"one by one": Execution(), "together": Execution(together=3), "channels-first": Execution(channels_last=False)}
every_mode = pytest.mark.parametrize("mode", [pytest.param(mode, id=name) for name, mode in MODES.items()])


@dataclass(frozen=True)
class Own:
    """An architecture from a module class."""

    module: Callable[[tuple[int, ...], int], nn.Module]
    head: ClassVar[str] = "fc"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return self.module(shape, classes)


class Base(nn.Module):
    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(shape[0], classes)
        self.add(shape[0], classes)

    def add(self, width: int, classes: int) -> None: ...


class Tied(Base):
    """A parameter used twice, a buffer that is not part of the weights, and a parameter without use."""

    def add(self, width, classes):
        self.first, self.second = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.second.weight = self.first.weight
        self.idle = nn.Parameter(torch.full((2, width), 0.3))
        self.register_buffer("offset", torch.full((width,), 0.5), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(self.second(self.first(inputs).tanh()) + self.get_buffer("offset"))


class Transposed(Base):
    """The gradient of `weight` has the layout of its transpose."""

    def add(self, width, classes):
        self.weight = nn.Parameter(torch.randn(width, width))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(linear(inputs, self.weight.t()))


class Scalar(Base):
    """A parameter without a dimension."""

    def add(self, width, classes):
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(inputs) * self.scale


class Added(Base):
    """The gradients of `shared` and `personal` are one tensor."""

    def add(self, width, classes):
        self.shared, self.personal = (nn.Parameter(torch.randn(classes, width)) for _ in range(2))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(inputs) + linear(inputs, self.shared + self.personal)


class Summed(Base):
    """The gradient of `gain` is one number, expanded."""

    def add(self, width, classes):
        self.gain = nn.Parameter(torch.full((4,), 0.3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(inputs) * self.gain.sum()


def repeated(shape, classes):
    """A row of layers with one of them twice."""
    again = nn.Linear(shape[0], shape[0])
    return nn.Sequential(OrderedDict(one=again, tanh=nn.Tanh(), two=again, fc=nn.Linear(shape[0], classes)))


def hooked(shape, classes):
    """A row of layers with something added behind one of them."""
    layer = nn.Linear(shape[0], shape[0], bias=False)
    layer.register_forward_hook(lambda part, inputs, output: output + 1)
    return nn.Sequential(OrderedDict(one=layer, sigmoid=nn.Sigmoid(), fc=nn.Linear(shape[0], classes)))


def shared(shape, classes):
    """A row of layers with one bias for two of them."""
    one, two = (nn.Linear(shape[0], shape[0]) for _ in range(2))
    two.bias = one.bias
    return nn.Sequential(OrderedDict(one=one, tanh=nn.Tanh(), two=two, fc=nn.Linear(shape[0], classes)))


def nested(shape, classes):
    """A row within a row."""
    row = nn.Sequential(nn.Linear(shape[0], 3), nn.ReLU())
    return nn.Sequential(OrderedDict(row=row, fc=nn.Linear(3, classes)))


class Frozen(Base):
    def add(self, width, classes):
        self.scale = nn.Parameter(torch.ones(width), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(inputs * self.scale)


class Deciding(Base):
    """The way of the computation depends on its numbers."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(inputs if inputs.sum() > 0 else -inputs)


class Centred(Base):
    """Examples of a batch see each other, without any layer that says so."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(inputs - inputs.mean(0))


class BatchStatistics(Base):
    """BatchNorm without running statistics: nothing but parameters, but examples of a batch see each other."""

    def add(self, width, classes):
        self.norm = nn.BatchNorm2d(width, track_running_stats=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(self.norm(inputs).relu().mean((2, 3)))


def own(module: type[nn.Module], name: str = "mlp") -> Model:
    return Model(Own(module), unequal.SHAPES[name], CLASSES)


def learn(model: Model, mode: Execution, name: str = "mlp", clients=range(1, 6), dtype=torch.float64, plan=PLAN):
    weights = {key: tensor.to(dtype) for key, tensor in model.init(3).items()}
    with LocalEngine(2, mode) as engine:
        return engine.cohort(model, unequal.federation(name), plan, 1, clients).map(FedAvg().learn, weights)


@pytest.mark.parametrize("module", [Tied, Transposed, Scalar, Added, Summed, hooked, shared, nested])
@pytest.mark.parametrize("limit", [PLAN.clip, None])
@every_mode
def test_training_is_the_literal_loop(module, mode, limit):
    clients, plan = range(1, 4), replace(PLAN, clip=limit)
    for k, trained in zip(clients, learn(own(module), mode, clients=clients, plan=plan), strict=True):
        slow.assert_close(trained, literal(module, limit, k))


@functools.cache
def literal(module, limit, k):
    """`slow.local_training`, also for models with parameters that have no part in the loss."""
    model, federation, plan = own(module), unequal.federation(), replace(PLAN, clip=limit)
    weights = {name: tensor.double() for name, tensor in model.init(3).items()}
    unused = {name: tensor for name, tensor in weights.items() if name == "idle"}
    if not unused:
        return slow.local_training(model, federation, plan, 1, k, weights, federation.positions("train", k))

    class View:
        @staticmethod
        def apply(used, inputs, training):
            return model.apply({**used, **unused}, inputs, training=training)

    used = {name: tensor for name, tensor in weights.items() if name not in unused}
    trained = slow.local_training(View, federation, plan, 1, k, used, federation.positions("train", k))
    decayed, velocity = dict(unused), tree.zeros_like(unused)
    for _ in range(plan.local_epochs * -(-len(federation.positions("train", k)) // plan.batch_size)):
        velocity = tree.add(tree.scale(velocity, plan.momentum), decayed, plan.weight_decay)
        decayed = tree.add(decayed, velocity, -plan.lr)
    return {**trained, **decayed}


def test_onednn_where_torch_has_none(monkeypatch):
    monkeypatch.setattr(products, "available", lambda: False)
    with pytest.raises(ValueError, match="linear = 'onednn': .*without oneDNN"):
        LocalEngine(1, Execution(linear="onednn"))


@pytest.mark.skipif(not products.available(), reason="this build of torch has no oneDNN")
@pytest.mark.parametrize("module", [Tied, Transposed, Scalar, Added, Summed])
@pytest.mark.parametrize("together", [1, 3])
def test_onednn_changes_rounding_only(module, together):
    usual, other = (
        learn(own(module), Execution(together=together, linear=library), dtype=torch.float32)
        for library in ("torch", "onednn")
    )
    for left, right in zip(other, usual, strict=True):
        slow.assert_close(left, right, 1e-5)


@pytest.mark.parametrize(
    ("architecture", "name", "reason"),
    [
        (load_architecture("resnet18", {"norm": "batch", "width": 2}), "simple_cnn", "running_mean' is not trained"),
        (Own(Frozen), "mlp", "'scale' is not trained by gradients"),
        (Own(Deciding), "mlp", "vmap"),
        (Own(BatchStatistics), "simple_cnn", "batch"),
        (Own(repeated), "mlp", "a layer appears twice"),
        (Own(Centred), "mlp", "the examples of a batch see each other"),
    ],
)
def test_models_whose_clients_cannot_be_stacked(architecture, name, reason):
    model, federation = Model(architecture, unequal.SHAPES[name], CLASSES), unequal.federation(name)
    with LocalEngine(1, Execution(together=2)) as engine:
        with pytest.raises(ValueError, match=f"together = 2: .* cannot be stacked: .*{reason}") as error:
            engine.cohort(model, federation, PLAN, 1, (0, 1))
        assert "\n" not in str(error.value)
    # One by one they train; a last minibatch of one example, which BatchNorm refuses, is none of these clients'.
    assert len(learn(model, Execution(), name, (0, 2, 3, 4))) == 4


def test_group_normalisation_can_be_stacked():
    model = Model(load_architecture("resnet18", {"width": 4, "groups": 2}), unequal.SHAPES["simple_cnn"], CLASSES)
    plan = replace(PLAN, local_epochs=None, local_steps=2)
    usual, stacked = (learn(model, Execution(together=t), "simple_cnn", range(4), plan=plan) for t in (1, 3))
    for left, right in zip(stacked, usual, strict=True):
        slow.assert_close(left, right)


@dataclass(frozen=True)
class Normed:
    """BatchNorm that refuses a minibatch of one example."""

    head: ClassVar[str] = "2"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        norm = nn.BatchNorm1d(shape[0], track_running_stats=False)
        return nn.Sequential(nn.Flatten(), norm, nn.Linear(shape[0], classes))


def test_calibration_of_a_model_that_cannot_take_one_example(tmp_path):
    federation = unequal.federation("mlp", (8,) * 20)
    model = Model(Normed(), unequal.SHAPES["mlp"], CLASSES)
    assert calibrate(model, federation, PLAN, folder=tmp_path, seconds=lambda *_: 1e-3) == Execution()


@pytest.mark.parametrize("part", ["train", "query"])
@pytest.mark.parametrize("together", [1, 3])
def test_examples_of_clients_that_are_not_drawn_have_no_effect_whatever_they_are(part, together):
    """A stack is filled up to its largest client; what it is filled with may hold NaN."""
    federation = unequal.federation()
    inputs = federation.examples.inputs.clone()
    inputs[torch.from_numpy(np.concatenate([federation.positions("train", k) for k in (1, 3, 4, 7)]))] = torch.nan
    federation = replace(federation, examples=replace(federation.examples, inputs=inputs))

    def everything(client, weights):
        return {**client.descend(weights, part), "slope": client.gradient(weights, part).gradient["fc.weight"]}

    with LocalEngine(1, Execution(together=together)) as engine:
        cohort = engine.cohort(unequal.model(), federation, PLAN, 1, (0, 2, 5, 6))
        assert all(tree.is_finite(found) for found in cohort.map(everything, unequal.start()))


@pytest.mark.parametrize("layout", ["transposed", "channels-last"])
@pytest.mark.parametrize("clients", [None, 3])
def test_momentum_and_weight_decay_where_gradients_lie_differently_in_memory(layout, clients):
    """torch's fused SGD reads a gradient as if it lay in memory like its parameter."""
    draws = torch.Generator().manual_seed(1)
    shape, steps = (3, 4, 2, 6), 4
    parameter = torch.randn(shape, generator=draws, dtype=torch.float64)
    expected, speed, velocity = parameter.clone(), torch.zeros(shape).double(), torch.zeros(shape).double()
    for _ in range(steps):
        g = torch.randn(shape, generator=draws, dtype=torch.float64)
        gradient = (
            g.contiguous(memory_format=torch.channels_last)
            if layout == "channels-last"
            else g.transpose(1, 3).contiguous().transpose(1, 3)
        )
        assert gradient.stride() != parameter.stride()
        norms = g.flatten(1).norm(dim=1).view(-1, 1, 1, 1) if clients else g.norm()
        g = g * (PLAN.clip / (norms + 1e-6)).clamp(max=1)
        speed = PLAN.momentum * speed + g + PLAN.weight_decay * expected
        expected = expected - PLAN.lr * speed
        descent.update([parameter], descent.clip([gradient], PLAN.clip, clients), [[velocity]], PLAN, 1)
        torch.testing.assert_close(parameter, expected, rtol=1e-12, atol=1e-14)
