"""Stands in for `flwr-clientapp` and `flwr-serverapp` in tests: forks a process that has imported everything.

    python forkserver.py SOCKET

Flower starts a process for every message, and four seconds of that are imports. Here they happen once. The two
commands are small scripts (`STAND_IN`) on the PATH of the SuperLink and SuperNodes; they hand over their arguments
and environment and end. What is run is Flower's own code, with the same arguments.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback

STAND_IN = """#!{python} -IS
import json, os, socket, sys
request = {{"argv": sys.argv, "cwd": os.getcwd(), "environment": dict(os.environ)}}
connection = socket.socket(socket.AF_UNIX)
connection.connect({socket!r})
connection.sendall(json.dumps(request).encode())
"""


def serve(path: str) -> None:
    """Listens on a Unix socket until it is killed; the processes it forks are not waited for."""
    import sklearn.datasets  # noqa: F401
    import torch
    from flwr.superlink.cli import flwr_serverapp
    from flwr.supernode.cli import flwr_clientapp

    import fedstart.data.digits
    import fedstart.data.tasks
    import fedstart.engines.flower
    import fedstart.engines.node
    import fedstart.runs  # noqa: F401

    torch.set_num_threads(1)
    commands = {"flwr-clientapp": flwr_clientapp, "flwr-serverapp": flwr_serverapp}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile() as stream:
            request = json.loads(stream.read())
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.environ.clear()
            os.environ.update(request["environment"])
            os.chdir(request["cwd"])
            sys.argv = request["argv"]
            run(commands[os.path.basename(sys.argv[0])])


def run(command) -> None:  # type: ignore[no-untyped-def]
    """Runs a command of Flower's and ends this process as it would."""
    status = 1
    try:
        command()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1])
