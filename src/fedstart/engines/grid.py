"""A Flower grid in this process: an unmodified ServerApp and ClientApp without Ray, SuperLink or SuperNodes.

For tests, and for trying an exported app. Messages are copied on their way, so that neither side can change what
the other holds; a ClientApp that raises answers with an error, as on a SuperNode.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

CLIENT_APP_RAISED = 2
SERVER = 1


class InProcessGrid(Grid):
    """Runs `app(message, context)` for each message, when its reply is asked for: so one reply is held at a time.

    `nodes` gives every node's configuration by its id, for instance `{5: {"partition-id": 0}}`. Nodes may be added
    to it and taken from it at any time; one that is taken away keeps its messages and never answers. Nor does one
    whose app returns None.
    """

    def __init__(
        self,
        app: Callable[[Message, Context], Message | None],
        nodes: Mapping[int, Mapping[str, Any]],
        run_config: Mapping[str, Any] | None = None,
    ) -> None:
        self.nodes = {node: dict(config) for node, config in nodes.items()}
        self._app = app
        self._run_config = dict(run_config or {})
        self._run = Run.create_empty(run_id=1)
        self._contexts: dict[int, Context] = {}
        self._waiting: dict[str, Message] = {}
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, SERVER, 1

    def set_run(self, run: Run) -> None:
        """Sets the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are there."""
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Takes messages; the identifier is empty for a node that is not there."""
        held = list(messages)
        # Most messages of an exchange share one content: one copy for all of them, and another for each node.
        copies = {id(content): copy.deepcopy(content) for content in {id(m.content): m.content for m in held}.values()}
        return [self._take(message, copies[id(message.content)]) for message in held]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to those of the messages that are answered; the nodes do their work now, one by one."""
        replies = (self._answer(self._waiting.pop(i)) for i in list(message_ids) if i in self._waiting)
        return [reply for reply in replies if reply is not None]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Delivers messages and gives the replies; never waits, as every node answers at once or never."""
        return self.pull_messages(self.push_messages(messages))

    def _take(self, message: Message, content: RecordDict) -> str:
        if message.metadata.dst_node_id not in self.nodes:
            return ""
        identifier = uuid.uuid4().hex
        metadata = copy.copy(message.metadata)
        metadata.__dict__["_message_id"] = identifier
        self._waiting[identifier] = make_message(metadata=metadata, content=content)
        return identifier

    def _answer(self, message: Message) -> Message | None:
        node = message.metadata.dst_node_id
        if node not in self.nodes:
            return None
        delivered = make_message(metadata=message.metadata, content=copy.deepcopy(message.content))
        try:
            return copy.deepcopy(self._app(delivered, self._context(node)))
        except Exception as error:
            # What a SuperNode does with whatever a ClientApp raises.
            return Message(Error(CLIENT_APP_RAISED, f"{type(error).__name__}: {error}"), reply_to=delivered)

    def _context(self, node: int) -> Context:
        if node not in self._contexts:
            self._contexts[node] = Context(
                run_id=1, node_id=node, node_config=self.nodes[node], state=RecordDict(), run_config=self._run_config
            )
        return self._contexts[node]
