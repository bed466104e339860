"""`fedstart federate --engine flower`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedstart.cli import _settings, _train
from fedstart.cli._output import Screen
from fedstart.engines.members import Patience
from fedstart.flower import export as exporting
from fedstart.flower.following import SuperLink, follow
from fedstart.flower.settings import UNKNOWN, model_table
from fedstart.models import Model
from fedstart.report import build
from fedstart.report.reading import read
from fedstart.runs import RunDirectory, total_cost
from fedstart.starts import Start

OWN = "own"


@dataclass(frozen=True)
class Link:
    """The SuperLink as the command line names it."""

    address: str | None
    root_certificates: Path | None
    insecure: bool


def federate(request: _train.Downstream, link: Link, screen: Screen) -> None:
    """Runs a method on a SuperLink's nodes from a Start, and leaves what a local run leaves, and the Start it made."""
    if link.address is None:
        raise ValueError("--engine flower needs --superlink HOST:PORT")
    if request.threads is not None:
        raise ValueError("--threads is for the local engine")
    superlink = SuperLink(link.address, link.root_certificates, link.insecure)
    superlink.connection()
    tables, nodes = _tables(request)
    with tempfile.TemporaryDirectory(prefix="fedstart-app-") as folder:
        app = exporting.write(Path(folder), f"federate-{request.method}", tables, nodes)
        with screen.progress() as progress:
            progress.total(tables["plan"]["rounds"])
            out = follow(app, superlink, progress)
    page, directory = build(out), RunDirectory(out)
    scores = read(out).runs[0].scores
    assert scores is not None
    _train.tell(out, page, scores, total_cost(directory), screen)
    screen.show(f"Start: {out / 'start'}")


def _tables(request: _train.Downstream) -> tuple[dict[str, Mapping[str, Any]], int]:
    """The app's settings, and how many nodes it wants."""
    given, plan = request.chosen.tables, request.chosen.plan
    place = _train.place_of(request.start)
    architecture, start = _train.network(request, place)
    model, data, federation, nodes = (
        _own(request, start) if request.source.data == OWN else _common(request, architecture, start)
    )
    patience = _settings.build("patience", Patience, {"nodes": nodes, **given["patience"]})
    tables: dict[str, Mapping[str, Any]] = {
        "run": {"method": request.method, "out": str(request.out.expanduser().absolute())}
        | {"begin": str(place.absolute()), "seed": plan.seed},
        "plan": asdict(plan),  # pyright: ignore[reportArgumentType]
        "settings": asdict(request.chosen.method),
        "model": model_table(model),
        "data": {"input": request.source.input, "label": request.source.label, **data},
        "federation": {"test_fraction": request.source.test_fraction, "seed": plan.seed, **federation},
        "partition": {"name": request.source.partition, **given["partition"]},
        "patience": asdict(patience),
    }
    return tables, nodes


def _common(
    request: _train.Downstream, architecture: Any, start: Start | None
) -> tuple[Model, dict[str, Any], dict[str, Any], int]:
    """Model, data and federation where all nodes share one source; it is read here too, to know its shape."""
    seed = request.chosen.plan.seed
    federation, _ = _train.share_out(request.source, request.chosen.partition, seed)
    examples = federation.examples
    if start is None:
        model = Model(architecture, examples.shape, len(federation.classes))
    else:
        model, _ = _train.transferred(start, federation, seed)
    data = {"source": request.source.data, "class_names": examples.class_names}
    data |= {
        "mean": examples.mean,
        "std": examples.std,
        "columns": [name for name in examples.columns if name != "split"],
    }
    share = {"name": examples.name, "classes": federation.classes, "fingerprint": federation.fingerprint}
    natural = request.source.clients is None and hasattr(request.chosen.partition, "column")
    return model, data, share | {"clients": None if natural else federation.clients}, federation.clients


def _own(request: _train.Downstream, start: Start | None) -> tuple[Model, dict[str, Any], dict[str, Any], int]:
    """Model, data and federation where each node's configuration names its own data: classes are the Start's."""
    if start is None:
        raise ValueError("--data own takes classes and normalisation from the Start's card; these weights have none")
    if request.source.classes is not None:
        raise ValueError("--classes is for a common source; with --data own they are the Start's")
    card = start.card
    data = {"source": OWN, "own": True, "class_names": card.class_names, "mean": card.mean, "std": card.std}
    share = {"name": "own data", "classes": list(range(card.classes)), "fingerprint": UNKNOWN}
    return start.model(), data, share, request.source.clients or _train.CLIENTS
