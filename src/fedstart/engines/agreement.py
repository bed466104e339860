"""How far clients agree on each filter's move: what an adaptive schedule of local steps sees."""

from __future__ import annotations

import torch
from torch import Tensor

from fedstart.types import Weights


class Agreement:
    """Sums over clients that tell, filter by filter, how alike their updates are; a filter is a row of a matrix.

    The server needs the sum of the updates u_k, and for each filter the sum of their squared lengths: sums, which
    secure aggregation gives. Tensors of one dimension (biases, norms) and what is not trained are left out.
    """

    def __init__(self) -> None:
        self._total: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}
        self.clients = 0

    def add(self, begin: Weights, trained: Weights) -> None:
        """Adds one client's update, `trained - begin`."""
        self.clients += 1
        for name, tensor in trained.items():
            if tensor.dim() < 2 or not tensor.is_floating_point():
                continue
            moved = (tensor - begin[name]).flatten(1)
            squares = moved.double().square().sum(1)
            if name in self._total:
                self._total[name].add_(moved)
                self._squares[name].add_(squares)
            else:
                self._total[name], self._squares[name] = moved, squares

    def merge(self, other: Agreement) -> None:
        """Adds all that was added to another."""
        self.clients += other.clients
        for name, total in other._total.items():
            if name in self._total:
                self._total[name].add_(total)
                self._squares[name].add_(other._squares[name])
            else:
                self._total[name], self._squares[name] = total, other._squares[name]

    @property
    def stagnating(self) -> float:
        """Share of filters whose agreement is below a quarter of their layer's upper quartile; NaN below two clients.

        A filter's agreement is the mean inner product of two different clients' updates,
        `(||sum_k u_k||^2 - sum_k ||u_k||^2) / (K (K - 1))`: what one client alone has memorised drops out.
        """
        if self.clients < 2 or not self._total:
            return float("nan")
        # Of the mean over pairs the sum is enough: a factor common to all filters changes no comparison.
        found = [total.double().square().sum(1) - self._squares[name] for name, total in self._total.items()]
        low = [layer < torch.quantile(layer, 0.75) / 4 for layer in found]
        return float(torch.cat(low).double().mean())
