"""The server of the deployment tests: an algorithm on the Flower engine, into a run directory."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from recipe import MODEL, WEIGHTS, plan

from fedstart import names
from fedstart.engines.flower import FlowerEngine, Nodes, Patience
from fedstart.runs import RunDirectory, execute

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the method that the run configuration names."""
    config = context.run_config
    algorithm = names.discover("fedstart.algorithms")[str(config["method"])]()
    patience = Patience(nodes=int(config["nodes"]), join_seconds=60, reply_seconds=200)
    directory = RunDirectory(str(config["out"]))
    directory.open({"method": config["method"]})
    execute(
        directory,
        algorithm,
        MODEL,
        Nodes("digits", grid, patience),
        plan(int(config["rounds"])),
        WEIGHTS,
        FlowerEngine(grid, patience),
        every=0,
    )
    directory.finish()
