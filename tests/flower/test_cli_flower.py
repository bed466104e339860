"""`fedstart export`, `fedstart federate --engine flower`, and following a run: Flower's own program is stood in for."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import pytest

flwr = pytest.importorskip("flwr", reason="needs the extra fedstart[flower]")

from fedstart.cli import main  # noqa: E402
from fedstart.flower import following  # noqa: E402
from fedstart.runs import RunDirectory  # noqa: E402
from fedstart.starts import Start  # noqa: E402

FLWR = """#!{python}
import json, os, sys, tomllib
from pathlib import Path
sys.path[:0] = {path!r}
home, words = Path(os.environ["FLWR_HOME"]), sys.argv[1:]
log = Path({log!r})
said = json.loads(log.read_text()) if log.exists() else []
log.write_text(json.dumps([*said, {{"words": words, "config": tomllib.loads((home / "config.toml").read_text())}}]))
mode = {mode!r}
if mode == "unreachable":
    print(json.dumps({{"success": False, "error-message": "\\nConnection to the SuperLink is unavailable."}}))
    sys.exit(1)
if words[0] == "run":
    (home / "app").write_text(words[1])
    print("Successfully started run 7")
    print(json.dumps({{"success": True, "run-id": "7"}}, indent=2))
elif words[0] == "list":
    calls = sum(entry["words"][0] == "list" for entry in said)
    status, details = "running", ""
    if mode == "forever" or not calls:
        pass
    elif calls == 1:
        print("not JSON: the SuperLink is busy")
        sys.exit(1)
    elif mode == "failing":
        status, details = "finished:failed", "ServerApp failed with exception: round 1: 0 clients answered"
    else:
        status = "finished:completed"
        if mode == "completing":
            from small import config_of, run_files
            from fedstart.flower.export import App
            app = App(Path((home / "app").read_text()), "", 0, Path())
            run_files(app.directory, config_of(app))
    print(json.dumps({{"success": True, "runs": [{{"status": status, "status-details": details}}]}}))
else:
    print(json.dumps({{"success": True}}))
"""

FEDERATE = "federate start --data digits --classes 6-9 --clients 4 plan.rounds=2 method.mu=0.5 --method fedprox"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(following, "POLL_SECONDS", 0.01)
    return tmp_path


@pytest.fixture
def start(place: Path) -> Path:
    assert main(shlex.split("pretrain fedavg --data digits --classes 0-5 --clients 3 --out start -q")) == 0
    return place / "start"


def stand_in(monkeypatch: pytest.MonkeyPatch, place: Path, mode: str) -> Path:
    """Puts a program in the place of `flwr`; returns the file where it notes what it was asked."""
    program, log = place / "flwr", place / "flwr.log"
    path = [str(Path(__file__).parent), str(Path(following.__file__).parents[2])]
    program.write_text(FLWR.format(python=sys.executable, path=path, log=str(log), mode=mode))
    program.chmod(0o755)
    monkeypatch.setattr(following, "executable", lambda name: str(program))
    return log


def words(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str]:
    status = main(shlex.split(line))
    printed = capsys.readouterr()
    return status, printed.out if status == 0 else printed.err


def test_export_writes_an_app_and_says_how_to_run_it(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    status, said = words(capsys, "export digits app --start coprefl pretraining.plan.rounds=2 model.name=mlp")
    assert status == 0 and "flwr run . local --federation-config" in said and "num-supernodes=20" in said
    assert "rounds = 2" in (place / "app" / "pyproject.toml").read_text()
    status, said = words(capsys, "export digits other --start random --task 1 --json")
    found = json.loads(said)
    assert found["nodes"] == 8 and Path(found["out"]) == place / "other" / "run"
    assert words(capsys, "export digits app --start nothing")[1].startswith("fedstart: error: unknown federated start")
    assert "fedstart: error: " in words(capsys, "export digits app --to docker")[1]


def test_export_takes_the_directory_of_a_finished_study(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    settings = "seeds=[0] pretraining.plan.rounds=1 downstream.plan.rounds=1 downstream.tasks=1 model.name=mlp"
    assert main(shlex.split(f"run digits {settings} --out done --jobs 1 -q")) == 0
    assert words(capsys, "export done app --start coprefl --task 0")[0] == 0
    assert (place / "app" / "begin.safetensors").stat().st_size > 1000


def test_federate_brings_home_what_the_local_engine_makes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: Path, start: Path
) -> None:
    log = stand_in(monkeypatch, place, "completing")
    certificates = place / "ca.crt"
    certificates.write_text("a certificate")
    status, said = words(
        capsys, f"{FEDERATE} --engine flower --superlink 127.0.0.1:9 --root-certificates ca.crt --out far --json"
    )
    assert status == 0, said
    assert main(shlex.split(f"{FEDERATE} --out near -q")) == 0
    assert (place / "far" / "clients.parquet").read_bytes() == (place / "near" / "clients.parquet").read_bytes()
    far, near = RunDirectory(place / "far"), RunDirectory(place / "near")
    assert far.rounds() == near.rounds() and far.status == "done" and (place / "far" / "report.html").exists()
    assert json.loads(said)["scores"]["mean"] == Start.load(place / "far" / "start").card.scores["mean"]
    asked = json.loads(log.read_text())
    assert [entry["words"][0] for entry in asked] == ["run", "list", "list", "list"]
    connection = asked[0]["config"]["superlink"]["fedstart"]
    assert connection == {"address": "127.0.0.1:9", "root-certificates": str(certificates)}


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("failing", "Flower run 7 failed: ServerApp failed with exception: round 1: 0 clients answered"),
        ("elsewhere", "Flower run 7 is finished, but its result lies in "),
        ("unreachable", "flwr run: Connection to the SuperLink is unavailable."),
    ],
)
def test_a_run_that_ends_otherwise_is_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    place: Path,
    start: Path,
    mode: str,
    said: str,
) -> None:
    stand_in(monkeypatch, place, mode)
    status, error = words(capsys, f"{FEDERATE} --engine flower --superlink 127.0.0.1:9 --insecure --out far")
    assert status == 2 and error.startswith(f"fedstart: error: {said}") and error.count("\n") == 1
    assert "keeps the last round" not in error


def test_an_interrupted_command_stops_the_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: Path, start: Path
) -> None:
    log = stand_in(monkeypatch, place, "forever")

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(following.time, "sleep", interrupt)
    monkeypatch.setattr(following.time, "monotonic", time.monotonic)
    status, _ = words(capsys, f"{FEDERATE} --engine flower --superlink 127.0.0.1:9 --insecure --out far")
    asked: list[Any] = json.loads(log.read_text())
    assert status == 130 and asked[-1]["words"][:2] == ["stop", "7"]


def test_a_superlink_that_stays_silent_ends_the_following(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: Path, start: Path
) -> None:
    stand_in(monkeypatch, place, "failing")
    monkeypatch.setattr(following, "SILENCE_SECONDS", 0.0)
    status, error = words(capsys, f"{FEDERATE} --engine flower --superlink 127.0.0.1:9 --insecure --out far")
    assert status == 2 and "flwr list: not JSON: the SuperLink is busy" in error


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--engine flower", "--engine flower needs --superlink HOST:PORT"),
        ("--superlink x:1", "--superlink, --root-certificates and --insecure are for --engine flower"),
        ("--engine flower --superlink x:1 --threads 2", "--threads is for the local engine"),
        ("--engine flower --superlink x:1 --insecure --root-certificates a", "root certificates or insecure, not both"),
        ("--engine flower --superlink x:1 --root-certificates no.crt", "no.crt: no such file (root certificates)"),
        ("--engine flower --superlink x:1 patience.share=two", "[patience]: share"),
        ("--engine flower --superlink x:1 patiense.share=1", "unknown table of settings 'patiense'"),
        ("--engine ray", "ray"),
    ],
)
def test_contradictions_are_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], place: Path, start: Path, options: str, said: str
) -> None:
    status, error = words(capsys, f"{FEDERATE} --out far {options}")
    assert status == 2 and said in error and error.count("\n") == 1 and not (place / "far").exists()


def test_listed_methods_say_what_leaves_a_client(capsys: pytest.CaptureFixture[str]) -> None:
    methods = {entry["name"]: entry for entry in json.loads(words(capsys, "list methods --json")[1])}
    assert [exchange["name"] for exchange in methods["coprefl"]["leaves"]] == ["adapt", "judge", "pull"]
    assert [exchange["returns"] for exchange in methods["coprefl"]["leaves"]] == [
        "weights",
        "loss and gradient",
        "weights",
    ]
    assert "exchange 2: loss and gradient leave each client (judge)" in words(capsys, "list methods")[1]
