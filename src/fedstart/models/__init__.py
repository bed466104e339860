"""Models: one file per architecture, and `Model`, the functional view of all of them.

What is named below is imported when it is first used: it needs torch, and the settings of the architectures do not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedstart.models._distillation import distilled
    from fedstart.models._model import Architecture, Model, load_architecture
    from fedstart.models._surgery import calibrated, renormalise

__all__ = ["Architecture", "Model", "calibrated", "distilled", "load_architecture", "renormalise"]

_HOMES = {"calibrated": "_surgery", "distilled": "_distillation", "renormalise": "_surgery"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, '_model')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
