"""docs/flower.md, "Deploy on Flower": its commands, one after the other, as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

flwr = pytest.importorskip("flwr", reason="needs the extra fedstart[flower]")

import processes  # noqa: E402
from cluster import free_port  # noqa: E402

import fedstart  # noqa: E402
from fedstart.runs import RunDirectory  # noqa: E402
from fedstart.starts import Start  # noqa: E402

pytestmark = pytest.mark.deployment

DOCUMENT = Path(__file__).parents[3] / "docs" / "flower.md"
PORTS = ("9200", "9300", "9301", "9302")


def commands() -> str:
    """The shell blocks of the section."""
    section = re.search(r"^## Deploy on Flower\n(.*?)(?=^## )", DOCUMENT.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert section is not None
    blocks = re.findall(r"^```bash\n(.*?)^```", section[1], re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 8
    return "".join(blocks)


def test_from_nothing_to_a_trained_model(cluster, tmp_path, measured):
    script = commands().replace("--port 930$k", "--port ${ports[$k]}")
    ports = [str(free_port()) for _ in PORTS]
    script = f"set -euo pipefail\nports=({' '.join(ports[1:])})\n" + script.replace("9200", ports[0])
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "fedstart").write_text(f'#!/bin/sh\nexec {sys.executable} -m fedstart "$@"\n')
    (tools / "fedstart").chmod(0o755)
    variables = {
        **cluster.environment("docs"),
        "PATH": os.pathsep.join([str(tools), cluster.environment("docs")["PATH"]]),
        "PYTHONPATH": str(Path(fedstart.__file__).parents[1]),
    }
    started = time.monotonic()
    with open(tmp_path / "log", "wb") as log:
        shell = subprocess.Popen(
            ["bash", "-c", script], cwd=tmp_path, env=variables, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        assert shell.wait(300) == 0, (tmp_path / "log").read_text(errors="replace")[-4000:]
    finally:
        shell.kill()
        shell.wait(10)
        processes.end(tmp_path)
    run = RunDirectory(tmp_path / "run")
    assert run.status == "done"
    rounds = run.rounds()
    assert [line["clients"] for line in rounds] == [[0, 1, 2]] * 2 and rounds[-1]["accuracy"] > 60
    assert Start.load(run.path / "start").card.data_fingerprint
    assert (run.path / "report.html").exists()
    measured.append(
        f"docs, deploy on Flower: {time.monotonic() - started:.0f} s, accuracy {rounds[-1]['accuracy']:.1f} %"
    )
