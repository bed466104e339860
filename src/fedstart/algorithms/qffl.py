"""q-FFL."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedstart import tree
from fedstart.types import STRICT, Client, Cohort, Info, State, Weights

SMALLEST = 1e-10
"""Added to every loss, so that a loss of 0 has a power below 0."""


@dataclass(frozen=True, config=STRICT)
class QFFL:
    """q-FedAvg (Li et al. 2020, arXiv:1905.10497, Algorithm 2): clients with a larger loss pull harder.

    Minimises `sum_k F_k^(q+1) / (q+1)` with steps of rate `1/L`, where L = 1 / client lr and F_k is the loss of the
    server's weights on all of a client's training examples, plus 1e-10 (as in the authors' program). Clients count
    alike, whatever their size. The norm in h_k is over all floating tensors but running statistics. Those, and integer
    buffers, take the plain mean. Where every h_k is too small for the type of the weights, the weights stay.

    q = 0 is the plain mean of the trained weights. A large q sees the largest loss alone, and takes short steps.
    """

    q: Annotated[float, Field(ge=0, description="weight of large losses; 0 = the plain mean of trained weights")] = 1.0

    def learn(self, client: Client, weights: Weights) -> Weights:
        """On every client: Delta_k = F_k^q L (w - w_k) beside its buffers, and h_k, joined."""
        loss = client.loss(weights) + SMALLEST
        trained = client.descend(weights)
        moved = tree.scale(tree.parameters(tree.subtract(weights, trained)), 1 / client.lr)
        h = self.q * loss ** (self.q - 1) * tree.norm(moved) ** 2 + loss**self.q / client.lr
        delta = tree.scale(moved, loss**self.q)
        return tree.join({**trained, **delta}, {"h": next(iter(moved.values())).new_tensor(h)})

    def step(self, state: State, cohort: Cohort) -> tuple[State, Info]:
        """On the server: w <- w - sum_k Delta_k / sum_k h_k; a mean of each is as good as a sum."""
        mean, rest = tree.split(cohort.mean(self.learn, state.weights, weight=None))
        delta, h = tree.parameters(mean), float(rest["h"])
        weights = {**mean, **tree.parameters(state.weights)}
        return State(weights if h == 0 else tree.add(weights, delta, scale=-1 / h)), {"h": h}
