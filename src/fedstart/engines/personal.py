"""Personal models: each client goes on alone from the final weights and is scored with what it has made of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedstart import tree
from fedstart.data.federation import Federation, Positions
from fedstart.engines.local import LocalEngine
from fedstart.models import Model
from fedstart.types import Client, Counts, Diverged, Plan, Weights


def personalise(
    engine: LocalEngine, model: Model, federation: Federation, plan: Plan, weights: Weights, part: str = "test"
) -> Counts:
    """Scores of every client on its own `part` with its own weights: the plan's local training on its `train` part.

    Fine-tuning a global model on each client, as Wang et al. 2019 evaluate it (arXiv:1910.10252). Minibatches are
    those of the round after the plan's last. The model is scored in evaluation mode; buffers (the running statistics
    of BatchNorm) are the client's own too. A client without training examples keeps the weights as they are. Only
    the clients that train at the same time have weights of their own in memory.
    Returns counts of shape (clients,). Raises Diverged for a client whose weights become NaN or infinite.
    """
    federation.positions(part, 0)
    trained = federation.eligible.tolist()
    idle = np.setdiff1d(np.arange(federation.clients), federation.eligible)
    found = [np.zeros(federation.clients, dtype=kind) for kind in (np.int64, np.int64, np.float64)]
    if len(idle):
        _take(found, engine.evaluate(model, _restricted(federation, part, idle), weights, part))
    width = engine.threads * engine.execution.together
    for begin in range(0, len(trained), width):
        clients = tuple(trained[begin : begin + width])
        cohort = engine.cohort(model, federation, plan, plan.rounds + 1, clients)
        for client, own in zip(clients, cohort.map(_fine_tune, weights), strict=True):
            if not tree.is_finite(own):
                raise Diverged(f"client {client}: a weight is NaN or infinite after fine-tuning; a smaller lr may help")
            alone = _restricted(federation, part, np.array([client]))
            _take(found, engine.evaluate(model, alone, own, part))
    return Counts(*found)


def _fine_tune(client: Client, weights: Weights) -> Weights:
    return client.descend(weights)


def _restricted(federation: Federation, part: str, clients: np.ndarray) -> Federation:
    """The federation with a part that only some clients have examples in."""
    held, sizes = federation.parts[part], np.zeros(federation.clients, dtype=np.int64)
    sizes[clients] = held.sizes[clients]
    values = np.concatenate([held[client] for client in clients.tolist()])
    only = Positions(np.concatenate([[0], np.cumsum(sizes)]), values)
    return replace(federation, parts={**federation.parts, part: only})


def _take(found: list[np.ndarray], counts: Counts) -> None:
    for total, some in zip(found, counts, strict=True):
        total += some
