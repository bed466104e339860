"""Centralised pre-training: plain training on the examples of all clients together."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass as settings_dataclass

from fedstart.types import STRICT, Client, Cohort, Info, Plan, State, Weights

if TYPE_CHECKING:
    from fedstart.data.federation import Federation
    from fedstart.models import Model


@settings_dataclass(frozen=True, config=STRICT)
class Centralized:
    """The plan's local training on the pooled examples, as in Nguyen et al. 2023: one client holds everything.

    A round is the plan's local work: with `local_epochs=1`, 50 rounds are 50 epochs; with `local_steps`, that many
    minibatches. Without momentum this is plain SGD; momentum begins anew with each round.
    """

    server_data: Annotated[bool, Field(description="also train on the examples withheld from the clients")] = False

    def begin(self, model: Model, seed: int) -> Weights:
        """Initial weights of `seed`."""
        return model.init(seed)

    def prepare(self, federation: Federation, plan: Plan) -> tuple[Federation, Plan]:
        """The federation of one client that holds everybody's examples; the plan draws no cohort."""
        return federation.pooled(self.server_data), dataclasses.replace(plan, cohort=None)

    def learn(self, client: Client, weights: Weights) -> Weights:
        """On the one client: the plan's local training."""
        return client.descend(weights)

    def step(self, state: State, cohort: Cohort) -> tuple[State, Info]:
        """The trained weights; what the state remembers stays."""
        # Weight 1 rather than the number of examples: multiplying and dividing by it would round.
        return dataclasses.replace(state, weights=cohort.mean(self.learn, state.weights, weight=None)), {}
