"""The environment of every Flower process that fedstart starts."""

from __future__ import annotations

from pathlib import Path

SETTINGS = {
    # Nothing leaves the machine that nobody asked for: no telemetry, no question for newer versions.
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # The app runs in the Python environment that is there; nothing is downloaded and installed for it.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    # Ray takes 127.0.0.1 for the machine's address and listens there only, instead of on every interface.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


def variables(home: Path | None = None) -> dict[str, str]:
    """The variables to add to a Flower process's environment; `home` is its own folder, by default ~/.flwr.

    They must be there when a SuperLink, a SuperNode or `flwr run` on the simulation engine starts: what those start
    inherits them.
    """
    return SETTINGS | ({} if home is None else {"FLWR_HOME": str(Path(home).absolute())})


def script(home: Path | None = None) -> str:
    """The same as lines for a shell to source."""
    return "".join(f"export {name}='{value}'\n" for name, value in variables(home).items())
