"""FedProx."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedstart.types import STRICT, Client, Cohort, Info, State, Weights


@dataclass(frozen=True, config=STRICT)
class FedProx:
    """FedProx (Li et al. 2020, arXiv:1812.06127, Algorithm 2): local training held near the server's weights.

    Every client minimises its loss plus `mu / 2 * ||w - w_server||^2`; the server takes the mean of the results,
    weighted by the number of training examples (the paper draws clients with that probability and takes a plain
    mean). mu = 0 is FedAvg; a large mu moves hardly at all.
    """

    mu: Annotated[float, Field(ge=0, description="strength of the proximal term; 0 = FedAvg")] = 1.0

    def learn(self, client: Client, weights: Weights) -> Weights:
        """On every client: the plan's local training with the proximal term."""
        return client.descend(weights, proximal=self.mu)

    def step(self, state: State, cohort: Cohort) -> tuple[State, Info]:
        """On the server: w = sum_k n_k / n * w_k."""
        return State(cohort.mean(self.learn, state.weights)), {}
