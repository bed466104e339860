"""A method that trains nothing: every client sends back what it was sent, moved a little."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from fedstart.types import STRICT, Client, Cohort, Info, State, Weights


@dataclass(frozen=True, config=STRICT)
class Echo:
    """One exchange of the model's weights, without any training."""

    def echo(self, client: Client, weights: Weights) -> Weights:
        """On every client: no training. Replies differ, since Flower sends what is the same only once."""
        return {name: tensor + client.size() for name, tensor in weights.items()}

    def step(self, state: State, cohort: Cohort) -> tuple[State, Info]:
        """On the server: the mean."""
        return State(cohort.mean(self.echo, state.weights)), {}
