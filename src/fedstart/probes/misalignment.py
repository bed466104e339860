"""Misaligned filters of a real network: those that point away from what they will learn, by four measures."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedstart.probes._responses import filter_layers, responses
from fedstart.probes._subject import Measured, Subject
from fedstart.types import STRICT, Weights

KINDS = ("response", "sum", "final", "update")


@dataclass(frozen=True, config=STRICT)
class Misalignment:
    """Share of filters that are misaligned against a reference, per layer and in all. A reconstruction: *ours*.

    Equation 8 of arXiv:2502.08024 compares filter signs at different rounds; its formula is not known to us. A filter
    is a row of a convolution's or linear layer's weights. With w the filter here and w' in the reference `end` (a later
    round, or the end of another run from the same start, such as the IID twin), it is misaligned where

    - `response`: its responses to the classes, centred over classes, have a negative product with those of w';
    - `sum`: the sum of its weights has another sign than that of w' (the words "filter signs" taken literally);
    - `final`: <w, w'> < 0;
    - `update`: <w, w' - w> < 0: what it has yet to learn opposes it.

    `docs/lab.md` judges them where the truth is known. Raises ValueError without `others["end"]`.
    """

    cost: ClassVar[str] = "response: two forward passes over `examples` examples; others: none"

    kind: Annotated[Literal["response", "sum", "final", "update"], Field(description="what is compared")] = "response"
    examples: Annotated[int, Field(ge=2, description="training examples that responses are taken on")] = 512

    def measure(self, subject: Subject) -> Measured:
        """`share` of all filters, and a row for each layer with its share and number of filters."""
        found = {name: values < 0 for name, values in self.scores(subject).items()}
        rows = tuple(
            {"layer": name, "share": float(wrong.double().mean()), "filters": len(wrong)}
            for name, wrong in found.items()
        )
        return Measured({"share": float(torch.cat(list(found.values())).double().mean())}, rows)

    def scores(self, subject: Subject) -> dict[str, Tensor]:
        """For each layer the product of every filter with its reference, shape (filters,): negative = misaligned."""
        if "end" not in subject.others:
            raise ValueError(
                "misalignment needs weights to compare with: others = {'end': weights of a later round}; "
                "fedstart diagnose takes them with --end"
            )
        here, there = subject.weights, subject.others["end"]
        if self.kind == "response":
            left, right = (responses(subject, weights, self.examples) for weights in (here, there))
            return {name: (left[name] * right[name]).sum(1) for name in left}
        return {name: _product(self.kind, here, there, name) for name in filter_layers(subject.model)}


def _product(kind: str, here: Weights, there: Weights, name: str) -> Tensor:
    left, right = (weights[name].double().flatten(1) for weights in (here, there))
    if kind == "sum":
        return left.sum(1) * right.sum(1)
    return (left * (right if kind == "final" else right - left)).sum(1)
