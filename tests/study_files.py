"""What a study leaves, for tests that run it in two ways."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def results(out: Path) -> dict[str, bytes]:
    """Every file of a study that must not depend on how it was run."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("timing.json", ".lock") and path.parts[-2] != "unused"
    }


SCRIPT = """
import functools, sys
from fedstart import study
from fedstart.study import work
work.execute = functools.partial(work.execute, every=0.0)  # a checkpoint after every round
study.run(study.load(sys.argv[1]), sys.argv[2], jobs=int(sys.argv[3]))
"""


def run_and_kill(file: Path, out: Path, rounds: int, jobs: int = 1, later: float = 0.0) -> None:
    """Runs a study in a process of its own, which is killed `later` seconds after so many rounds of all its parts."""
    command = [sys.executable, "-c", SCRIPT, str(file), str(out), str(jobs)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None and _rounds(out) < rounds:
        time.sleep(0.002)
    time.sleep(later)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the study ended before it was killed"


def _rounds(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in out.rglob("rounds.jsonl"))
