"""Which simulators run, how, and which do not and why."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Simulator:
    """One row of the tables. `environment` names the Python environment that has its `packages`."""

    key: str
    title: str
    script: str
    packages: tuple[str, ...]
    workloads: str = "abc"
    variant: str = ""
    environment: str = "main"


SIMULATORS = {
    simulator.key: simulator
    for simulator in (
        Simulator("bare", "bare PyTorch loop", "bare.py", ("torch",), "abcd"),
        Simulator("float32", "fedstart, float32", "fedstart_engine.py", ("fedstart", "torch"), "abcd", "float32"),
        Simulator("fedstart", "fedstart, its own choices", "fedstart_engine.py", ("fedstart", "torch"), "abcd", "own"),
        Simulator("flower", "Flower simulation", "flower_simulation.py", ("flwr", "ray", "torch"), "abcd"),
        Simulator("pfl", "pfl-research", "pfl_backend.py", ("pfl", "torch"), "abcd"),
        Simulator("pfl2", "pfl-research, 2 processes", "pfl_backend.py", ("pfl", "torch"), "abcd", "2"),
        Simulator("fluke", "fluke", "fluke_run.py", ("fluke-fl", "torch"), environment="torchvision"),
        Simulator("blazefl", "BlazeFL", "blazefl_run.py", ("blazefl", "torch")),
        Simulator("fedjax", "FedJAX", "fedjax_run.py", ("fedjax", "jax")),
        Simulator("flsim", "FLSim", "flsim_run.py", ("flsim", "torch"), environment="torchvision"),
        Simulator("fedlab", "FedLab", "fedlab_run.py", ("fedlab", "torch"), environment="torchvision"),
        Simulator("fedml", "FedML (sp)", "fedml_run.py", ("fedml", "torch"), environment="fedml"),
    )
}

NOT_RUN = {
    "TensorFlow Federated 0.87.0": "does not install: it needs jaxlib 0.4.14, which is not on the index",
    "EasyFL 0.1.2": "installs; the protobuf that pip gives it refuses its messages",
    "FLGo 0.4.4": "installs; its tasks are generated from its own data sets, and no runner was written",
    "APPFL 1.12.0": "installs; made for sites on other machines (gRPC, Globus, MPI); no runner was written",
    "NVFlare 2.9.0": "can be installed (not tried); made for sites, each of which is an application of its own; "
    "no runner was written",
}


def environment(name: str, given: dict[str, Path]) -> Path:
    """The interpreter of an environment: as given, or of the folder beside this interpreter's, `...-torchvision`.

    Raises FileNotFoundError, saying what to do, where there is none.
    """
    if name in given:
        found = given[name]
    elif name == "main":
        found = Path(sys.executable)
    else:
        found = Path(f"{sys.prefix}-{name}") / "bin" / "python"
    if not found.exists():
        raise FileNotFoundError(f"no interpreter at {found}: see benchmarks/simulators/README.md, or give --python")
    return found


def variables(home: Path) -> dict[str, str]:
    """The environment of every child: this one's, and what keeps Flower and Ray on this machine and quiet."""
    return os.environ | {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "FLWR_HOME": str(home),
        "PYTHONPATH": str(HERE),
        "PYTHONWARNINGS": "ignore",
    }
