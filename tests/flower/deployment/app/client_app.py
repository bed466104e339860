"""A node of the deployment tests: fedstart's exchanges, and a place where a test can hold it."""

from __future__ import annotations

import time
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from recipe import federation

from fedstart.engines.node import Site, serve

HOLD_SECONDS = 300.0


def hold(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Waits while the folder `hold` has a file `<client> <message type> <round>`, and says in it that it waits."""
    metadata = message.metadata
    place = f"{context.node_config['partition-id']} {metadata.message_type} {metadata.group_id}"
    file = Path(str(context.run_config["hold"])) / place
    deadline = time.monotonic() + HOLD_SECONDS
    while file.is_file() and time.monotonic() < deadline:
        if not file.read_text():
            file.write_text("held")
        time.sleep(0.05)
    return call_next(message, context)


app = ClientApp(mods=[hold])
serve(app, lambda context: Site(int(context.node_config["partition-id"]), federation()))
