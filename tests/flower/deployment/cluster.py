"""A SuperLink and SuperNodes on 127.0.0.1, each a process of its own, with TLS and node authentication.

Every process gets a process group, its own FLWR_HOME and a log file, and is killed by its id when the cluster closes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import processes
from certificates import certificates, node_key
from forkserver import STAND_IN

import fedstart
from fedstart.flower import environment

HERE = Path(__file__).resolve().parent
CONNECTION = "deployment"
QUICK = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05"}


def wait(what: str, seconds: float, test: Callable[[], Any], pause: float = 0.05) -> Any:
    """The first true answer of `test`; raises TimeoutError, saying what was waited for, after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (answer := test()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not in {seconds:g} seconds")
        time.sleep(pause)
    return answer


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Cluster:
    """Use as a context manager. `fork` replaces Flower's slow process starts by forks (see `forkserver`)."""

    def __init__(self, work: Path, nodes: int = 3, *, secure: bool = True, fork: bool = True) -> None:
        self.work, self.nodes, self.secure, self.fork = work, nodes, secure, fork
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.address = f"127.0.0.1:{free_port()}"

    def __enter__(self) -> Cluster:
        try:
            if self.fork:
                self._start_forkserver()
            self._start_superlink()
            for node in range(self.nodes):
                if self.secure:
                    self.flwr("supernode", "register", str(node_key(self.work, node)), CONNECTION)
            for node in range(self.nodes):
                self.start_node(node)
            self.wait_online(self.nodes)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kills every process of the cluster, SuperNodes first, and what they started."""
        for name in reversed(list(self.processes)):
            self.kill(name)
        processes.end(self.work)

    def kill(self, name: str) -> None:
        """SIGKILL to a process and its group; waits until it is gone."""
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def start_node(self, node: int, via: str | None = None) -> None:
        """Starts the SuperNode of client `node`; `via` is another address at which the SuperLink is reached."""
        command = ["flower-supernode", "--superlink", via or self.address, "--host", "127.0.0.1"]
        command += ["--port", str(free_port()), "--node-config", f"partition-id={node}"]
        if self.secure:
            command += ["--root-certificates", str(self.work / "ca.crt")]
            command += ["--auth-supernode-private-key", str(self.work / f"node-{node}")]
        else:
            command += ["--insecure"]
        self._start(f"node-{node}", command)

    def online(self) -> int:
        """Number of SuperNodes that the SuperLink takes for alive."""
        listed = json.loads(self.flwr("supernode", "list", CONNECTION, "--format", "json"))
        return sum(node["status"] == "online" for node in listed["nodes"])

    def wait_online(self, count: int, seconds: float = 180) -> None:
        """Waits until `count` SuperNodes are there."""
        wait(f"{count} SuperNodes", seconds, lambda: self.online() == count)

    def log(self, name: str) -> str:
        """What a process has printed so far."""
        return (self.work / f"{name}.log").read_text(errors="replace")

    def start_run(self, app: Path, config: Mapping[str, Any]) -> str:
        """Submits an app; the identity of the run."""
        given = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        return str(json.loads(self.flwr("run", str(app), CONNECTION, "-c", given, "--format", "json"))["run-id"])

    def finished(self, run: str) -> str:
        """How a run has ended (`finished:completed`, or another status and its details); empty while it goes on."""
        (listed,) = json.loads(self.flwr("list", "--run-id", run, CONNECTION, "--format", "json"))["runs"]
        status = str(listed["status"])
        if not status.startswith("finished"):
            return ""
        return status if status == "finished:completed" else f"{status} {listed.get('status-details', '')}"

    def wait_finished(self, run: str, seconds: float) -> str:
        """Waits for the end of a run, and says how it ended; one that takes longer is stopped."""
        try:
            return wait(f"run {run}", seconds, lambda: self.finished(run), pause=2)
        except TimeoutError:
            self.flwr("stop", run, CONNECTION)
            raise

    def flwr(self, *arguments: str) -> str:
        """Runs the `flwr` command to its end; what it printed."""
        done = subprocess.run(
            ["flwr", *arguments], env=self.environment("cli"), capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode:
            raise RuntimeError(f"flwr {' '.join(arguments)} failed: {done.stdout} {done.stderr}")
        return done.stdout

    def environment(self, name: str) -> dict[str, str]:
        """The environment of a process, with a FLWR_HOME of its own."""
        home = self.work / f"home-{name}"
        home.mkdir(exist_ok=True)
        tools = f"{self.work / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        library = str(Path(fedstart.__file__).parents[1])
        return {**os.environ, **environment.variables(home), **QUICK, "PATH": tools, "PYTHONPATH": library}

    def _start_forkserver(self) -> None:
        place = self.work / "fork.socket"
        (self.work / "bin").mkdir()
        for command in ("flwr-clientapp", "flwr-serverapp"):
            file = self.work / "bin" / command
            file.write_text(STAND_IN.format(python=sys.executable, socket=str(place)))
            file.chmod(0o755)
        self._start("forkserver", [sys.executable, str(HERE / "forkserver.py"), str(place)])
        wait("fork server", 180, lambda: place.exists() or self._ended("forkserver"))

    def _start_superlink(self) -> None:
        host, port = self.address.split(":")
        safe: list[str] = []
        connection = f'address = "{self.address}"\n'
        if self.secure:
            certificates(self.work)
            safe = ["--ssl-ca-certfile", str(self.work / "ca.crt"), "--ssl-certfile", str(self.work / "server.pem")]
            safe += ["--ssl-keyfile", str(self.work / "server.key"), "--enable-supernode-auth"]
            connection += f'root-certificates = "{self.work / "ca.crt"}"\n'
        else:
            safe = ["--insecure"]
            connection += "insecure = true\n"
        self._start("superlink", ["flower-superlink", "--host", host, "--port", port, *safe])
        self.environment("cli")
        (self.work / "home-cli" / "config.toml").write_text(f"[superlink.{CONNECTION}]\n{connection}")
        wait("SuperLink", 120, self._healthy)

    def _ended(self, name: str) -> bool:
        """False; raises RuntimeError with what the process printed if it has ended."""
        if self.processes[name].poll() is not None:
            raise RuntimeError(f"{name} has ended: {self.log(name)}")
        return False

    def _healthy(self) -> bool:
        self._ended("superlink")
        context = ssl.create_default_context(cafile=str(self.work / "ca.crt")) if self.secure else None
        try:
            with urllib.request.urlopen(
                f"http{'s' * self.secure}://{self.address}/health", timeout=5, context=context
            ) as reply:
                return reply.status == 200
        except OSError:
            return False

    def _start(self, name: str, command: list[str]) -> None:
        command[0] = shutil.which(command[0], path=self.environment(name)["PATH"]) or command[0]
        with open(self.work / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                env=self.environment(name),
                cwd=self.work,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
