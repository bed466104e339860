"""What `fedstart export` and `fedstart federate` make, on Flower's own engines: the simulation, and a deployment."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

flwr = pytest.importorskip("flwr", reason="needs the extra fedstart[flower]")

import processes  # noqa: E402
from cluster import free_port, wait  # noqa: E402

import fedstart  # noqa: E402
from fedstart import tree  # noqa: E402
from fedstart.engines.local import LocalEngine  # noqa: E402
from fedstart.flower import environment  # noqa: E402
from fedstart.flower.export import Choice, export  # noqa: E402
from fedstart.flower.settings import AppSettings  # noqa: E402
from fedstart.flower.sites import shared  # noqa: E402
from fedstart.runs import RunDirectory  # noqa: E402
from fedstart.starts import Start  # noqa: E402
from fedstart.training import train  # noqa: E402
from flower.small import config_of, study  # noqa: E402

pytestmark = pytest.mark.deployment


@pytest.fixture
def home(tmp_path):
    """A FLWR_HOME, and an end to everything that was started with it."""
    yield tmp_path / "home"
    processes.end(tmp_path)


def test_the_exported_app_on_the_simulation_engine_unedited(home, tmp_path, measured):
    pytest.importorskip("ray", reason="needs flwr[simulation]")
    app = export(study(), tmp_path / "app", Choice(start="coprefl"))
    variables = {
        **os.environ,
        **environment.variables(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(fedstart.__file__).parents[1]),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
    }
    command = ["flwr", "run", ".", "local", "--stream"]
    command += ["--federation-config", f"num-supernodes={app.nodes} client-resources-num-cpus=1"]
    started, heard = time.monotonic(), {}
    with open(tmp_path / "flwr.log", "wb") as log:
        run = subprocess.Popen(command, cwd=app.directory, env=variables, stdout=log, stderr=subprocess.STDOUT)

    def ended() -> bool:
        heard.update(processes.listening(processes.owned(tmp_path)))
        return run.poll() is not None

    try:
        wait("the simulation", 240, ended, pause=0.2)
    finally:
        run.kill()
        run.wait(10)
    said = (tmp_path / "flwr.log").read_text(errors="replace")
    assert RunDirectory(app.out).status == "done", said[-3000:]
    assert any("raylet" in command for command in heard.values()), heard
    assert all(address.startswith("127.0.0.1:") for address in heard), heard
    settings = AppSettings.read(config_of(app))
    with LocalEngine(2) as engine:
        model, federation = settings.recipe.model, shared(settings.recipe)
        near = list(train(settings.algorithm, model, federation, settings.plan, settings.weights(), engine))
    made = Start.load(app.out / "start")
    assert tree.fingerprint(made.weights) == tree.fingerprint(near[-1].state.weights)
    measured.append(
        f"exported app on the simulation engine: {time.monotonic() - started:.0f} s, {settings.plan.rounds} rounds of "
        f"coprefl, bit-identical; {len(heard)} listening sockets, all on 127.0.0.1"
    )


def test_federate_on_the_deployment_leaves_what_the_local_engine_leaves(cluster, tmp_path, measured):
    begin = export(study(), tmp_path / "app", Choice(start="random", task=0)).directory / "begin.safetensors"
    words = ["federate", str(begin), "--data", "digits", "--clients", "3", "--method", "fedavg", "--model", "mlp"]
    words += ["--partition", "dirichlet"]
    settings = ["plan.rounds=2", "plan.local_steps=4", "plan.lr=0.1", "partition.alpha=0.5", "model.hidden=[8]"]
    far = ["--engine", "flower", "--superlink", cluster.address, "--root-certificates", str(cluster.work / "ca.crt")]
    call(cluster, [*words, "--out", str(tmp_path / "near"), *settings])
    started = time.monotonic()
    call(cluster, [*words, "--out", str(tmp_path / "far"), *far, *settings])
    seconds = time.monotonic() - started
    left, right = (RunDirectory(tmp_path / name) for name in ("near", "far"))
    ours, theirs = left.load_checkpoint(), right.load_checkpoint()
    assert ours and theirs and tree.fingerprint(ours.state.weights) == tree.fingerprint(theirs.state.weights)
    assert (left.path / "clients.parquet").read_bytes() == (right.path / "clients.parquet").read_bytes()
    assert tree.fingerprint(Start.load(right.path / "start").weights) == tree.fingerprint(theirs.state.weights)
    measured.append(f"fedstart federate --engine flower: {seconds:.0f} s, 2 rounds with scores, as the local engine")


def call(cluster, words: list[str]) -> None:
    """The `fedstart` command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "fedstart", *words],
        env=cluster.environment("fedstart"),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
