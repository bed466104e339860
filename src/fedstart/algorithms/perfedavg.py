"""Per-FedAvg."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedstart import tree
from fedstart.types import STRICT, Client, Cohort, Info, Slope, State, Weights


@dataclass(frozen=True, config=STRICT)
class PerFedAvg:
    """Per-FedAvg (Fallah et al. 2020, arXiv:2002.07948, Algorithm 1): FedAvg on the loss after one more local step.

    With three minibatches D, D', D'' a local step of rate beta (the plan's lr) is
    `u = w - alpha grad f(w, D); w <- w - beta (I - alpha H(w, D'')) grad f(u, D')`. "FO" leaves the Hessian H out; "HF"
    takes `H v = (grad f(w + delta v) - grad f(w - delta v)) / (2 delta)`, with `v = grad f(u, D')` (section 5).
    D' is the minibatch that other methods see. The paper weighs clients alike; here they count by their examples, as
    in FedAvg. alpha = 0 is FedAvg. FO takes two backward passes a step, HF four.
    """

    alpha: Annotated[float, Field(ge=0, description="rate of the step that the model is judged behind; 0 = FedAvg")] = (
        0.01
    )
    variant: Annotated[
        Literal["FO", "HF"], Field(description="Hessian left out (FO), or its product by differences (HF)")
    ] = "FO"
    delta: Annotated[float, Field(gt=0, description="HF: step of the difference of gradients")] = 1e-3

    def learn(self, client: Client, weights: Weights) -> Weights:
        """On every client: the plan's local training with the meta-gradient."""
        return client.descend(weights, direction=self.meta_gradient)

    def meta_gradient(self, slope: Slope, weights: Weights) -> Weights:
        """In every local step: the gradient of f(w - alpha grad f(w)), or its part without the Hessian."""
        adapted = tree.add(weights, slope(weights, 1), scale=-self.alpha)
        gradient = slope(adapted, 0)
        if self.variant == "FO":
            return gradient
        ahead, behind = (slope(tree.add(weights, gradient, scale=sign * self.delta), 2) for sign in (1, -1))
        return tree.add(gradient, tree.subtract(ahead, behind), scale=-self.alpha / (2 * self.delta))

    def step(self, state: State, cohort: Cohort) -> tuple[State, Info]:
        """On the server: w = sum_k n_k / n * w_k."""
        return State(cohort.mean(self.learn, state.weights)), {}
