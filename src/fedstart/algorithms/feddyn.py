"""FedDyn."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedstart import tree
from fedstart.types import STRICT, Client, Cohort, Info, State, Weights


@dataclass(frozen=True, config=STRICT)
class FedDyn:
    """FedDyn (Acar et al. 2021, arXiv:2111.04263, Algorithm 1): clients' optima bent towards that of their mean loss.

    Client k keeps a dual, its guess of the gradient of L_k at the optimum, and minimises
    `L_k(w) - <dual_k, w> + alpha/2 ||w - w_server||^2`; the server keeps h, the mean of the duals over all N clients.
    All begin at zero. Clients count alike, whatever their size. Buffers have no dual and take the plain mean.
    The paper solves each client's problem exactly; here it is the plan's local training, whatever is left over.

    The weights stand still only where the gradients of all clients' losses sum to zero, however long clients train.
    In the first round with all clients the server goes twice as far as their mean.
    """

    alpha: Annotated[float, Field(gt=0, description="strength of the proximal term, and rate of the duals")] = 0.01

    def learn(self, client: Client, weights: Weights) -> Weights:
        """On every client: w_k = argmin of the bent loss, dual_k <- dual_k - alpha (w_k - w)."""
        dual = client.recall("dual") or tree.zeros_like(tree.parameters(weights))
        trained = client.descend(weights, linear=tree.scale(dual, -1), proximal=self.alpha)
        moved = tree.parameters(tree.subtract(trained, weights))
        client.remember("dual", tree.add(dual, moved, scale=-self.alpha))
        return trained

    def step(self, state: State, cohort: Cohort) -> tuple[State, Info]:
        """On the server: h <- h - alpha |S| / N (mean_k w_k - w), w <- mean_k w_k - h / alpha."""
        mean = cohort.mean(self.learn, state.weights, weight=None)
        moved = tree.parameters(tree.subtract(mean, state.weights))
        h = state.memory.get("h") or tree.zeros_like(moved)
        h = tree.add(h, moved, scale=-self.alpha * len(cohort.clients) / cohort.population)
        return State(tree.add(mean, h, scale=-1 / self.alpha), {"h": h}), {"h_norm": tree.norm(h)}
