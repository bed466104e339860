"""fedstart on Flower: an app that anyone can run, and what writes and follows such apps.

`server_app.py` of an app is `app = ServerApp()` and `app.main()(fedstart.flower.main)`, its `client_app.py`
`app = ClientApp()` and `fedstart.flower.serve(app)`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedstart.flower.app import main as main
    from fedstart.flower.export import export as export
    from fedstart.flower.following import follow as follow
    from fedstart.flower.sites import serve as serve
    from fedstart.flower.sites import site as site

__all__ = ["export", "follow", "main", "serve", "site"]

_HOMES = {"export": "export", "follow": "following", "main": "app", "serve": "sites", "site": "sites"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
