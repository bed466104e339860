"""CoPreFL."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedstart import tree
from fedstart.types import STRICT, Client, Cohort, Info, Judgement, State, Weights


@dataclass(frozen=True, config=STRICT)
class CoPreFL:
    """CoPreFL, scenario I, first order (Chu et al. 2025, arXiv:2402.02225, Algorithm 1).

    A round imitates a downstream round and then improves its outcome: clients train on their support sets, the
    mean is a temporary model, and one meta-step on it lowers `balance * sum_j L_j + (1 - balance) * var_j L_j`
    over the clients' query losses at the temporary model (equations 3 and 4; a sum and a population variance).
    Support and query are redrawn each round (`Plan.query_fraction`). The meta-gradient is the paper's first-order
    approximation: the derivative through local training is ignored.

    meta_lr = 0 is FedAvg on the support sets. balance = 1 ignores the variance, balance = 0 sees nothing else.
    """

    balance: Annotated[float, Field(ge=0, le=1, description="gamma: 1 = sum of query losses, 0 = their variance")] = 0.5
    meta_lr: Annotated[float, Field(ge=0, description="zeta: rate of the meta-step")] = 1e-3

    def adapt(self, client: Client, weights: Weights) -> Weights:
        """On every client: local training on the support set (Algorithm 1, the inner loop)."""
        return client.descend(weights, part="support")

    def judge(self, client: Client, weights: Weights) -> Judgement:
        """On every client: loss of the temporary model on the query set, and its gradient."""
        return client.gradient(weights, part="query")

    def step(self, state: State, cohort: Cohort) -> tuple[State, Info]:
        """On the server: temporary model, then one meta-step on the temporary model."""
        temporary = cohort.mean(self.adapt, state.weights, weight="support")
        verdicts = cohort.map(self.judge, temporary)
        losses = [verdict.loss for verdict in verdicts]
        m = len(losses)
        mean = sum(losses) / m
        variance = sum((loss - mean) ** 2 for loss in losses) / m
        coefficients = [self.balance + (1 - self.balance) * (2 / m) * (loss - mean) for loss in losses]
        gradient = tree.combine((verdict.gradient for verdict in verdicts), coefficients)
        weights = tree.add(temporary, gradient, scale=-self.meta_lr)
        meta_loss = self.balance * sum(losses) + (1 - self.balance) * variance
        return State(weights), {"query_loss": mean, "query_variance": variance, "meta_loss": meta_loss}
