"""Who is there: the nodes of a Flower grid, by the identities that their own configurations give them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedstart.engines import replies
from fedstart.engines.wire import one_line

AGAIN_SECONDS = 30.0
"""A node that introduced itself wrongly is asked again after this long: its trouble may have passed."""


@dataclass(frozen=True)
class Patience:
    """How long a server waits, and how many it needs.

    `nodes`: nodes to wait for before the first round, at most `join_seconds`. `reply_seconds`: time for all replies
    of one exchange. `share`: the part, 0 to 1, of those nodes that later rounds wait for, and of a round's cohort
    that must answer every exchange (at least one). `largest`: the most examples of one part that a node is believed.
    """

    nodes: int = 1
    join_seconds: float = 300.0
    reply_seconds: float = 3600.0
    share: float = 0.5
    largest: int = 10_000_000


USUAL = Patience()


@dataclass(frozen=True)
class Member:
    """A node as the server knows it: where it is, how many examples its parts have, and their fingerprint."""

    node: int
    sizes: dict[str, int]
    fingerprint: str = ""


@dataclass
class Nodes:
    """The nodes of a grid by identity. Implements `fedstart.training.Roster`.

    Asking for `eligible` looks for nodes that came or went. `members` are those in use by their identity, `refused`
    says of every other node why it is not. When two nodes have one identity, the second waits until the first goes.
    """

    name: str
    grid: Grid
    patience: Patience = USUAL
    members: dict[int, Member] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    _asked: dict[int, tuple[str, float]] = field(default_factory=dict, repr=False)
    _spare: dict[int, replies.Introduction] = field(default_factory=dict, repr=False)
    _again: dict[int, float] = field(default_factory=dict, repr=False)
    _begun: bool = False

    @property
    def eligible(self) -> np.ndarray:
        """Identities of the nodes that are there and have training examples, ascending.

        Waits for `patience.nodes` of them, later for their `patience.share`; and, at most once for each node, until
        it has said who it is. Raises ValueError when too few come in `patience.join_seconds`.
        """
        patience = self.patience
        needed = max(1, math.ceil(patience.share * patience.nodes)) if self._begun else patience.nodes
        deadline = time.monotonic() + patience.join_seconds
        while True:
            awaited = self._look()
            found = self.trained
            if len(found) >= needed and not awaited:
                self._begun = True
                return np.array(found, dtype=np.int64)
            if time.monotonic() > deadline:
                refused = "".join(f"; node {node}: {why}" for node, why in sorted(self.refused.items()))
                raise ValueError(
                    f"{self.name}: {len(found)} of {needed} nodes came in {patience.join_seconds:g} seconds{refused}"
                )
            time.sleep(replies.POLL_SECONDS)

    @property
    def trained(self) -> list[int]:
        """Identities of the members known so far that have training examples, ascending."""
        return sorted(identity for identity, member in self.members.items() if member.sizes.get("train", 0) > 0)

    def _look(self) -> bool:
        """Brings `members` up to date, without waiting; true while a node still has time to say who it is."""
        there, now = set(self.grid.get_node_ids()), time.monotonic()
        self.members = {identity: member for identity, member in self.members.items() if member.node in there}
        for table in (self.refused, self._asked, self._spare, self._again):
            for node in set(table) - there:
                del table[node]
        for node in sorted(self._spare):
            self._settle(node, self._spare[node])
        self._ask(sorted(there - {member.node for member in self.members.values()}), now)
        for node, (identifier, _) in sorted(self._asked.items()):
            reply = replies.pull(self.grid, identifier, node)
            if reply is None:
                self.refused[node] = "it has not said yet who it is"
                continue
            del self._asked[node]
            try:
                self._settle(node, replies.introduction(reply, self.patience.largest))
            except ValueError as error:
                self.refused[node], self._again[node] = one_line(error), now + AGAIN_SECONDS
        return any(now < until for _, until in self._asked.values())

    def _ask(self, strangers: list[int], now: float) -> None:
        """Asks nodes who they are: those never asked, which are waited for, and those whose trouble may be over."""
        fresh = [node for node in strangers if node not in self.refused]
        again = [node for node in strangers if self._again.get(node, math.inf) < now]
        wait = min(self.patience.join_seconds, self.patience.reply_seconds)
        messages = [Message(RecordDict(), node, "query.hello") for node in fresh + again]
        for node, identifier in zip(fresh + again, replies.push(self.grid, messages) if messages else [], strict=True):
            self._asked[node] = (identifier, now if node in again else now + wait)
            self._again.pop(node, None)

    def _settle(self, node: int, said: replies.Introduction) -> None:
        if said.identity in self.members:
            self._spare[node] = said
            holder = self.members[said.identity].node
            self.refused[node] = f"client {said.identity} is there already, from node {holder}"
            return
        self.members[said.identity] = Member(node, said.sizes, said.fingerprint)
        self._spare.pop(node, None)
        self.refused.pop(node, None)
