"""Files that are written whole or not at all, and JSON in them."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: bytes | str) -> None:
    """Writes `content` (text as UTF-8) so that a reader, or a crash, meets the old file or the new one, whole.

    Raises OSError in one line that names the file (no space left, no permission, ...); the old file is then
    as it was, and no temporary file stays behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise cannot("write", path, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def claimed(directory: Path, work: str) -> AbstractContextManager[object]:
    """Makes a directory and holds it against other processes; the lock goes with the process, however that ends.

    Raises ValueError, saying that another process is doing this `work` there, and OSError where it cannot be made.
    """
    import filelock

    try:
        directory.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(directory / ".lock", timeout=0).acquire()
    except filelock.Timeout:
        raise ValueError(f"{directory}: another process is {work} there") from None
    except OSError as error:
        raise cannot("make", directory, error) from None


def remove_temporary_files(directory: Path) -> None:
    """Removes what `write_atomically` left in a directory when its process was killed in the middle."""
    for leftover in Path(directory).glob(".*.tmp"):
        with suppress(OSError):
            leftover.unlink()


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically. Keys keep their order. Raises ValueError for NaN or infinity."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises ValueError, naming the file, if it is not JSON, OSError if unreadable."""
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise cannot("read", path, error) from None
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from None


def cannot(do: str, path: Path, error: OSError) -> OSError:
    """The same error as one line: what could not be done, with which file, and why."""
    return type(error)(error.errno, f"cannot {do} {path}: {error.strerror or error}; what was saved before is kept")


def first_difference(held: Any, wanted: Any, path: str = "") -> str | None:
    """The first place where two nests of mappings differ, in words: `plan.lr is 0.1 there, not 0.2`; None if equal."""
    if isinstance(held, Mapping) and isinstance(wanted, Mapping):
        for key in {**wanted, **held}:
            below = f"{path}.{key}" if path else str(key)
            if found := first_difference(held.get(key), wanted.get(key), below):
                return found
        return None
    return None if held == wanted else f"{path} is {_shown(held)} there, not {_shown(wanted)}"


def _shown(value: Any) -> str:
    return "absent" if value is None else json.dumps(value)
