"""Replies of nodes: waited for in a fixed order, and believed only as far as they can be checked."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedstart.engines.wire import one_line

POLL_SECONDS = 0.1
LARGEST_IDENTITY = 999_999
"""Scores are kept in arrays by identity."""

LARGEST_LOSS = 1e30
"""A mean loss above this is refused, so that no node's report can make a sum over nodes overflow."""


class Report(NamedTuple):
    """What a node says of its work in an exchange: examples through the network, sum of training losses, their number.

    `backward` counts backward passes, at most three for each forward one.
    """

    examples: int
    backward: int
    loss_sum: float
    loss_count: int


class Introduction(NamedTuple):
    """What a node says of itself: its client's identity, the size of each part, and a fingerprint of its data."""

    identity: int
    sizes: dict[str, int]
    fingerprint: str


def push(grid: Grid, messages: Sequence[Message]) -> list[str]:
    """Sends messages; the identifier of each, empty for one that could not be sent."""
    identifiers = [identifier or "" for identifier in grid.push_messages(messages)]
    # A SuperLink that finds the whole of them too large takes none.
    return identifiers or [""] * len(messages)


def pull(grid: Grid, identifier: str, node: int) -> Message | str | None:
    """The reply to a message, or why there will be none, or None when it is not there yet."""
    if not identifier:
        return "the message could not be sent: the node has gone, or the message is too large"
    try:
        reply = next(iter(grid.pull_messages([identifier])), None)
    except Exception as error:
        # What a node sent is unpacked here, and fails in as many ways as there are to pack it wrongly.
        return f"the answer cannot be unpacked ({type(error).__name__}: {error})"
    if reply is None or reply.has_error():
        return reply
    if reply.metadata.src_node_id != node or reply.metadata.reply_to_message_id != identifier:
        return f"an answer from node {reply.metadata.src_node_id} to another message"
    return reply


def answers(grid: Grid, messages: Sequence[Message], seconds: float) -> Iterator[Message | str]:
    """The reply to each message, in the order of the messages, or why there is none.

    A reply waits at the SuperLink until its turn. `seconds` is the time for all of them together.
    """
    identifiers = push(grid, messages)
    nodes = [message.metadata.dst_node_id for message in messages]
    deadline = time.monotonic() + seconds
    for identifier, node in zip(identifiers, nodes, strict=True):
        found = pull(grid, identifier, node)
        while found is None:
            if time.monotonic() > deadline:
                found = f"no answer in {seconds:g} seconds"
            else:
                time.sleep(POLL_SECONDS)
                found = pull(grid, identifier, node)
        yield found


def content(reply: Message | str) -> RecordDict:
    """What a reply holds. Raises ValueError when there is none, or it is an error."""
    if isinstance(reply, str):
        raise ValueError(reply)
    if reply.has_error():
        reason = (reply.error.reason or "").strip().splitlines() or [f"code {reply.error.code}"]
        raise ValueError(f"the node answered with an error: {reason[-1]}")
    return reply.content


def report(record: RecordDict, identity: int, most: int) -> Report:
    """The report of client `identity`, which processed at most `most` examples. Raises ValueError for a wrong one."""
    metrics = record.metric_records.get("report", {})
    client, examples, backward, loss_sum, count = (
        metrics.get(key) for key in ("client", "examples", "backward", "loss-sum", "loss-count")
    )
    if client != identity:
        raise ValueError(f"the answer is client {client!r}'s")
    if not isinstance(examples, int) or not isinstance(count, int) or not 0 <= count <= examples:
        raise ValueError(f"{count!r} of {examples!r} examples is no count")
    if examples > most:
        raise ValueError(f"{examples} examples are more than the client has (allowed: at most {most})")
    if not isinstance(backward, int) or not 0 <= backward <= 3 * examples:
        raise ValueError(f"{backward!r} backward passes of {examples} examples are impossible")
    if not isinstance(loss_sum, int | float) or not abs(loss_sum) <= LARGEST_LOSS * count:
        raise ValueError(f"the training loss is {loss_sum!r} over {count} examples")
    return Report(examples, backward, float(loss_sum), count)


def size(record: RecordDict, most: int) -> int:
    """Size of the part that a node was asked about, in its words: 1 to `most`. Raises ValueError for another number."""
    found = record.metric_records["report"].get("size")
    if not isinstance(found, int) or not 1 <= found <= most:
        raise ValueError(f"{found!r} examples in the part are impossible (allowed: 1 to {most})")
    return found


def introduction(reply: Message | str, largest: int) -> Introduction:
    """What a node says of itself. Raises ValueError for what cannot be, and for a part larger than `largest`."""
    try:
        record = content(reply).config_records["hello"]
        identity, sizes, fingerprint = record["client"], json.loads(str(record["sizes"])), record["fingerprint"]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"the introduction is not whole ({type(error).__name__}: {error})") from None
    if type(identity) is not int or not 0 <= identity <= LARGEST_IDENTITY:
        raise ValueError(f"client {identity!r} is not an identity (allowed: 0 to {LARGEST_IDENTITY})")
    if not isinstance(sizes, dict) or not all(type(size) is int and size >= 0 for size in sizes.values()):
        raise ValueError(f"client {identity}: sizes {sizes!r} are not counts")
    for part, size in sizes.items():
        if size > largest:
            raise ValueError(f"client {identity}: {size} examples in {part!r} (allowed: at most {largest})")
    return Introduction(identity, sizes, one_line(fingerprint))


def scores(reply: Message | str, size: int) -> tuple[int, int, float]:
    """Correct, total and summed loss over a part of `size` examples. Raises ValueError for what cannot be."""
    metrics = content(reply).metric_records.get("scores", {})
    correct, total, loss = (metrics.get(key) for key in ("correct", "total", "loss"))
    if not isinstance(correct, int) or total != size or not 0 <= correct <= size:
        raise ValueError(f"{correct!r} of {total!r} correct is impossible for {size} examples")
    if not isinstance(loss, int | float) or not math.isfinite(loss):
        raise ValueError(f"the test loss is {loss!r}")
    return correct, size, float(loss)
