"""What a study leaves, for tests that run it in two ways."""

from __future__ import annotations

from pathlib import Path


def results(out: Path) -> dict[str, bytes]:
    """Every file of a study that must not depend on how it was run."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("timing.json", ".lock") and path.parts[-2] != "unused"
    }
