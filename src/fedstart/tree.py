"""Arithmetic on Weights: every function takes and returns dictionaries of tensors, in place of nothing.

Floating tensors follow the stated arithmetic. Integer tensors (BatchNorm's `num_batches_tracked`) are
averaged in float64 and rounded by `Mean`, and left as they are everywhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fedstart.types import Weights

# Algorithms import this file, and they are listed and checked without torch, which takes a second to import.
if TYPE_CHECKING:
    import torch
    from torch import Tensor


def clone(weights: Weights) -> Weights:
    """A copy that shares no memory with `weights` and carries no gradient."""
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def zeros_like(weights: Weights) -> Weights:
    """Zeros with the names, shapes and types of `weights`."""
    import torch

    return {name: torch.zeros_like(tensor) for name, tensor in weights.items()}


def add(left: Weights, right: Weights, scale: float = 1.0) -> Weights:
    """`left + scale * right` over the names of `right`; names only in `left` are kept as they are.

    Raises ValueError if `right` has a name that `left` lacks.
    """
    import torch

    unknown = sorted(set(right) - set(left))
    if unknown:
        raise ValueError(f"cannot add {unknown[0]!r}: the left side has no such tensor")
    floating = [name for name in right if left[name].is_floating_point()]
    sums = (
        torch._foreach_add([left[n] for n in floating], [right[n] for n in floating], alpha=scale) if floating else ()
    )
    return {**left, **dict(zip(floating, sums, strict=True))}


def subtract(left: Weights, right: Weights) -> Weights:
    """`left - right`, both with the same names."""
    return add(left, right, scale=-1.0)


def scale(weights: Weights, factor: float) -> Weights:
    """`factor * weights`."""
    return {n: t * factor if t.is_floating_point() else t for n, t in weights.items()}


def parameters(weights: Weights) -> Weights:
    """The floating tensors, without the running statistics of normalisation layers, which are told by their names.

    Where a server steps beyond a mean, a running variance could come out negative; these take the mean instead.
    """
    running = ("running_mean", "running_var")
    return {n: t for n, t in weights.items() if t.is_floating_point() and n.rpartition(".")[2] not in running}


def combine(trees: Iterable[Weights], coefficients: Iterable[float]) -> Weights:
    """`sum_j coefficients[j] * trees[j]`, added in the order given.

    Raises ValueError when there is no tree, or the two are of different length.
    """
    total: Weights | None = None
    for tree, coefficient in zip(trees, coefficients, strict=True):
        total = scale(tree, coefficient) if total is None else add(total, tree, scale=coefficient)
    if total is None:
        raise ValueError("cannot combine an empty list of trees")
    return total


def join(*trees: Weights) -> Weights:
    """Several trees as one, so that they can travel and be averaged together: name `i/n` is name `n` of tree i."""
    return {f"{place}/{name}": tensor for place, tree in enumerate(trees) for name, tensor in tree.items()}


def split(joined: Weights) -> list[Weights]:
    """The trees that `join` put together, in order."""
    trees: dict[int, Weights] = {}
    for path, tensor in joined.items():
        place, _, name = path.partition("/")
        trees.setdefault(int(place), {})[name] = tensor
    return [trees[place] for place in sorted(trees)]


def dot(left: Weights, right: Weights) -> float:
    """Inner product in float64 over the names of `right`."""
    # Weights read from a file come in any order, and sums depend on it by rounding.
    names = sorted(name for name in right if right[name].is_floating_point())
    return sum(float((left[name].double() * right[name].double()).sum()) for name in names)


def norm(weights: Weights) -> float:
    """Euclidean norm of all floating tensors together, in float64."""
    return dot(weights, weights) ** 0.5


def is_finite(weights: Weights) -> bool:
    """True if no floating tensor holds NaN or infinity."""
    return all(bool(t.isfinite().all()) for t in weights.values() if t.is_floating_point())


def nbytes(value: object) -> int:
    """Bytes of all tensors in a nest of mappings, lists and tuples; 8 for each bare number."""
    from torch import Tensor

    total, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            total += item.nbytes
        elif isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list | tuple):
            waiting.extend(item)
        elif isinstance(item, int | float):
            total += 8
    return total


def fingerprint(weights: Weights) -> str:
    """SHA-256 over names, types, shapes and bytes: equal exactly when the weights are equal bit for bit."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().clone(memory_format=torch.contiguous_format)
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Mean:
    """Streaming weighted mean: holds one running sum, whatever the number of trees added.

    The sum is `sum_j weight_j * tree_j` in the order of the calls, divided once at the end, so the same
    order gives the same bits on every engine.
    """

    def __init__(self) -> None:
        self._sum: dict[str, Tensor] = {}
        self._types: dict[str, torch.dtype] = {}
        self._weight = 0.0

    def add(self, weights: Weights, weight: float) -> None:
        """Adds one tree; `weight` must be at least 0."""
        import torch

        if weight < 0:
            raise ValueError(f"a weight in a mean must be at least 0, got {weight}")
        wide = {n: t.detach() if t.is_floating_point() else t.detach().double() for n, t in weights.items()}
        if not self._sum:
            self._types = {n: t.dtype for n, t in weights.items()}
            self._sum = {n: t * weight for n, t in wide.items()}
        else:
            torch._foreach_add_([self._sum[n] for n in wide], list(wide.values()), alpha=weight)
        self._weight += weight

    def add_all(self, trees: Sequence[Weights], weights: Sequence[float]) -> None:
        """Adds trees with the same names, all of them at once in memory; the sum is rounded in another order."""
        import torch

        for name, first in trees[0].items():
            with torch.no_grad():
                stack = torch.stack([tree[name] for tree in trees])
            stack = stack if first.is_floating_point() else stack.double()
            total = torch.tensordot(torch.tensor(weights, dtype=stack.dtype), stack, 1)
            self._sum[name] = self._sum[name] + total if name in self._sum else total
            self._types.setdefault(name, first.dtype)
        self._weight += sum(weights)

    def merge(self, other: Mean) -> None:
        """Adds all that was added to another mean."""
        for name, total in other._sum.items():
            self._sum[name] = self._sum[name] + total if name in self._sum else total
        self._types = {**other._types, **self._types}
        self._weight += other._weight

    def value(self) -> Weights:
        """The mean; raises ValueError when the weights added so far sum to 0."""
        if self._weight == 0:
            raise ValueError("the mean of nothing is not defined: the weights sum to 0")
        mean = {n: t / self._weight for n, t in self._sum.items()}
        return {n: (t if t.dtype == self._types[n] else t.round().to(self._types[n])) for n, t in mean.items()}
