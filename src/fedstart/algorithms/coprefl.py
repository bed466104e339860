"""CoPreFL."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedstart import tree
from fedstart.types import STRICT, Client, Cohort, Info, Judgement, State, Weights


@dataclass(frozen=True, config=STRICT)
class CoPreFL:
    """CoPreFL (Chu et al. 2025, arXiv:2402.02225, Algorithms 1 and 2): starts that serve clients well, and alike.

    A round imitates a downstream round and then improves its outcome: clients train, the mean is a temporary model,
    and one meta-step on it lowers `balance * L + (1 - balance) * var_j L_j` over the m query losses L_j at the
    temporary model (equations 3 and 4; L is the sum of the L_j, or their mean, and the variance the population's).

    Scenario "I": clients train on their support sets, and the query sets are the clients' too, redrawn each round
    (`Plan.query_fraction`). Scenario "II": clients train on all they have, and the query sets are m random equal parts
    of the server's own examples. order = 2 pulls the meta-gradient back through every client's local training,
    exactly (equation 5), in one more exchange; order = 1 is the paper's approximation, which leaves that out.

    meta_lr = 0 is FedAvg on the support sets. balance = 1 ignores the variance, balance = 0 sees nothing else.
    balance = 1 with the sum and meta_lr = z is balance = 1 with the mean and meta_lr = m z.
    """

    balance: Annotated[
        float, Field(ge=0, le=1, description="gamma: 1 = query losses only, 0 = their variance only")
    ] = 0.5
    meta_lr: Annotated[float, Field(ge=0, description="zeta: rate of the meta-step")] = 1e-3
    scenario: Annotated[
        Literal["I", "II"], Field(description="query sets: I = the clients', II = parts of the server's examples")
    ] = "I"
    reduction: Annotated[Literal["sum", "mean"], Field(description="of the query losses; the paper prints a sum")] = (
        "sum"
    )
    order: Annotated[Literal[1, 2], Field(description="1 = the paper's; 2 = exact, through local training")] = 1

    @property
    def support(self) -> str:
        """The part that clients train on."""
        return "support" if self.scenario == "I" else "train"

    def adapt(self, client: Client, weights: Weights) -> Weights:
        """On every client: local training (Algorithm 1, the inner loop)."""
        return client.descend(weights, part=self.support)

    def judge(self, client: Client, weights: Weights) -> Judgement:
        """On every client, or part of the server's examples: query loss of the temporary model, and its gradient."""
        return client.gradient(weights, part="query")

    def pull(self, client: Client, weights: Weights, cotangent: Weights) -> Weights:
        """On every client, order 2: the meta-gradient, back through the client's local training."""
        return client.pullback(weights, cotangent, part=self.support)

    def step(self, state: State, cohort: Cohort) -> tuple[State, Info]:
        """On the server: temporary model, then one meta-step on the temporary model."""
        temporary = cohort.mean(self.adapt, state.weights, weight=self.support)
        if self.scenario == "I":
            verdicts = cohort.map(self.judge, temporary)
        else:
            verdicts = cohort.server(self.judge, temporary, pieces=len(cohort.clients))
        losses = [verdict.loss for verdict in verdicts]
        m = len(losses)
        mean = sum(losses) / m
        variance = sum((loss - mean) ** 2 for loss in losses) / m
        share = 1.0 if self.reduction == "sum" else 1 / m
        coefficients = [share * self.balance + (1 - self.balance) * (2 / m) * (loss - mean) for loss in losses]
        gradient = tree.combine((verdict.gradient for verdict in verdicts), coefficients)
        if self.order == 2:
            gradient = cohort.mean(self.pull, state.weights, gradient, weight=self.support)
        weights = tree.add(temporary, gradient, scale=-self.meta_lr)
        meta_loss = share * self.balance * sum(losses) + (1 - self.balance) * variance
        return State(weights), {"query_loss": mean, "query_variance": variance, "meta_loss": meta_loss}
