"""FedMeta."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedstart import tree
from fedstart.types import STRICT, Client, Cohort, Info, State, Weights


@dataclass(frozen=True, config=STRICT)
class FedMeta:
    """FedMeta with MAML (Chen et al. 2018, arXiv:1802.07876, Algorithm 1): weights from which clients adapt quickly.

    A client adapts to its support set (the plan's local training; the paper's MAML takes one step), and uploads the
    gradient of its query loss at its own adapted weights; the server steps against the plain mean of these gradients.
    order = 2 is MAML: the gradient is pulled back through the client's training, exactly. order = 1 leaves that out.
    Support and query are redrawn each round (`Plan.query_fraction`). Buffers stay the server's,
    so BatchNorm keeps its first statistics. meta_lr = 0 stays where it is.
    """

    meta_lr: Annotated[float, Field(ge=0, description="beta: rate of the server's step")] = 0.5
    order: Annotated[Literal[1, 2], Field(description="1 = first order; 2 = MAML, through the local training")] = 1

    def adapt_and_judge(self, client: Client, weights: Weights) -> Weights:
        """On every client: the query gradient at the weights that training on the support set leads to."""
        adapted = client.descend(weights, part="support")
        gradient = client.gradient(adapted, part="query").gradient
        return gradient if self.order == 1 else client.pullback(weights, gradient, part="support")

    def step(self, state: State, cohort: Cohort) -> tuple[State, Info]:
        """On the server: w <- w - beta / m * sum_u g_u."""
        gradient = cohort.mean(self.adapt_and_judge, state.weights, weight=None)
        return State(tree.add(state.weights, gradient, scale=-self.meta_lr)), {"meta_gradient": tree.norm(gradient)}
