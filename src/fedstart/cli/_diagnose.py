"""`fedstart diagnose`: what the probes say of one or two starts on one federation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from fedstart import names
from fedstart.cli import _settings
from fedstart.cli._output import Screen, table

if TYPE_CHECKING:
    from fedstart.data.federation import Federation
    from fedstart.models import Architecture
    from fedstart.probes._diagnosis import Patient
    from fedstart.starts import Start
    from fedstart.types import Weights

PROBES = "fedstart.probes"
RANDOM = "random"
"""In place of a path: the model's own initial weights."""
TABLES = ("plan", "model", "partition", "execution", "probe")
_OTHERS = ("study.toml", "summary.json", "run.json", "lab")


@dataclass(frozen=True)
class Request:
    """What `fedstart diagnose` was asked for; `words` are starts and settings, `probes` None is all."""

    words: Sequence[str]
    probes: str | None
    end: Path | None
    model: str | None
    source: _settings.Source
    out: Path
    threads: int | None


def run(request: Request, screen: Screen) -> None:
    """Measures every probe of every start, and leaves `diagnosis.json`, `timing.json` and a report.

    Raises ValueError for wrong names, settings, starts and data, and a directory that holds something else.
    """
    starts, settings = _divided(request.words)
    given = _settings.tables(settings, TABLES)
    chosen = _chosen(request.probes, given["probe"])
    # Clients' local work is that of FedAvg, whatever made the start.
    others = [word for word in settings if not word.startswith("probe.")]
    setup = _settings.choose(others, "fedavg", ("fedstart.algorithms",), request.source.partition)
    held = [name for name in _OTHERS if (request.out / name).exists()]
    if held:
        raise ValueError(f"{request.out} holds something else ({held[0]}); name another directory with --out")
    places = {text: _place(text) for text in starts}

    # Imports torch, which takes more than a second: what is wrong in names and paths was told before.
    classes = names.discover(PROBES)
    probes = {name: names.build(classes[name], own, f"[probe.{name}]") for name, own in chosen.items()}

    from fedstart.cli import _train
    from fedstart.engines.execution import Execution
    from fedstart.engines.local import LocalEngine
    from fedstart.files import read_json
    from fedstart.probes import _diagnosis
    from fedstart.report import build
    from fedstart.training import draw

    cards, bare = _networks(request, places, given["model"])
    end = None if request.end is None else _end(request.end)
    federation, told = _train.share_out(request.source, setup.partition, setup.plan.seed)
    # A cohort larger than the federation is refused before anything is written.
    draw(federation, setup.plan, 1)
    patients = [
        _patient(name, places[text], cards[text], bare, federation, setup.plan.seed, end)
        for text, name in _called(places).items()
    ]
    execution = _settings.build("execution", Execution, given["execution"])
    plan = {"plan": asdict(setup.plan), "execution": asdict(execution)}
    ward = _diagnosis.Ward(federation, setup.plan, {**told, "test_fraction": request.source.test_fraction, **plan})
    with LocalEngine(request.threads, execution) as engine, screen.progress() as progress:
        _diagnosis.run(patients, ward, probes, engine, request.out, progress)
    page = build(request.out)
    found = read_json(request.out / _diagnosis.FILE)
    screen.answer({"directory": request.out, "report": page, **found})
    screen.show(*_shown(found, set(probes)), f"Report: {page}")


def _divided(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Starts and settings: a path with a `=` in it needs a `/` before."""
    settings = [word for word in words if "=" in word and "/" not in word.partition("=")[0]]
    starts = [word for word in words if word not in settings]
    if not 1 <= len(starts) <= 2:
        given = f": {', '.join(starts)}" if starts else ""
        raise ValueError(f"diagnose takes one or two starts, got {len(starts)}{given}")
    if len(set(starts)) < len(starts):
        raise ValueError(f"the start {starts[0]!r} is given twice")
    return starts, settings


def _chosen(text: str | None, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The probes to measure, each with the settings that `probe.NAME.KEY=VALUE` words give it."""
    known = names.listed(PROBES)
    wanted = known if text is None else tuple(dict.fromkeys(piece.strip() for piece in text.split(",")))
    for name in wanted:
        if name not in known:
            raise names.unknown("probe", name, known)
    chosen: dict[str, dict[str, Any]] = {name: {} for name in wanted}
    for path, value in settings.items():
        name, dot, key = path.partition(".")
        if not (dot and key):
            raise ValueError(f"'probe.{path}' is no setting of a probe: write probe.NAME.KEY=VALUE")
        if name not in chosen:
            raise names.unknown("probe", name, wanted)
        chosen[name][key] = value
    return chosen


def _place(text: str) -> Path | None:
    """The directory or file of a start, which is there; None for the random one."""
    if text == RANDOM:
        return None
    path = Path(text).expanduser()
    if not path.exists():
        raise ValueError(f"{path}: no such start (a Start's directory, .safetensors, .pt, .pth, or the word {RANDOM})")
    return path / "start" if (path / "start").is_dir() else path


def _called(places: Mapping[str, Path | None]) -> dict[str, str]:
    """A short name for each start: the end of its path, as long as it takes to tell them apart."""
    parts = {text: Path(text).expanduser().resolve().parts if place else (RANDOM,) for text, place in places.items()}
    for length in range(1, max(map(len, parts.values())) + 1):
        found = {text: "/".join(steps[-length:]) for text, steps in parts.items()}
        if len(set(found.values())) == len(found):
            return found
    raise ValueError(f"{' and '.join(places)} are the same start")


def _networks(
    request: Request, places: Mapping[str, Path | None], settings: Mapping[str, Any]
) -> tuple[dict[str, Start | None], Architecture | None]:
    """The Starts that have a card, and the architecture of the others, which `--model` or the card beside names."""
    from fedstart.models import load_architecture
    from fedstart.starts import Start

    cards = {text: Start.load(place) if place and _carded(place) else None for text, place in places.items()}
    carded = [card for card in cards.values() if card is not None]
    without = [text for text, card in cards.items() if card is None]
    if (request.model is not None or settings) and not without:
        raise ValueError(
            f"{next(iter(places))}: a Start says which model it is; --model is for random and bare weights"
        )
    if request.model is not None:
        return cards, load_architecture(request.model, settings, "[model]")
    if settings:
        raise ValueError("model.* settings need --model, which says what they are settings of")
    if without == [RANDOM] and carded:
        return cards, carded[0].model().architecture
    if without:
        raise ValueError(f"{without[0]}: there is no card.json; say with --model which architecture it is")
    return cards, None


def _carded(place: Path) -> bool:
    return place.is_dir() or (place.suffix == ".safetensors" and place.with_name("card.json").is_file())


def _patient(
    name: str,
    place: Path | None,
    start: Start | None,
    bare: Architecture | None,
    federation: Federation,
    seed: int,
    end: Weights | None,
) -> Patient:
    """The start on this federation: a fresh head where its own has another number of classes."""
    from fedstart.cli._train import transferred
    from fedstart.models import Model
    from fedstart.probes._diagnosis import Patient
    from fedstart.starts._naming import fitting
    from fedstart.starts.checkpoint import Checkpoint

    if start is not None:
        model, weights = transferred(start, federation, seed)
        origin = f"{start.card.method} on {start.card.data}, seed {start.card.seed}"
    else:
        assert bare is not None
        model = Model(bare, federation.examples.shape, len(federation.classes))
        weights = model.init(seed) if place is None else Checkpoint(str(place)).begin(model, seed)
        origin = f"the model's random start, seed {seed}" if place is None else f"file {place.name}"
    if end is None:
        return Patient(name, origin, model, weights)
    end = fitting(end, model.shapes)
    try:
        model.check(end)
    except ValueError as error:
        raise ValueError(f"--end does not fit {name}: {error}") from None
    typed = {tensor: end[tensor].to(weights[tensor].dtype) for tensor in model.shapes}
    return Patient(name, origin, model, weights, {"end": typed})


def _end(path: Path) -> Weights:
    """Weights of a Start, of the last round that a run directory keeps, or of a file."""
    from fedstart import checkpoints, tree
    from fedstart.cli._train import place_of
    from fedstart.starts._files import read_weights

    place = place_of(path)
    if (place / "checkpoint.safetensors").is_file():
        weights = checkpoints.read(place / "checkpoint.safetensors").state.weights
    else:
        weights = read_weights(place / "weights.safetensors" if place.is_dir() else place)
    if not tree.is_finite(weights):
        raise ValueError(f"{path}: the weights hold NaN or infinity")
    return weights


def _shown(found: Mapping[str, Any], probes: set[str]) -> list[RenderableType]:
    """A table of all values, and a line for each probe that could not be measured."""
    starts = [start["name"] for start in found["starts"]]
    rows: list[tuple[str, ...]] = []
    missing: list[str] = []
    for probe in (probe for probe in found["probes"] if probe["name"] in probes):
        values = {result["start"]: result["values"] for result in probe["results"]}
        for key in dict.fromkeys(key for own in values.values() for key in own):
            numbers = [values.get(start, {}).get(key) for start in starts]
            rows.append((probe["name"], key, *("-" if number is None else f"{number:.4g}" for number in numbers)))
        reasons = [(result["start"], result["reason"]) for result in probe["results"] if result["reason"] is not None]
        missing += [f"not measured: {probe['name']}, {start}: {reason}" for start, reason in reasons]
    shown: list[RenderableType] = [table("Probes", ("probe", "quantity", *starts), rows, numbers=len(starts)), ""]
    return [*shown, *missing, *([""] if missing else [])]
