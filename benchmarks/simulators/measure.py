"""Runs one simulator in a process of its own and watches its memory."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import catalogue
import psutil
from child import Job

INTERVAL = 0.5
"""Seconds between two looks at the memory: seldom, so that looking costs nothing."""


@dataclass(frozen=True)
class Measurement:
    """What one process did. All lists are per measured round.

    `start` is the time from starting the process to the end of the first round, which is not measured; `memory` the
    largest resident memory of the process and its descendants at one moment, in bytes, where pages that processes
    share count for each of them; `error` says why there are no other values.
    """

    seconds: list[float]
    steps: list[int]
    clients: list[int]
    start: float = 0.0
    memory: int = 0
    counted: int = 0
    moved: float = 0.0
    versions: dict[str, str] | None = None
    note: str = ""
    error: str = ""


def run(simulator: catalogue.Simulator, python: Path, job: Job, limit: float) -> Measurement:
    """Runs the job, at most `limit` seconds."""
    out = Path(job.out)
    out.unlink(missing_ok=True)
    log = out.with_suffix(".log")
    fields = {name: value for name, value in asdict(job).items() if name != "data"} | {"began": time.monotonic()}
    command = [str(python), str(catalogue.HERE / simulator.script), json.dumps(fields)]
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=catalogue.variables(out.parent / "flower"),
            cwd=out.parent,
        )
        peak, ended = _watch(process, limit)
    if not ended:
        return _failed(f"not finished after {limit:.0f} s")
    if process.returncode or not out.exists():
        return _failed(_reason(log.read_text(errors="replace"), process.returncode))
    result: dict[str, Any] = json.loads(out.read_text())
    result["memory"] = max(peak, result.pop("rss"))
    return Measurement(**result)


def _reason(output: str, status: int) -> str:
    """The last line that names an exception, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return (errors or lines or [f"exit status {status}"])[-1][:200]


def _failed(why: str) -> Measurement:
    return Measurement([], [], [], error=why)


def _watch(process: subprocess.Popen[bytes], limit: float) -> tuple[int, bool]:
    """The peak memory of the tree, and whether it ended by itself; nothing of it is left running."""
    tree, peak, deadline = psutil.Process(process.pid), 0, time.monotonic() + limit
    known: dict[int, psutil.Process] = {}
    try:
        while process.poll() is None and time.monotonic() < deadline:
            members = [tree, *_descendants(tree)]
            known |= {member.pid: member for member in members}
            peak = max(peak, sum(_resident(member) for member in members))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(INTERVAL)
        return peak, process.poll() is not None
    finally:
        # Also what lost its parent, as Ray's processes can.
        for member in known.values():
            with contextlib.suppress(psutil.Error):
                member.kill()
        process.wait()


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0
