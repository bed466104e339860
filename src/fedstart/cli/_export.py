"""`fedstart export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedstart import study as studies
from fedstart.cli._output import Screen


@dataclass(frozen=True)
class Export:
    """What `fedstart export` was asked for."""

    study: str
    directory: Path
    overrides: tuple[str, ...]
    scale: str | None
    start: str | None
    seed: int | None
    task: int | None
    algorithm: str | None
    partition: str | None


def export(request: Export, screen: Screen) -> None:
    """Writes the app and says how to run it."""
    place = Path(request.study).expanduser()
    made = place / "cells" if (place / "study.toml").is_file() else None
    study = studies.load(place / "study.toml" if made else request.study, request.scale, request.overrides)

    # Imports torch and Flower, which takes two seconds: what is wrong in the study was told before.
    from fedstart.flower import export as exporting

    choice = exporting.Choice(request.start, request.seed, request.task, request.algorithm, request.partition)
    app = exporting.export(study, request.directory, choice, made)
    resources = f"num-supernodes={app.nodes} client-resources-num-cpus=1"
    screen.answer({"directory": app.directory, "name": app.name, "nodes": app.nodes, "out": app.out})
    screen.show(
        f"App: {app.directory} ({app.nodes} nodes)",
        f"Run it on this machine: cd {app.directory}, . ./environment.sh, then",
        f'flwr run . local --federation-config "{resources}" --stream',
    )
