"""One cluster for all deployment tests, what they measured at the end, and no process left behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

MEASURED = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """A SuperLink and three SuperNodes with TLS and node authentication."""
    pytest.importorskip("flwr", reason="needs the extra fedstart[flower]")
    from cluster import Cluster

    with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(scope="session", autouse=True)
def _teardown_when_terminated() -> Iterator[None]:
    """A `timeout` around pytest ends the fixtures too, which kill their processes."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt("terminated")

    before = signal.signal(signal.SIGTERM, stop)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> list[str]:
    """Lines to show when all tests have run."""
    return request.config.stash.setdefault(MEASURED, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Shows what the tests measured."""
    for line in config.stash.get(MEASURED, []):
        terminalreporter.write_line(line)
