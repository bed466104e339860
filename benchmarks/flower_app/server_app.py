"""The server of the benchmark: writes the seconds of each round."""

from __future__ import annotations

import json
from pathlib import Path

from common import rounds
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the rounds that the run configuration asks for."""
    clients, number, hidden = (int(context.run_config[key]) for key in ("clients", "rounds", "hidden"))
    Path(str(context.run_config["out"])).write_text(json.dumps(rounds(grid, clients, number, hidden)))
