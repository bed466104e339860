"""A node of the benchmark."""

from __future__ import annotations

from common import federation
from flwr.clientapp import ClientApp

from fedstart.engines.node import Site, serve

app = ClientApp()
serve(
    app,
    lambda context: Site(int(context.node_config["partition-id"]), federation(int(context.run_config["clients"]))),
)
