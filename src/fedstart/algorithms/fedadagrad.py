"""FedAdagrad."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedstart.algorithms import _adaptive
from fedstart.types import STRICT, Client, Cohort, Info, State, Weights


@dataclass(frozen=True, config=STRICT)
class FedAdagrad:
    """FedAdagrad (Reddi et al. 2021, arXiv:2003.00295, Algorithm 2): Adagrad on the server.

    The mean of what clients moved, each client alike as in the listing, is taken for the direction of a step. Both
    moments belong to the server and begin at 0 and tau^2; there is no bias correction. Buffers take the plain mean.

    v only grows: rounds that all move alike make steps that shrink as 1 / sqrt(t). The paper runs it with beta1 = 0.
    A tau far above all moves leaves momentum: v stays tau^2, and the step is server_lr / (2 tau) of m. With beta1 = 0
    it goes that share of the way to the mean.
    """

    server_lr: Annotated[float, Field(gt=0, description="eta: rate of the server's step")] = 0.0316
    beta1: Annotated[float, Field(ge=0, lt=1, description="share of the first moment that stays")] = 0.0
    tau: Annotated[float, Field(gt=0, description="adaptivity: moves much smaller than tau are not scaled up")] = 1e-3

    def learn(self, client: Client, weights: Weights) -> Weights:
        """On every client: the plan's local training."""
        return client.descend(weights)

    def step(self, state: State, cohort: Cohort) -> tuple[State, Info]:
        """On the server: v <- v + Delta^2, x <- x + server_lr m / (sqrt(v) + tau)."""
        mean = cohort.mean(self.learn, state.weights, weight=None)
        delta, m, v = _adaptive.moments(state, mean, self.beta1, self.tau)
        v = {name: v[name] + delta[name] ** 2 for name in v}
        return _adaptive.step(state, mean, m, v, self.server_lr, self.tau)
