"""SCAFFOLD."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedstart import tree
from fedstart.types import STRICT, Client, Cohort, Info, State, Weights


@dataclass(frozen=True, config=STRICT)
class Scaffold:
    """SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378, Algorithm 1, option II): local steps corrected for drift.

    Client i keeps a control variate c_i, the server their mean c over all N clients; all begin at zero. Local steps
    follow `g_i - c_i + c`, and after K steps of rate eta, `c_i <- c_i - c + (x - y_i) / (K eta)`. Clients count alike,
    whatever their size. Option II assumes plain local SGD: momentum, weight decay and clipping blur c_i. Integer
    buffers keep the server's values.
    With one local step on whole batches and server_lr = 1 the first round is FedAvg with equal weights.
    """

    server_lr: Annotated[float, Field(gt=0, description="eta_g: rate of the server's step; 1 = the mean")] = 1.0

    def learn(self, client: Client, weights: Weights, control: Weights) -> Weights:
        """On every client: corrected local training; returns y_i - x and the change of c_i, joined."""
        own = client.recall("control") or tree.zeros_like(control)
        trained = client.descend(weights, linear=tree.subtract(control, own))
        moved = tree.subtract(trained, weights)
        rate = client.total_rate()
        change = {name: -control[name] - moved[name] / rate for name in control}
        client.remember("control", tree.add(own, change))
        return tree.join(moved, change)

    def step(self, state: State, cohort: Cohort) -> tuple[State, Info]:
        """On the server: x <- x + eta_g mean_i (y_i - x), c <- c + |S| / N mean_i (c_i's change)."""
        control = state.memory.get("control") or {
            name: tensor for name, tensor in tree.zeros_like(state.weights).items() if tensor.is_floating_point()
        }
        moved, change = tree.split(cohort.mean(self.learn, state.weights, control, weight=None))
        weights = tree.add(state.weights, moved, scale=self.server_lr)
        control = tree.add(control, change, scale=len(cohort.clients) / cohort.population)
        return State(weights, {"control": control}), {"control_norm": tree.norm(control)}
