"""The command line as a user meets it: what is printed where, what is left on disk, and how fast help comes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import fedstart
from fedstart.cli import main, one_line
from fedstart.runs import RunDirectory
from fedstart.starts import Start

SMALL = "seeds=[0] pretraining.plan.rounds=2 downstream.plan.rounds=2 downstream.tasks=2"
KINDS = ("methods", "starts", "models", "data", "partitions", "studies", "experiments", "probes")
STOPPED = "fedstart: stopped; what was finished is saved: run the same command to go on\n"
ONE_START = """
name = "alone"
starts = [{ method = "random" }]
algorithms = [{ method = "fedavg" }]
seeds = [0]
[data]
source = "digits"
[model]
name = "mlp"
[pretraining]
held_out = 4
partition = { name = "iid" }
clients = 2
plan = { rounds = 1, local_epochs = 1 }
[downstream]
classes = "unseen"
tasks = 1
classes_per_task = 4
clients = 4
partitions = [{ name = "iid" }]
plan = { rounds = 1, local_epochs = 1 }
"""
SOURCE = "synthetic:classes=6,examples=360,size=4"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in a directory of its own; how to compute is measured once for all."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDSTART_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    return tmp_path


def ask(capsys: pytest.CaptureFixture[str], line: str) -> Any:
    """Runs a command with --json and returns the document; nothing else may be printed."""
    status = main([*shlex.split(line), "--json"])
    printed = capsys.readouterr()
    assert (status, printed.err) == (0, "")
    return json.loads(printed.out)


def say(capsys: pytest.CaptureFixture[str], line: str) -> str:
    """Runs a command and returns what it printed for a person."""
    status = main(shlex.split(line))
    printed = capsys.readouterr()
    assert (status, printed.err) == (0, "")
    return printed.out


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "fedstart", *words]


def environment(**more: str) -> dict[str, str]:
    source = str(Path(fedstart.__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **more}


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("run", "--help"), ()])
def test_help_is_immediate(words: tuple[str, ...]) -> None:
    program = (
        "import resource, sys\n"
        "from fedstart.cli import main\n"
        f"status = main({list(words)!r})\n"
        "heavy = {'torch', 'numpy', 'datasets', 'matplotlib', 'scipy'} & sys.modules.keys()\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(status, sorted(heavy), used.ru_utime + used.ru_stime, file=sys.stderr)\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment())
    status, heavy, seconds = found.stderr.split()
    assert (status, heavy) == ("0", "[]")
    assert float(seconds) < 0.6  # processor time, as other work on the machine must not decide; about 0.15 s
    assert ("fedstart" in found.stdout) and found.returncode == 0


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("demo", "run", "pretrain", "federate", "diagnose", "report", "lab", "list", "export"):
        text = say(capsys, f"{name} --help")
        assert "--json" in text and "--quiet" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert say(capsys, "--version") == f"fedstart {fedstart.__version__}\n"


@pytest.mark.parametrize("kind", KINDS)
def test_list_tells_everything_of_a_kind(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    entries = ask(capsys, f"list {kind}")
    assert entries
    shown = " ".join(say(capsys, f"list {kind}").split())
    for entry in entries:
        assert entry.keys() - {"leaves"} == {"name", "about", "settings"}
        assert ("leaves" in entry) == (kind == "methods")
        assert len(entry["about"]) > 10
        assert f"{entry['name']} {entry['about']}" in shown
        for setting in entry["settings"]:
            assert setting["description"], f"{entry['name']}.{setting['name']}"
            assert f"{setting['name']}: {setting['type']}" in shown


def test_list_knows_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    (coprefl,) = [entry for entry in ask(capsys, "list methods") if entry["name"] == "coprefl"]
    balance = coprefl["settings"][0]
    assert (balance["name"], balance["type"], balance["default"]) == ("balance", "number >= 0, <= 1", 0.5)
    partitions = {entry["name"]: entry for entry in ask(capsys, "list partitions")}
    assert partitions["natural"]["settings"][0]["default"] == "(required)"


def test_list_without_a_kind_names_all(capsys: pytest.CaptureFixture[str]) -> None:
    everything = ask(capsys, "list")
    assert tuple(everything) == KINDS
    text = say(capsys, "list")
    assert all(entry["name"] in text for entries in everything.values() for entry in entries)


def test_a_study_runs_goes_on_and_is_reported(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    found = ask(capsys, f"run digits {SMALL} --out study --threads 1")
    assert (found["failures"], found["directory"]) == ([], "study")
    assert {row["start"] for row in found["summary"]["rows"]} == {"random", "centralized", "fedavg", "coprefl"}
    assert found["summary"]["cells"] == 4 + 4 * 2
    results = {file: file.stat().st_mtime_ns for file in (home / "study/cells").rglob("*.safetensors")}

    text = say(capsys, f"run digits {SMALL} --out study")
    assert results == {file: file.stat().st_mtime_ns for file in (home / "study/cells").rglob("*.safetensors")}
    assert json.loads((home / "study/summary.json").read_text()) == found["summary"]
    for row in found["summary"]["rows"]:
        assert f"{row['mean']:.2f}" in text and row["start"] in text
    assert found["answer"] in text and "study/report.html" in text

    page = (home / "study/report.html").read_bytes()
    (home / "study/report.html").unlink()
    assert ask(capsys, "report study") == {"reports": ["study/report.html"]}
    assert (home / "study/report.html").read_bytes() == page


def test_a_quiet_study_in_the_default_directory(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    (home / "study.toml").write_text(ONE_START)
    assert say(capsys, "run study.toml --quiet") == ""
    (page,) = home.glob("runs/alone*/report.html")
    assert page.stat().st_size > 10_000


def test_pretrain_federate_report(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    base = f"--data {SOURCE} --partition dirichlet --clients 6 partition.alpha=1 plan.rounds=3 plan.lr=0.1"
    settings = "method.balance=1 model.hidden=[16] plan.seed=5"
    made = ask(capsys, f"pretrain coprefl {base} {settings} --classes 0-3 --out pre")
    start = Start.load(home / made["start"])
    assert (start.card.method, start.card.settings["balance"]) == ("coprefl", 1.0)
    assert (start.card.architecture_settings["hidden"], start.card.classes, start.card.seed) == ([16], 4, 5)
    assert start.card.plan.local_epochs == 1  # what is trained when no local work is asked for
    assert made["rounds"] == 3 and made["loss"] > 0

    again = ask(capsys, f"pretrain coprefl {base} {settings} --classes 0-3 --out again")
    assert again["weights_sha256"] == made["weights_sha256"]
    assert (home / "again/start/card.json").read_bytes() == (home / "pre/start/card.json").read_bytes()

    line = f"{base} --classes 4,5 --method fedprox method.mu=0.5"
    results = [
        ask(capsys, f"federate pre {line} --out a"),
        ask(capsys, f"federate pre/start/weights.safetensors {line} --out b"),
    ]
    assert results[0]["scores"] == results[1]["scores"]
    accuracies = [client["accuracy"] for client in results[0]["clients"]]
    assert len(accuracies) == 6
    assert results[0]["scores"]["mean"] == pytest.approx(sum(accuracies) / 6)
    assert results[0]["scores"]["worst10"] == min(accuracies)

    text = say(capsys, f"federate pre {line} --out a")
    assert f"{results[0]['scores']['mean']:.2f}" in text and f"{results[0]['scores']['worst30']:.2f}" in text
    (home / "a/report.html").unlink()
    assert ask(capsys, "report a pre") == {"reports": ["a/report.html", "pre/report.html"]}
    run = json.loads((home / "a/run.json").read_text())
    assert (run["status"], run["settings"]["partition"]["alpha"]) == ("done", 1.0)


def test_the_head_is_kept_for_as_many_classes_and_fresh_otherwise(
    capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    ask(capsys, f"pretrain centralized --data {SOURCE} --classes 0-2 --out pre plan.rounds=8 plan.lr=0.2")
    kept = ask(capsys, f"federate pre --data {SOURCE} --classes 0-2 --out same plan.rounds=0")
    fresh = ask(capsys, f"federate pre --data {SOURCE} --classes 0-3 --out other plan.rounds=0")
    assert kept["scores"]["mean"] > 90 > 60 > fresh["scores"]["mean"]


def test_weights_without_a_card(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    made = ask(capsys, f"pretrain random --data {SOURCE} --classes 0-2 --out pre model.hidden=[8]")
    assert made["rounds"] == 0
    (home / "bare.safetensors").write_bytes((home / "pre/start/weights.safetensors").read_bytes())
    line = f"--data {SOURCE} --classes 2-5 plan.rounds=2"
    bare = ask(capsys, f"federate bare.safetensors {line} --model mlp model.hidden=[8] --out bare")
    carded = ask(capsys, f"federate pre {line} --out carded")
    assert bare["scores"] == carded["scores"]


def test_clients_by_a_column(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    line = f"pretrain fedavg --data {SOURCE},groups=4 --partition natural partition.column=group plan.rounds=1"
    ask(capsys, f"{line} --out pre")
    assert json.loads((home / "pre/run.json").read_text())["settings"]["clients"] == 4


def test_ctrl_c_in_one_process(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    line = f"pretrain fedavg --data {SOURCE} --out pre plan.rounds=5"
    with monkeypatch.context() as changed:
        changed.setattr(RunDirectory, "append_round", stop)
        assert main(line.split()) == 130
    assert capsys.readouterr().err == STOPPED
    assert ask(capsys, line)["rounds"] == 5


def test_ctrl_c_with_workers_keeps_what_is_finished(home: Path) -> None:
    (home / "study.toml").write_text(ONE_START)
    line = ["run", "study.toml", "seeds=[0, 1]", "downstream.plan.rounds=100000", "--out", "study", "--jobs", "2"]
    running = subprocess.Popen(
        command(*line), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd=home,
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while len(list(home.glob("study/cells/*-t[0-9]*/rounds.jsonl"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(running.pid, signal.SIGINT)  # a terminal sends Ctrl-C to workers, too
        out, err = running.communicate(timeout=60)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    assert (running.returncode, out) == (130, "")
    assert err == STOPPED
    assert len(list(home.glob("study/cells/pretrain-*/start/weights.safetensors"))) == 2


def test_a_reader_that_leaves_is_no_error() -> None:
    listing = " ".join(shlex.quote(word) for word in command("list", "models"))
    found = subprocess.run(f"{listing} | head -1", shell=True, capture_output=True, text=True, env=environment())
    assert found.stdout == "models\n"
    assert found.stderr == ""


def test_without_flower_its_extra_is_named() -> None:
    missing = ModuleNotFoundError("No module named 'flwr'", name="flwr")
    assert one_line(missing) == "this needs Flower, which is not installed: pip install 'fedstart[flower]'"


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSTART_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown study 'digitz'"):
        main(["run", "digitz"])
