"""The commands and their options. Each imports what it needs when it runs, so that help is immediate."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedstart import __version__

app = typer.Typer(
    name="fedstart",
    help="Starting points for federated learning: make one, test one, choose one.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Engine(StrEnum):
    """Where clients run."""

    local = "local"
    flower = "flower"


class Target(StrEnum):
    """What a study can be exported to."""

    flower = "flower"


Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors (and JSON, if asked for).")]
Jobs = Annotated[int, typer.Option(min=1, help="Runs side by side, each in a process of its own.")]
JobsPerCore = Annotated[int | None, typer.Option(min=1, help="Runs side by side; by default one per core.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads; by default one per core, or per job.")]
Out = Annotated[Path, typer.Option(help="Directory to write to; one that was interrupted goes on.")]
Settings = Annotated[list[str] | None, typer.Argument(metavar="[TABLE.KEY=VALUE]...", show_default=False)]
Data = Annotated[str, typer.Option(help="digits, synthetic, hf:NAME, or path:FILE_OR_DIRECTORY.")]
Input = Annotated[str | None, typer.Option(help="Column with the inputs; found by its type if not given.")]
Label = Annotated[str | None, typer.Option(help="Column with the labels; found by its type if not given.")]
Classes = Annotated[str | None, typer.Option(help="Labels to use, for instance 0-4,7; all by default.")]
Partition = Annotated[str, typer.Option(help="How examples are shared out (fedstart list partitions).")]
Clients = Annotated[int | None, typer.Option(min=1, help="Number of clients; by default 10, or what the data say.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"fedstart {__version__}")
        raise typer.Exit()


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Out = Path("fedstart-demo"), jobs: Jobs = 1, threads: Threads = None, json: Json = False, quiet: Quiet = False
) -> None:
    """Everything once on built-in data: about a minute, ends in a report."""
    from fedstart.cli import _output, _study

    screen = _output.Screen(json, quiet)
    _study.run(_study.Request("digits", (), out, None, jobs, threads), screen)


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="A preset (fedstart list studies) or a TOML file.")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Directory; by default runs/STUDY-SCALE.")] = None,
    scale: Annotated[str | None, typer.Option(help="One of the study's scales.")] = None,
    jobs: JobsPerCore = None,
    threads: Threads = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Run nothing: say how long it would take here.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a study, or go on with it where it stopped; ends in a report.

    With --estimate nothing runs and no directory is made: a few local steps of each kind of cell are timed, for a large
    network a minute or more each, and the time of the whole study is counted from that.
    """
    from fedstart.cli import _output, _study

    request = _study.Request(study, tuple(settings or ()), out, scale, jobs, threads)
    (_study.estimate if estimate else _study.run)(request, _output.Screen(json, quiet))


@app.command()
def report(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIRECTORY...", help="Of studies, runs, labs or diagnoses.")
    ],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Rebuild the report, figures and tables of finished studies, labs and diagnoses."""
    from fedstart.cli import _output, _study

    _study.report(directories, _output.Screen(json, quiet))


@app.command()
def lab(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[EXPERIMENT]... [KEY=VALUE]...", show_default=False, help="By default all of them."),
    ] = None,
    out: Out = Path("runs/lab"),
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run experiments with the two-layer CNN whose signal and noise are known; ends in a report.

    Experiments and their settings: fedstart list experiments. A setting goes to each chosen experiment that has it:
    fedstart lab tau heterogeneity seeds=5 world.d=1000 'taus=[1,10,100]'
    """
    from fedstart.cli import _lab, _output

    _lab.run(words or (), out, _output.Screen(json, quiet))


@app.command(name="list")
def list_(
    kind: Annotated[str | None, typer.Argument(help="One of those that it shows without KIND.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what there is, each with its settings; without KIND, the names of everything."""
    from fedstart.cli import _listing, _output

    _listing.show(kind, _output.Screen(json, quiet))


@app.command()
def pretrain(
    method: Annotated[str, typer.Argument(help="A method or a start (fedstart list methods, fedstart list starts).")],
    data: Data,
    out: Out,
    settings: Settings = None,
    model: Annotated[str, typer.Option(help="Architecture (fedstart list models).")] = "mlp",
    classes: Classes = None,
    partition: Partition = "iid",
    clients: Clients = None,
    input: Input = None,
    label: Label = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a Start: train METHOD over clients and keep the weights.

    Settings stand behind the options, as TABLE.KEY=VALUE, with the tables plan, method, model, partition and
    execution (how the engine computes; by default as is fastest on this machine):
    fedstart pretrain coprefl --data digits --out start plan.rounds=20 plan.lr=0.1 method.balance=0.5
    """
    from fedstart.cli import _output, _settings

    methods = ("fedstart.algorithms", "fedstart.starts")
    chosen = _settings.choose(settings or (), method, methods, partition)

    # Imports torch, which takes more than a second: what is wrong in the settings was told before.
    from fedstart.cli import _train

    source = _settings.Source(data, input, label, classes, partition, clients)
    run = _train.Pretraining(method, model, source, chosen, out, threads)
    _train.pretrain(run, _output.Screen(json, quiet))


@app.command()
def federate(
    start: Annotated[Path, typer.Argument(help="Directory of a Start, or a .safetensors file.")],
    data: Data,
    out: Out,
    settings: Settings = None,
    method: Annotated[str, typer.Option(help="Federated method (fedstart list methods).")] = "fedavg",
    model: Annotated[str | None, typer.Option(help="Architecture; by default the Start's own.")] = None,
    classes: Classes = None,
    partition: Partition = "iid",
    clients: Clients = None,
    test_fraction: Annotated[float, typer.Option(help="Share of each client's examples kept for its test.")] = 0.2,
    input: Input = None,
    label: Label = None,
    threads: Threads = None,
    engine: Annotated[Engine, typer.Option(help="Where clients run: in this process, or on Flower's nodes.")] = (
        Engine.local
    ),
    superlink: Annotated[str | None, typer.Option(help="With --engine flower: HOST:PORT of the SuperLink.")] = None,
    root_certificates: Annotated[
        Path | None, typer.Option(help="Its certificate authority's file; by default the system's.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Plain HTTP to the SuperLink: loopback only.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run one downstream federation from a Start, and score every client.

    Settings stand behind the options, as TABLE.KEY=VALUE, with the tables plan, method, model, partition and
    execution (how the engine computes; by default as is fastest on this machine):
    fedstart federate start --data digits --out run plan.rounds=20 plan.lr=0.1 partition.alpha=0.5
    With --engine flower there is no execution, but patience (nodes, join_seconds, reply_seconds, share), and
    --data own says that each node's configuration names its own data.
    """
    from fedstart.cli import _output, _settings

    if engine is Engine.local and (superlink or root_certificates or insecure):
        raise ValueError("--superlink, --root-certificates and --insecure are for --engine flower")
    tables = _settings.FLOWER if engine is Engine.flower else _settings.LOCAL
    chosen = _settings.choose(settings or (), method, ("fedstart.algorithms",), partition, tables)

    # Imports torch, which takes more than a second: what is wrong in the settings was told before.
    from fedstart.cli import _train

    source = _settings.Source(data, input, label, classes, partition, clients, test_fraction)
    run = _train.Downstream(start, method, model, source, chosen, out, threads)
    screen = _output.Screen(json, quiet)
    if engine is Engine.flower:
        from fedstart.cli import _flower

        _flower.federate(run, _flower.Link(superlink, root_certificates, insecure), screen)
    else:
        _train.federate(run, screen)


@app.command()
def diagnose(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="START... [TABLE.KEY=VALUE]...",
            show_default=False,
            help="One or two: directory of a Start, weights file (.safetensors, .pt, .pth), or the word random.",
        ),
    ],
    data: Data,
    out: Out,
    probes: Annotated[str | None, typer.Option(help="Names, as drift,hessian; by default all.")] = None,
    end: Annotated[
        Path | None, typer.Option(help="Later weights to compare with: a run directory, a Start, or a weights file.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Architecture of random, and of weights without a card.")] = None,
    classes: Classes = None,
    partition: Partition = "iid",
    clients: Clients = None,
    test_fraction: Annotated[float, typer.Option(help="Share of each client's examples kept for its test.")] = 0.2,
    input: Input = None,
    label: Label = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """X-ray of one or two Starts: curvature, drift, features and more on one federation; ends in a report.

    Settings stand behind the options, as TABLE.KEY=VALUE, with the tables plan (clients' local work), model,
    partition, execution and probe:
    fedstart diagnose start random --data digits --out xray plan.lr=0.1 probe.hessian.examples=64
    A probe that cannot be measured says why; misalignment and movement need --end.
    """
    from fedstart.cli import _diagnose, _output, _settings

    source = _settings.Source(data, input, label, classes, partition, clients, test_fraction)
    request = _diagnose.Request(words, probes, end, model, source, out, threads)
    _diagnose.run(request, _output.Screen(json, quiet))


@app.command()
def export(
    study: Annotated[str, typer.Argument(help="A preset, a TOML file, or the directory of a study that was run.")],
    directory: Annotated[Path, typer.Argument(help="Directory to write to.")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False)] = None,
    to: Annotated[Target, typer.Option(help="What to write for.")] = Target.flower,
    scale: Annotated[str | None, typer.Option(help="One of the study's scales.")] = None,
    start: Annotated[str | None, typer.Option(help="Name of a start; by default the first federated one.")] = None,
    seed: Annotated[int | None, typer.Option(help="One of the study's seeds; by default the first.")] = None,
    task: Annotated[int | None, typer.Option(help="Export this downstream task instead of the pre-training.")] = None,
    algorithm: Annotated[str | None, typer.Option(help="With --task: name of an algorithm.")] = None,
    partition: Annotated[str | None, typer.Option(help="With --task: a partition, as dirichlet(0.5).")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write one run of a study as a Flower app that `flwr run` takes as it is."""
    from fedstart.cli import _export, _output

    request = _export.Export(study, directory, tuple(settings or ()), scale, start, seed, task, algorithm, partition)
    _export.export(request, _output.Screen(json, quiet))
