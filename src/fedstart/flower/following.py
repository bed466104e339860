"""Running an app on a SuperLink that is there, following it to its end, and finding its result."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from fedstart.files import read_json
from fedstart.flower import environment
from fedstart.flower.export import App
from fedstart.runs import Progress, RunDirectory

CONNECTION = "fedstart"
POLL_SECONDS = 5.0
SILENCE_SECONDS = 120.0
"""How long a SuperLink may be unreachable before following ends; the run itself goes on."""


@dataclass(frozen=True)
class SuperLink:
    """Where a SuperLink is, as `host:port`, and how to trust it.

    `root_certificates` is the file of its certificate authority, by default the system's own; `insecure` is plain
    HTTP, for loopback only.
    """

    address: str
    root_certificates: Path | None = None
    insecure: bool = False

    def connection(self) -> dict[str, Any]:
        """The entry of Flower's config.toml. Raises ValueError for a contradiction or a file that is not there."""
        if self.insecure and self.root_certificates is not None:
            raise ValueError("give root certificates or insecure, not both")
        trust: dict[str, Any] = {"insecure": True} if self.insecure else {}
        if self.root_certificates is not None:
            if not self.root_certificates.is_file():
                raise ValueError(f"{self.root_certificates}: no such file (root certificates)")
            trust = {"root-certificates": str(self.root_certificates.absolute())}
        return {"address": self.address, **trust}


def follow(app: App, superlink: SuperLink, progress: Progress | None = None) -> Path:
    """Submits an app, waits until its run has ended, and returns the run directory, which holds the Start.

    Stops the run when interrupted. Raises ValueError in one line when the SuperLink cannot be reached or refuses the
    app, when the run failed (with what it said) or was stopped, and when its result lies on another machine.
    """
    with tempfile.TemporaryDirectory(prefix="fedstart-flower-") as home:
        config = {"superlink": {"default": CONNECTION, CONNECTION: superlink.connection()}}
        Path(home, "config.toml").write_text(tomli_w.dumps(config), encoding="utf-8")
        number = str(_flwr(home, "run", str(app.directory), CONNECTION)["run-id"])
        try:
            status, details = _wait(home, number, app, progress)
        except KeyboardInterrupt:
            _flwr(home, "stop", number, CONNECTION)
            raise
    if status != "finished:completed":
        reason = _last_line(details) or status.rpartition(":")[2]
        kept = f"; {app.out} keeps the last round" if (app.out / "checkpoint.safetensors").exists() else ""
        raise ValueError(f"Flower run {number} {status.rpartition(':')[2]}: {reason}{kept}")
    return _home(app, number)


def _wait(home: str, number: str, app: App, progress: Progress | None) -> tuple[str, str]:
    """Status and details of the run once it has ended."""
    rounds, heard = 0, time.monotonic()
    while True:
        try:
            (run,) = _flwr(home, "list", "--run-id", number, CONNECTION)["runs"]
            heard = time.monotonic()
        except ValueError:
            if time.monotonic() - heard > SILENCE_SECONDS:
                raise
            run = {"status": "unknown"}
        if progress is not None:
            there = len(RunDirectory(app.out).rounds())
            for _ in range(there - rounds):
                progress.advance(app.name)
            rounds = max(rounds, there)
        if str(run["status"]).startswith("finished"):
            return str(run["status"]), str(run.get("status-details") or "")
        time.sleep(POLL_SECONDS)


def _home(app: App, number: str) -> Path:
    if not (app.out / "run.json").exists():
        raise ValueError(
            f"Flower run {number} is finished, but its result lies in {app.out} on the SuperLink's machine; copy that "
            "directory here, or let both machines share it"
        )
    if (status := read_json(app.out / "run.json")["status"]) != "done":
        raise ValueError(f"Flower run {number} is finished, but {app.out} is {status!r} instead of done")
    return app.out


def _flwr(home: str, *words: str) -> Any:
    """What a command of Flower answers, as JSON. Raises ValueError with its last words if it fails."""
    command = [executable("flwr"), *words, "--format", "json"]
    variables = {**os.environ, **environment.variables(Path(home))}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    answer = _answer(done.stdout)
    if done.returncode or not answer.get("success"):
        said = str(answer.get("error-message") or done.stderr or done.stdout)
        raise ValueError(f"flwr {words[0]}: {_last_line(said) or f'exit status {done.returncode}'}")
    return answer


def executable(name: str) -> str:
    """The path of one of Flower's programs. Raises ValueError if Flower is not installed."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ValueError(f"{name} is not installed; run: pip install 'fedstart[flower]'")
    return found


def _answer(text: str) -> dict[str, Any]:
    """The JSON document in a program's output, which may have said something before."""
    start = text.find("{")
    try:
        answer = json.loads(text[start:]) if start >= 0 else {}
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _last_line(text: str) -> str:
    lines: Sequence[str] = [line.strip(" │╭╮╰╯─") for line in text.splitlines()]
    return next((line for line in reversed(lines) if line), "")
