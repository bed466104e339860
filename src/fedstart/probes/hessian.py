"""The curvature of the training loss: its largest eigenvalue and its trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from fedstart import keys
from fedstart.probes._features import drawn
from fedstart.probes._products import Curvature
from fedstart.probes._subject import Measured, Row, Subject
from fedstart.types import STRICT

TOGETHER = 4
"""Random vectors of the trace that share one forward pass: each takes the memory of two copies of the weights."""


@dataclass(frozen=True, config=STRICT)
class Hessian:
    """Largest eigenvalue and trace of the Hessian of the mean training loss, from products with vectors alone.

    The largest eigenvalue (in sign, not in size) by Lanczos' method with full reorthogonalisation (Golub and Van Loan,
    Matrix Computations), the trace by Hutchinson's estimate with Rademacher vectors (Hutchinson 1990). Nguyen et al.
    2023 (ICLR, "Where to Begin?", Table 1) report the largest eigenvalue of random and pre-trained starts; on how many
    examples and by what method is not known to us.

    Values: `top_eigenvalue`, further ones as `eigenvalue_2`, ...; `top_residual`, the length of H v - theta v for the
    top pair: some eigenvalue lies that near. `smallest_ritz_value` lies above the smallest eigenvalue: curvature
    downwards where it is negative. `trace`, and `trace_error`, its standard error over the draws; `mean_eigenvalue`,
    the trace divided by the number of parameters; `lanczos_steps` taken. Rows: the trace of each tensor's own block.

    Lanczos keeps a copy of the weights for each step. BatchNorm takes its running statistics; dropout is off.
    Raises ValueError where the loss or a product is NaN or infinite.
    """

    cost: ClassVar[str] = (
        "on `examples` training examples: 1 forward and 3 backward passes for each Lanczos step, "
        "2 backward passes for each draw of the trace, and 1 forward and 1 backward pass for every 4 draws"
    )

    examples: Annotated[int, Field(ge=1, description="training examples, drawn from all clients")] = 128
    steps: Annotated[int, Field(ge=1, description="most Lanczos steps")] = 20
    draws: Annotated[int, Field(ge=2, description="random vectors of the trace")] = 4
    top: Annotated[int, Field(ge=1, description="how many of the largest eigenvalues")] = 1
    tolerance: Annotated[
        float, Field(ge=0, lt=1, description="Lanczos ends when the residuals fall below this share of an eigenvalue")
    ] = 1e-4

    def measure(self, subject: Subject) -> Measured:
        """Eigenvalues, trace and its error; a row per tensor."""
        seed = subject.plan.seed
        curvature = Curvature(subject, drawn(subject.federation, "train", self.examples, seed))
        if self.top > min(self.steps, curvature.length):
            raise ValueError(
                f"hessian: top = {self.top} eigenvalues need as many steps and parameters "
                f"(given: {self.steps} steps, {curvature.length} parameters)"
            )
        first = keys.generator(seed, "probe-hessian-start").standard_normal(curvature.length)
        ritz = lanczos(
            lambda vector: curvature.times([vector])[0],
            torch.from_numpy(first).to(curvature.dtype),
            self.steps,
            self.tolerance,
            self.top,
            lambda call: next(subject.engine.stream(lambda _: call(), [None])),
        )
        blocks = self._blocks(curvature, seed)
        errors = blocks.std(axis=0, ddof=1) / math.sqrt(self.draws)
        rows: list[Row] = [
            {"layer": name, "parameters": size, "trace": float(mean), "trace_error": float(error)}
            for (name, size), mean, error in zip(curvature.sizes.items(), blocks.mean(axis=0), errors, strict=True)
        ]
        traces = blocks.sum(axis=1)
        # Fewer are found where the Hessian has fewer different eigenvalues.
        places = range(1, min(self.top, len(ritz.values)))
        values = {
            "top_eigenvalue": float(ritz.values[0]),
            **{f"eigenvalue_{place + 1}": float(ritz.values[place]) for place in places},
            "top_residual": float(ritz.residuals[0]),
            "smallest_ritz_value": float(ritz.values[-1]),
            "trace": float(traces.mean()),
            "trace_error": float(traces.std(ddof=1)) / math.sqrt(self.draws),
            "mean_eigenvalue": float(traces.mean()) / curvature.length,
            "lanczos_steps": float(len(ritz.values)),
        }
        return Measured(values, tuple(rows))

    def _blocks(self, curvature: Curvature, seed: int) -> np.ndarray:
        """`v_l . (H v)_l` for each draw of v and tensor l, shape (draws, tensors): the mean is the block's trace."""
        found = []
        for begin in range(0, self.draws, TOGETHER):
            generators = [
                keys.generator(seed, "probe-hessian-trace", draw)
                for draw in range(begin, min(begin + TOGETHER, self.draws))
            ]
            signs = [torch.from_numpy(rng.integers(0, 2, curvature.length, dtype=np.int8)) for rng in generators]
            vectors = [(2 * sign - 1).to(curvature.dtype) for sign in signs]
            for vector, product in zip(vectors, curvature.times(vectors), strict=True):
                # numpy adds on one thread, whatever the length.
                parts = zip(curvature.split(vector), curvature.split(product), strict=True)
                found.append([float((left * right).numpy().sum(dtype=np.float64)) for left, right in parts])
        return np.array(found)


class Ritz(NamedTuple):
    """Ritz values, descending, and for each pair the length of H v - theta v, both of shape (steps taken,)."""

    values: np.ndarray
    residuals: np.ndarray


def lanczos(
    multiply: Callable[[Tensor], Tensor],
    start: Tensor,
    steps: int,
    tolerance: float,
    top: int,
    alone: Callable[[Callable[[], Any]], Any],
) -> Ritz:
    """Lanczos' method from `start`, shape (n,): at most `min(steps, n)` products with a symmetric matrix.

    Ends early when the residuals of the `top` largest values are at most `tolerance` times the value's size, or where
    nothing is left that is orthogonal to what was found. `alone(call)` runs the arithmetic on vectors on one thread,
    so that it is added in one order.
    """
    steps = min(steps, len(start))
    basis = torch.empty(steps, len(start), dtype=start.dtype)
    diagonal, beside = np.zeros(steps), np.zeros(steps)
    vector = alone(lambda: start / _length(start))
    ritz = Ritz(np.zeros(0), np.zeros(0))
    for step in range(steps):
        basis[step] = vector
        product = multiply(vector)
        alpha, rest, beside[step] = alone(lambda step=step, product=product: _step(basis[: step + 1], product))
        diagonal[step] = alpha
        values, vectors = eigh_tridiagonal(diagonal[: step + 1], beside[:step])
        ritz = Ritz(values[::-1], beside[step] * np.abs(vectors[-1, ::-1]))
        settled = step + 1 >= top and (ritz.residuals[:top] <= tolerance * np.abs(ritz.values[:top])).all()
        if settled or beside[step] <= 100 * torch.finfo(start.dtype).eps * np.abs(values).max():
            break
        vector = rest / beside[step]
    return ritz


def _step(basis: Tensor, product: Tensor) -> tuple[float, Tensor, float]:
    """The diagonal coefficient, the product without its part in the basis, and the length of that rest."""
    alpha = float((basis[-1].double() * product.double()).sum())
    # Once leaves rounding errors as large as what was taken away; twice is enough.
    for _ in range(2):
        product = product - (basis @ product) @ basis
    return alpha, product, _length(product)


def _length(vector: Tensor) -> float:
    return float(vector.double().square().sum().sqrt())
