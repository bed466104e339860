"""Writing Flower apps: a small project with readable settings and two short Python files that import fedstart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomli_w
from safetensors.torch import save

from fedstart import __version__, keys, names, tree
from fedstart.engines.execution import Execution
from fedstart.engines.members import Patience
from fedstart.files import write_atomically
from fedstart.flower import environment
from fedstart.flower.settings import AppSettings, flat, model_table, partition_table, run_config
from fedstart.starts import Start
from fedstart.study import Study
from fedstart.study.cells import Material, Run, plan_cells
from fedstart.study.running import executions
from fedstart.types import Weights

Tables = Mapping[str, Mapping[str, Any]]

SERVER = '''"""The server: rounds of the method on the nodes that are there."""

from flwr.serverapp import ServerApp

from fedstart.flower import main

app = ServerApp()
app.main()(main)
'''
CLIENT = '''"""A node: answers the method's messages with its own examples."""

from flwr.clientapp import ClientApp

from fedstart.flower import serve

app = ClientApp()
serve(app)
'''


@dataclass(frozen=True)
class Choice:
    """Which run of a study to export: without `task` the pre-training of a start, with it a downstream run.

    None is the first there is: of the study's seeds, of its starts (for pre-training those that are federated
    methods), of its algorithms, of its partitions.
    """

    start: str | None = None
    seed: int | None = None
    task: int | None = None
    algorithm: str | None = None
    partition: str | None = None


@dataclass(frozen=True)
class App:
    """An app that was written: where, its name, how many nodes it wants, and where its result will lie."""

    directory: Path
    name: str
    nodes: int
    out: Path


def export(study: Study, directory: Path | str, choice: Choice = Choice(), cells: Path | None = None) -> App:
    """Writes one run of a study as a Flower project that `flwr run` takes as it is.

    A downstream run begins from the Start that the study made: `cells` is the folder of its finished runs (not
    needed for starts without training). The result goes to `directory/run`.
    Raises ValueError for a choice that is not there and a Start that is not made yet, and when `directory` holds
    other files.
    """
    # Nodes compute in the default way; nothing is measured here for them.
    known = executions(cells.parent) if cells else {"pretrain": Execution(), "downstream": Execution()}
    material = Material(study, known)
    seed = _chosen("seed", choice.seed, list(study.seeds))
    place = Path(directory).expanduser().absolute()
    if choice.task is None:
        for given in ("algorithm", "partition"):
            if getattr(choice, given) is not None:
                raise ValueError(f"{given} belongs to a downstream run: say which with task")
        run, start = _pretraining(material, choice.start, seed)
        beginning = {"begin": None, "seed": seed}
        sharing = material.parts.sharings[start]
        weights, share = None, {"seed": seed, "withheld": sharing.withheld}
        share |= {"clients": sharing.clients, "test_fraction": 0.0}
        partition, name = sharing.partition, f"{study.name}-{start}"
    else:
        run, weights, label, start = _downstream(material, choice, seed, cells)
        beginning = {"begin": str(place / "begin.safetensors"), "seed": seed}
        share = {"seed": keys.number(seed, "task", choice.task), "clients": study.downstream.clients}
        share |= {"test_fraction": study.downstream.test_fraction}
        partition = material.parts.downstream_partitions[label]
        name = f"{study.name}-{start}-{run.method.entry.name}-task{choice.task}"
    data, examples = study.data, material.examples
    tables = {
        "run": {"method": run.method.entry.method, "out": str(place / "run"), **beginning},
        "plan": asdict(run.plan),  # pyright: ignore[reportArgumentType]
        "settings": asdict(run.method.method),
        "model": model_table(run.model),
        "data": {**data.model_dump(), "own": False, "class_names": examples.class_names}
        | {"mean": examples.mean, "std": examples.std},
        "federation": {"name": run.federation.name, "classes": run.federation.classes, **share}
        | {"fingerprint": run.federation.fingerprint},
        "partition": partition_table(partition),
        "patience": asdict(Patience(nodes=run.federation.clients)),
    }
    return write(place, name, tables, run.federation.clients, weights)


def write(directory: Path, name: str, tables: Tables, nodes: int, weights: Weights | None = None) -> App:
    """Writes an app from its tables of settings; `weights` go to `begin.safetensors`.

    Raises ValueError when the directory holds files that are no app, and for settings that the app would refuse.
    """
    directory = directory.absolute()
    if directory.exists() and any(directory.iterdir()) and not (directory / "server_app.py").exists():
        raise ValueError(f"{directory} is not empty and holds no app; choose another directory")
    config = run_config(tables)
    settings = AppSettings.read(flat(config))
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    directory.mkdir(parents=True, exist_ok=True)
    if weights is not None:
        write_atomically(directory / "begin.safetensors", save({k: weights[k].contiguous() for k in sorted(weights)}))
    files = {
        "server_app.py": SERVER,
        "client_app.py": CLIENT,
        "environment.sh": environment.script(),
        "pyproject.toml": _project(name, config),
        "README.md": _readme(name, nodes, settings),
        ".gitignore": "/run/\n/begin.safetensors\n",
    }
    for file, text in files.items():
        write_atomically(directory / file, text)
    return App(directory, name, nodes, Path(settings.run.out))


def _pretraining(material: Material, start: str | None, seed: int) -> tuple[Run, str]:
    federated = [name for name, method in material.parts.starts.items() if not method.start]
    chosen = _chosen("federated start", start, federated)
    return material.pretraining_run(chosen, seed), chosen


def _downstream(material: Material, choice: Choice, seed: int, cells: Path | None) -> tuple[Run, Weights, str, str]:
    """The run, its first weights, and the names of its partition and start."""
    assert choice.task is not None
    count = material.study.downstream.tasks
    if not 0 <= choice.task < count:
        raise ValueError(f"task {choice.task} does not exist (allowed: 0 to {count - 1})")
    start = _chosen("start", choice.start, list(material.parts.starts))
    algorithm = _chosen("algorithm", choice.algorithm, list(material.parts.algorithms))
    label = _chosen("partition", choice.partition, list(material.parts.downstream_partitions))
    weights = _start(material, start, seed, cells)
    begin = tree.fingerprint(weights)
    run = material.downstream_run(start, algorithm, label, choice.task, seed, begin)
    return run, material.transfer(start, weights, run.model.classes, choice.task, seed), label, start


def _start(material: Material, start: str, seed: int, cells: Path | None) -> Weights:
    if not material.pretraining_run(start, seed).plan.rounds:
        return material.begin(start, seed)
    key = next(
        cell.key for cell in plan_cells(material) if (cell.kind, cell.start, cell.seed) == ("pretrain", start, seed)
    )
    made = None if cells is None else cells / key / "start"
    if made is None or not made.is_dir():
        raise ValueError(
            f"start {start!r} of seed {seed} is not made yet; run the study and export its directory"
            + ("" if made is None else f" ({made} is missing)")
        )
    return Start.load(made).weights


def _chosen(kind: str, given: Any, there: list[Any]) -> Any:
    if not there:
        raise ValueError(f"the study has no {kind}")
    if given is None:
        return there[0]
    if given not in there:
        raise names.unknown(kind, str(given), [str(item) for item in there])
    return given


def _project(name: str, config: Mapping[str, Any]) -> str:
    project = {
        "project": {
            "name": name,
            "version": "1.0.0",
            "description": f"{name}: a fedstart run on Flower",
            "license": "Apache-2.0",
            "dependencies": [f"fedstart[flower]=={__version__}"],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "fedstart",
                    "components": {"serverapp": "server_app:app", "clientapp": "client_app:app"},
                    "config": config,
                }
            }
        },
    }
    return tomli_w.dumps(project)


def _readme(name: str, nodes: int, settings: AppSettings) -> str:
    return f"""# {name}

`{settings.run.method}` for {settings.plan.rounds} rounds on {nodes} nodes, written by fedstart {__version__}. All
settings stand in `pyproject.toml` under `[tool.flwr.app.config]`; a list is a string, nothing is `"none"`.

On one machine, with Flower's simulation engine:

    . ./environment.sh   # no telemetry, no downloads, Ray on 127.0.0.1 only
    flwr run . local --federation-config "num-supernodes={nodes} client-resources-num-cpus=1" --stream

On a deployment, with fedstart installed beside Flower on every machine: start each SuperNode with
`--node-config "partition-id=K"`, K its number from 0 to {nodes - 1}, then `flwr run . CONNECTION`. A node with data of
its own adds `data.source="path:/where/they/lie" data.own=true`.

The run directory and the Start are written to `{settings.run.out}` on the server's machine (`run.out`);
a run that was interrupted goes on there. `fedstart report {settings.run.out}` shows it. Other settings need another
`run.out`: `flwr run . local -c 'plan.rounds=5 run.out="/tmp/other"'`.
"""
