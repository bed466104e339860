"""Flower's own differential-privacy strategies around an exchange whose result is a mean.

They clip each client's update and add Gaussian noise to the mean (`flwr.serverapp.strategy.DifferentialPrivacy...`,
and with client-side clipping the mods of `flwr.clientapp.mod`). fedstart hands them replies that it has checked and
takes back the noisy mean. The noise is drawn from NumPy's global generator, so such a run cannot be repeated bit
for bit, and all replies of an exchange are held at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy

from fedstart import tree
from fedstart.engines import wire
from fedstart.types import Judgement, Weights

Privacy = Callable[[Strategy], Strategy]
"""Wraps a strategy in one of Flower's for differential privacy, for instance
`functools.partial(DifferentialPrivacyServerSideFixedClipping, noise_multiplier=1.0, clipping_norm=0.5,
num_sampled_clients=10)`."""

CLIPPING_NORM, NORM_BIT = "clipping_norm", "norm_bit"
"""What Flower's client-side clipping sends and gets."""

TOLERANCE = 1e-3


def refuse_unless_means(algorithm: object, exchanges: Iterable[str], what: str) -> None:
    """Raises ValueError when an exchange of the algorithm returns something else than weights for a mean."""
    for name in exchanges:
        if (kind := wire.expected(getattr(algorithm, name))) is not Weights:
            sends = "loss and gradient" if kind is Judgement else "numbers"
            raise ValueError(
                f"{type(algorithm).__name__}.{name} gives the server each client's own {sends}, which {what} does not "
                "protect (allowed: methods whose exchanges are all means of weights, such as fedavg)"
            )


@dataclass(frozen=True)
class _Here:
    """What Flower's strategies ask of a grid to choose clients: the nodes of this exchange, and no others."""

    nodes: Sequence[int]

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)


class PrivateMean:
    """A mean by one of Flower's strategies; every client counts alike, as their noise is made for that.

    Integer tensors are not averaged: they keep the server's values.
    """

    def __init__(self, wrap: Privacy) -> None:
        self._strategy = wrap(FedAvg(min_train_nodes=1, min_available_nodes=1, weighted_by_key="weight"))
        self._norm: float | None = None
        self._reference: Weights = {}

    def announce(self, number: int, reference: Weights, nodes: Sequence[int]) -> dict[str, Any]:
        """What to send along to the nodes. `reference` is what a client returns when training changes nothing."""
        self._reference = reference
        config = ConfigRecord()
        try:
            list(self._strategy.configure_train(number, _arrays(reference), config, cast(Grid, _Here(nodes))))
        except Exception as error:
            raise ValueError(f"round {number}: differential privacy: {wire.one_line(error)}") from None
        norm = config.get(CLIPPING_NORM)
        self._norm = norm if isinstance(norm, float) else None
        return {} if self._norm is None else {CLIPPING_NORM: self._norm}

    def check(self, result: Weights) -> None:
        """Raises ValueError for a result that its node should have clipped and has not."""
        if self._norm is None:
            return
        norm = tree.norm(tree.subtract(result, self._reference))
        if norm > self._norm * (1 + TOLERANCE):
            raise ValueError(f"the update has norm {norm:.4g}, not clipped to {self._norm:g} (serve with Flower's mod)")

    def reply(self, asked: Message, result: Weights, reply: RecordDict) -> Message:
        """A client's checked result, as Flower's strategies want it."""
        bit = reply.metric_records["report"].get(NORM_BIT)
        metrics = MetricRecord({"weight": 1} if bit is None else {"weight": 1, NORM_BIT: bit})
        return Message(RecordDict({"arrays": _arrays(result), "metrics": metrics}), reply_to=asked)

    def mean(self, number: int, replies: Sequence[Message]) -> Weights:
        """The noisy mean. Raises ValueError when the strategy releases none."""
        try:
            arrays, _ = self._strategy.aggregate_train(number, replies)
        except Exception as error:
            raise ValueError(f"round {number}: differential privacy: {wire.one_line(error)}") from None
        if arrays is None:
            raise ValueError(f"round {number}: differential privacy: no mean was released")
        noisy = {name: torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()}
        return {
            name: noisy[name].to(tensor.dtype).reshape(tensor.shape) if name in noisy else tensor
            for name, tensor in self._reference.items()
        }


def _arrays(weights: Weights) -> ArrayRecord:
    """The floating tensors, in types that NumPy can add."""
    floating = {n: t.detach().cpu() for n, t in weights.items() if t.is_floating_point()}
    wide = {n: t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for n, t in floating.items()}
    return ArrayRecord({name: Array(tensor.contiguous().numpy()) for name, tensor in wide.items()})
