"""Models: one file per architecture, and `Model`, the functional view of all of them.

`Model` is imported when it is first used: it needs torch, and the settings of the architectures do not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedstart.models._model import Architecture, Model, load_architecture

__all__ = ["Architecture", "Model", "load_architecture"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}._model"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
