"""A small study and the grid that runs an app of it, for several test files."""

from __future__ import annotations

import runpy
import tomllib
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from fedstart import study as studies
from fedstart.engines.grid import InProcessGrid
from fedstart.flower import serve
from fedstart.flower.export import App
from fedstart.flower.settings import flat

SMALL = (
    "seeds=[0]",
    "model.name=mlp",
    "model.settings.hidden=[8]",
    "pretraining.clients=4",
    "pretraining.plan.rounds=3",
    "pretraining.plan.cohort=3",
    "pretraining.plan.local_epochs=1",
    "downstream.clients=4",
    "downstream.tasks=2",
    "downstream.plan.rounds=2",
)


def study(*more: str) -> studies.Study:
    return studies.load("digits", None, (*SMALL, *more))


def config_of(app: App) -> dict[str, Any]:
    """The run config that Flower would hand to the app."""
    project = tomllib.loads((app.directory / "pyproject.toml").read_text("utf-8"))
    return flat(project["tool"]["flwr"]["app"]["config"])


def grid_of(run_config: dict[str, Any], nodes: int = 4, client: Any = None, **more: Any) -> InProcessGrid:
    if client is None:
        client = ClientApp()
        serve(client)
    configurations = {700 - 13 * k: {"partition-id": k, "num-partitions": nodes, **more} for k in range(nodes)}
    return InProcessGrid(client, configurations, run_config)


def run_files(directory: Path, run_config: dict[str, Any], grid: InProcessGrid | None = None) -> None:
    """Runs the written server_app.py on nodes that run the written client_app.py."""
    server = runpy.run_path(str(directory / "server_app.py"))["app"]
    if grid is None:
        grid = grid_of(run_config, client=runpy.run_path(str(directory / "client_app.py"))["app"])
    server(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config))
