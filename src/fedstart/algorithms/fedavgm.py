"""FedAvgM."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedstart import tree
from fedstart.types import STRICT, Client, Cohort, Info, State, Weights


@dataclass(frozen=True, config=STRICT)
class FedAvgM:
    """FedAvgM (Hsu et al. 2019, arXiv:1909.06335): FedAvg with momentum on the server.

    What a round moves, `w - mean_k w_k`, weighted by the number of training examples, is taken for a gradient. The
    velocity begins at zero. Buffers have no velocity and take the mean.

    momentum = 0 with server_lr = 1 is FedAvg. Rounds that all move alike go 1 / (1 - momentum) times as far in the end.
    """

    momentum: Annotated[float, Field(ge=0, lt=1, description="beta: share of the velocity that stays; 0 = none")] = 0.9
    server_lr: Annotated[float, Field(gt=0, description="rate of the server's step; 1 = the paper's")] = 1.0

    def learn(self, client: Client, weights: Weights) -> Weights:
        """On every client: the plan's local training."""
        return client.descend(weights)

    def step(self, state: State, cohort: Cohort) -> tuple[State, Info]:
        """On the server: v <- beta v + (w - mean_k w_k), w <- w - server_lr v."""
        mean = cohort.mean(self.learn, state.weights)
        delta = tree.parameters(tree.subtract(state.weights, mean))
        velocity = state.memory.get("velocity") or tree.zeros_like(delta)
        velocity = tree.add(delta, velocity, scale=self.momentum)
        weights = tree.add({**mean, **tree.parameters(state.weights)}, velocity, scale=-self.server_lr)
        return State(weights, {"velocity": velocity}), {"velocity_norm": tree.norm(velocity)}
