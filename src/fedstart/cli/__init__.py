"""The command line. `main` is the console script; nothing heavy is imported before a command asks for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

SAVED = "stopped; what was finished is saved: run the same command to go on"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status: 0 done, 2 an error (one line on stderr), 130 stopped by Ctrl-C.

    With FEDSTART_DEBUG=1 in the environment errors keep their traceback.
    """
    import typer

    from fedstart.cli._app import app

    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    command = typer.main.get_command(app)
    try:
        with command.make_context("fedstart", words) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as leave:
        return leave.exit_code
    except KeyboardInterrupt:
        return _complain(SAVED, 130)
    except BrokenPipeError:
        # The reader of our output has gone (`fedstart list | head`): point stdout elsewhere so that Python's
        # own flush at exit does not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except Exception as error:
        if os.environ.get("FEDSTART_DEBUG") == "1":
            raise
        return _complain(one_line(error), 2)
    return 0


def one_line(error: Exception) -> str:
    """What went wrong, in one line: a usage error with where to look, an OSError with its file."""
    usage = getattr(error, "format_message", None)
    if usage is not None:
        path = getattr(getattr(error, "ctx", None), "command_path", "")
        return _flat(usage()) + (f" (see: {path} --help)" if path else "")
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return _flat(f"{error.filename}: {reason}" if error.filename is not None else reason)
    if isinstance(error, ValueError):
        return _flat(str(error))
    if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] == "flwr":
        return "this needs Flower, which is not installed: pip install 'fedstart[flower]'"
    return _flat(f"{type(error).__name__}: {error}") + " (a fault of fedstart; FEDSTART_DEBUG=1 shows where)"


def _complain(message: str, status: int) -> int:
    sys.stdout.flush()
    print(f"fedstart: {'error: ' if status != 130 else ''}{message}", file=sys.stderr)
    return status


def _flat(text: str) -> str:
    return " ".join(text.split())
