"""FedAvg."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from fedstart.types import STRICT, Client, Cohort, Info, State, Weights


@dataclass(frozen=True, config=STRICT)
class FedAvg:
    """FedAvg (McMahan et al. 2017, arXiv:1602.05629, Algorithm 1): the mean of locally trained weights.

    Every client of the cohort trains from the server's weights; the server takes their mean, weighted by the
    number of training examples. With one local step on whole batches it is gradient descent on the pooled loss.
    """

    def learn(self, client: Client, weights: Weights) -> Weights:
        """On every client: the plan's local training."""
        return client.descend(weights)

    def step(self, state: State, cohort: Cohort) -> tuple[State, Info]:
        """On the server: w = sum_k n_k / n * w_k."""
        return State(cohort.mean(self.learn, state.weights)), {}
