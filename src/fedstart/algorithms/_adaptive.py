"""What FedAdam, FedYogi and FedAdagrad share (Reddi et al. 2021, arXiv:2003.00295, Algorithm 2)."""

from __future__ import annotations

from typing import NamedTuple

from fedstart import tree
from fedstart.types import Info, State, Weights


class Moments(NamedTuple):
    """The round's change Delta_t, the first moment m_t, and the second moment v_(t-1): parameters by name."""

    delta: Weights
    first: Weights
    second: Weights


def moments(state: State, mean: Weights, beta1: float, tau: float) -> Moments:
    """Delta_t = mean - x_t and m_t = beta1 m_(t-1) + (1 - beta1) Delta_t; m begins at 0 and v at tau^2."""
    delta = tree.parameters(tree.subtract(mean, state.weights))
    first = state.memory.get("first") or tree.zeros_like(delta)
    first = tree.add(tree.scale(first, beta1), delta, scale=1 - beta1)
    second = state.memory.get("second") or {name: d.new_full(d.shape, tau**2) for name, d in delta.items()}
    return Moments(delta, first, second)


def step(
    state: State, mean: Weights, first: Weights, second: Weights, server_lr: float, tau: float
) -> tuple[State, Info]:
    """x_(t+1) = x_t + server_lr m_t / (sqrt(v_t) + tau), without bias correction; buffers take the mean."""
    direction = {name: m / (second[name].sqrt() + tau) for name, m in first.items()}
    weights = tree.add({**mean, **tree.parameters(state.weights)}, direction, scale=server_lr)
    return State(weights, {"first": first, "second": second}), {"step_norm": server_lr * tree.norm(direction)}
