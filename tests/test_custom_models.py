"""Your own modules as models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedstart.models import Model
from fedstart.models.custom import Custom


class Tied(nn.Module):
    """A tied parameter, a frozen one, and a buffer that is not part of the state dict."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width, bias=False)
        self.second = nn.Linear(width, width, bias=False)
        self.second.weight = self.first.weight
        self.frozen = nn.Parameter(torch.full((width,), 2.0), requires_grad=False)
        self.register_buffer("offset", torch.full((width,), 3.0), persistent=False)
        self.out = nn.Linear(width, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.out(self.second(self.first(inputs)) * self.frozen + self.get_buffer("offset"))


def with_shape(shape: tuple[int, ...], classes: int, double: bool = False) -> nn.Module:
    module = Tied(shape[0], classes)
    return module.double() if double else module


def with_classes(classes: int, width: int = 3) -> nn.Module:
    return Tied(width, classes).double()


def without_arguments() -> nn.Module:
    return nn.Identity()


def no_module(classes: int) -> int:
    return classes


HERE = __name__
NUMBER = 3


@pytest.mark.parametrize("factory", ["with_shape", "with_classes"])
def test_custom_module(factory: str) -> None:
    model = Model(Custom(factory=f"{HERE}:{factory}", head="out"), (3,), 4)
    weights, inputs = model.init(0), torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    shapes = {name: tuple(shape) for name, shape in model.shapes.items()}
    assert shapes == {"frozen": (3,), "first.weight": (3, 3), "out.weight": (4, 3), "out.bias": (4,)}
    assert model.parameters == ("first.weight", "out.weight", "out.bias")
    assert model.head == ("out.weight", "out.bias")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    doubled = {**weights, "first.weight": 2 * weights["first.weight"]}
    tied = ((inputs @ doubled["first.weight"].T) @ doubled["first.weight"].T) * 2 + 3
    expected = tied @ weights["out.weight"].T + weights["out.bias"]
    torch.testing.assert_close(model.apply(doubled, inputs), expected)
    assert model.transfer(weights, 2, seed=0)[1]["out.weight"].shape == (2, 3)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("no.such_module:build", "No module named 'no'"),
        (f"{HERE}:with_clases", "did you mean 'with_classes'?"),
        (f"{HERE}:without_arguments", "takes 0 arguments without default"),
        (f"{HERE}:no_module", "returned int"),
        (f"{HERE}:NUMBER", "is int (allowed: a function or class)"),
    ],
)
def test_custom_factory_errors(factory: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Model(Custom(factory=factory, head="out"), (3,), 4).init(0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_custom_head_must_exist() -> None:
    model = Model(Custom(factory=f"{HERE}:with_shape", head="ouT"), (3,), 4)
    with pytest.raises(ValueError, match="unknown head 'ouT'; did you mean 'out'"):
        _ = model.head
