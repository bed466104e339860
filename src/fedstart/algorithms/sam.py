"""SAM as local optimiser."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedstart import tree
from fedstart.types import STRICT, Client, Cohort, Info, Slope, State, Weights


@dataclass(frozen=True, config=STRICT)
class SAM:
    """FedSAM (Qu et al. 2022, arXiv:2206.02618; Caldarola et al. 2022): FedAvg whose clients take steps of SAM.

    SAM (Foret et al. 2021, arXiv:2010.01412, Algorithm 1) follows the gradient found a distance rho uphill on the
    same minibatch: `e = rho g / ||g||`, then `w <- w - eta grad L(w + e)`. Two backward passes a step.
    rho = 0 is FedAvg.
    """

    rho: Annotated[float, Field(ge=0, description="distance that each step looks uphill; 0 = FedAvg")] = 0.05

    def learn(self, client: Client, weights: Weights) -> Weights:
        """On every client: the plan's local training with SAM's gradient."""
        return client.descend(weights, direction=self.look_uphill)

    def look_uphill(self, slope: Slope, weights: Weights) -> Weights:
        """In every local step: the gradient at the worst point nearby, to first order."""
        gradient = slope(weights)
        return slope(tree.add(weights, gradient, scale=self.rho / (tree.norm(gradient) + 1e-12)))

    def step(self, state: State, cohort: Cohort) -> tuple[State, Info]:
        """On the server: w = sum_k n_k / n * w_k."""
        return State(cohort.mean(self.learn, state.weights)), {}
