"""The slow, literal building blocks of the reference loops: one example set, one weight dictionary, no engine.

They share with fedstart only the model's `apply`, the federation's `batch`, and the documented paths of the
keyed draws, so that both see the same cohorts and minibatches.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from fedstart import keys
from fedstart.data.federation import Federation
from fedstart.models import Model
from fedstart.types import Plan, Weights


def cohort(federation: Federation, plan: Plan, number: int) -> list[int]:
    """The clients of a round."""
    everyone = [k for k in range(federation.clients) if len(federation.positions("train", k)) > 0]
    if plan.cohort is None:
        return everyone
    drawn = keys.generator(plan.seed, "cohort", number).choice(len(everyone), plan.cohort, replace=False)
    return sorted(everyone[i] for i in drawn)


def loss_and_gradient(
    model: Model, federation: Federation, weights: Weights, positions: np.ndarray
) -> tuple[float, Weights]:
    """Mean cross-entropy over the positions, and its gradient."""
    leaves = {name: tensor.detach().clone().requires_grad_(True) for name, tensor in weights.items()}
    inputs, labels = federation.batch(positions, torch.float64)
    loss = cross_entropy(model.apply(leaves, inputs, training=True), labels)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return loss.item(), dict(zip(leaves, gradients, strict=True))


def minibatches(plan: Plan, number: int, client: int, n: int, draw: int = 0) -> list[np.ndarray]:
    """The places of each local step's minibatch among a client's n examples; `draw` > 0 for further ones."""
    b, purpose = plan.batch_size, f"minibatches-{draw}" if draw else "minibatches"
    steps = plan.local_steps if plan.local_steps is not None else plan.local_epochs * math.ceil(n / b)
    batches: list[np.ndarray] = []
    for repeat in range(steps):
        order = keys.orders(plan.seed, purpose, number, np.array([client]), np.array([n]), repeat)[0]
        batches += [order[i : i + b] for i in range(0, n, b)]
    return batches[:steps]


def local_training(
    model: Model,
    federation: Federation,
    plan: Plan,
    number: int,
    client: int,
    weights: Weights,
    positions: np.ndarray,
    extra: Callable[[Weights], Weights] | None = None,
    instead: Callable[[int, Weights], Weights] | None = None,
) -> Weights:
    """SGD with momentum, weight decay and clipping, written out; `extra(w)` is added to every gradient.

    `instead(k, w)` takes the place of the minibatch's gradient in step k = 0, 1, ...
    """
    w = {name: tensor.clone() for name, tensor in weights.items()}
    velocity = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    for k, batch in enumerate(minibatches(plan, number, client, len(positions))):
        if instead is None:
            _, g = loss_and_gradient(model, federation, w, positions[batch])
        else:
            g = instead(k, w)
        if extra is not None:
            term = extra(w)
            g = {name: g[name] + term[name] for name in g}
        if plan.clip is not None:
            length = math.sqrt(sum(float((t**2).sum()) for t in g.values()))
            g = {name: t * min(1.0, plan.clip / (length + 1e-6)) for name, t in g.items()}
        for name in w:
            velocity[name] = plan.momentum * velocity[name] + g[name] + plan.weight_decay * w[name]
            w[name] = w[name] - plan.lr * velocity[name]
    return w


def traced_training(
    model: Model,
    federation: Federation,
    plan: Plan,
    number: int,
    client: int,
    weights: Weights,
    positions: np.ndarray,
) -> Weights:
    """`local_training` as one graph from `weights` to the result: what autograd needs for MAML. SGD only."""
    w = dict(weights)
    velocity = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    for batch in minibatches(plan, number, client, len(positions)):
        inputs, labels = federation.batch(positions[batch], torch.float64)
        loss = cross_entropy(model.apply(w, inputs, training=True), labels)
        g = dict(zip(w, torch.autograd.grad(loss, list(w.values()), create_graph=True), strict=True))
        if plan.clip is not None:
            length = torch.sqrt(sum((t**2).sum() for t in g.values()))
            g = {name: t * torch.clamp(plan.clip / (length + 1e-6), max=1.0) for name, t in g.items()}
        velocity = {name: plan.momentum * velocity[name] + g[name] + plan.weight_decay * w[name] for name in w}
        w = {name: w[name] - plan.lr * velocity[name] for name in w}
    return w


def adaptive_server(
    model: Model,
    federation: Federation,
    plan: Plan,
    x: Weights,
    server_lr: float,
    beta1: float,
    tau: float,
    second: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> tuple[Weights, Weights, Weights]:
    """Algorithm 2 of Reddi et al. 2021, its `v <- second(v, d)` in three versions: x, m and v at the end."""
    m = {name: torch.zeros_like(tensor) for name, tensor in x.items()}
    v = {name: torch.full_like(tensor, tau * tau) for name, tensor in x.items()}
    for t in range(1, plan.rounds + 1):
        sampled, delta = cohort(federation, plan, t), {}
        for i in sampled:
            trained = local_training(model, federation, plan, t, i, x, federation.positions("train", i))
            delta[i] = {name: trained[name] - x[name] for name in x}
        for name in x:
            d = sum(delta[i][name] for i in sampled) / len(sampled)
            m[name] = beta1 * m[name] + (1 - beta1) * d
            v[name] = second(v[name], d)
        x = {name: x[name] + server_lr * m[name] / (torch.sqrt(v[name]) + tau) for name in x}
    return x, m, v


def support_and_query(federation: Federation, plan: Plan, number: int, client: int) -> tuple[np.ndarray, np.ndarray]:
    """The round's division of a client's training examples."""
    train = federation.positions("train", client)
    query = min(max(1, round(plan.query_fraction * len(train))), len(train) - 1)
    order = keys.orders(plan.seed, "query", number, np.array([client]), np.array([len(train)]))[0]
    return train[order[query:]], train[order[:query]]


def assert_close(left: Weights, right: Weights, relative: float = 1e-9) -> None:
    """All tensors equal up to `relative` of the largest entry."""
    assert set(left) == set(right)
    for name in right:
        distance = float((left[name] - right[name]).abs().max())
        assert distance <= relative * float(right[name].abs().max()), f"{name}: {distance}"
