"""Studies: data x starts x algorithms x partitions x tasks x seeds, from one typed TOML file.

What runs a study is imported when it is first used: it needs torch, and reading a study does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fedstart.study.loading import load, presets
from fedstart.study.schema import Study

if TYPE_CHECKING:
    from fedstart.study.running import failures, run
    from fedstart.study.work import Progress

__all__ = ["Progress", "Study", "failures", "load", "presets", "run"]

_HOMES = {"Progress": "work", "failures": "running", "run": "running"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
