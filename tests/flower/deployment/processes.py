"""Processes that belong to a folder, because their FLWR_HOME lies in it: to end them all, and to see what they open."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import struct
import time
from pathlib import Path

LISTENING = "0A"


def owned(folder: Path) -> list[int]:
    """Processes that were started with a FLWR_HOME below the folder, and what they started."""
    wanted = f"FLWR_HOME={folder}/".encode()
    return [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if _has(pid, wanted)]


def end(folder: Path, seconds: float = 10) -> None:
    """SIGKILL to all that belong to the folder, until none is left."""
    deadline = time.monotonic() + seconds
    while (left := owned(folder)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def listening(pids: list[int]) -> dict[str, str]:
    """Addresses (`127.0.0.1:9200`) on which the processes accept TCP connections, and the command that does."""
    owner = {link: pid for pid in pids for link in _sockets(pid)}
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            place, state, inode = (line.split()[index] for index in (1, 3, 9))
            if state == LISTENING and inode in owner:
                found[_address(place)] = _command(owner[inode])
    return found


def _has(pid: int, wanted: bytes) -> bool:
    try:
        return any(entry.startswith(wanted) for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    except OSError:
        return False


def _sockets(pid: int) -> list[str]:
    links = []
    with contextlib.suppress(OSError):
        for entry in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                links.append(os.readlink(f"/proc/{pid}/fd/{entry}"))
    return [link[8:-1] for link in links if link.startswith("socket:[")]


def _address(place: str) -> str:
    digits, port = place.split(":")
    words = struct.unpack(f"<{len(digits) // 8}I", bytes.fromhex(digits))
    host = ipaddress.ip_address(struct.pack(f">{len(words)}I", *words))
    return f"{getattr(host, 'ipv4_mapped', None) or host}:{int(port, 16)}"


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:120]
    except OSError:
        return "?"
