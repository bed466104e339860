"""Reptile."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedstart import tree
from fedstart.types import STRICT, Client, Cohort, Info, State, Weights


@dataclass(frozen=True, config=STRICT)
class Reptile:
    """Reptile (Nichol et al. 2018, arXiv:1803.02999), batched, with clients for tasks: a step towards their mean.

    Clients count alike, whatever their size. Buffers take the plain mean.

    step_size = 1 is the plain mean of the trained weights, which is FedAvg where clients are of equal size.
    """

    step_size: Annotated[float, Field(gt=0, description="epsilon: share of the way to the mean; 1 = the mean")] = 1.0

    def learn(self, client: Client, weights: Weights) -> Weights:
        """On every client: W_k, the weights after the plan's local training."""
        return client.descend(weights)

    def step(self, state: State, cohort: Cohort) -> tuple[State, Info]:
        """On the server: phi <- phi + step_size mean_k (W_k - phi)."""
        mean = cohort.mean(self.learn, state.weights, weight=None)
        moved = tree.parameters(tree.subtract(mean, state.weights))
        # (step_size - 1) more of what the mean has moved: at step_size = 1 the mean itself, without rounding.
        return State(tree.add(mean, moved, scale=self.step_size - 1)), {"moved_norm": tree.norm(moved)}
