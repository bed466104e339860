"""Any PyTorch module, by the import path of a function that makes it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass as settings_dataclass

from fedstart import names
from fedstart.types import STRICT

if TYPE_CHECKING:
    from torch import nn


@settings_dataclass(frozen=True, config=STRICT)
class Custom:
    """A module made by your own code: `factory(shape, classes)`, or `factory(classes)`.

    Which of the two is decided by the number of arguments without default. The factory is imported and called when the
    model is first used, so it is code that must be trusted, also when the card of a Start names it. It may draw from
    torch's default generator and no other; weights that it loads are kept by `init`.
    """

    factory: Annotated[
        str, Field(pattern=r"^[\w.]+:[\w.]+$", description="import path of the factory, package.module:function")
    ]
    head: Annotated[str, Field(min_length=1, description="prefix of the last linear layer's tensors")]

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """What the factory returns; raises ValueError if it is not found, or does not give an `nn.Module`."""
        from torch import nn

        factory = _resolve(self.factory)
        required = _required_arguments(factory)
        if required not in (1, 2):
            raise ValueError(
                f"factory {self.factory!r} takes {required} arguments without default "
                "(allowed: factory(shape, classes) or factory(classes))"
            )
        module = factory(shape, classes) if required == 2 else factory(classes)
        if not isinstance(module, nn.Module):
            raise ValueError(f"factory {self.factory!r} returned {type(module).__name__} (allowed: torch.nn.Module)")
        return module


def _resolve(path: str) -> Callable[..., Any]:
    home, _, attributes = path.partition(":")
    try:
        found: Any = importlib.import_module(home)
    except ImportError as error:
        raise ValueError(f"factory {path!r}: {error} (the folder of your module must be on PYTHONPATH)") from None
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            raise names.unknown(f"name in factory {path!r}:", attribute, [n for n in dir(found) if n[0] != "_"])
        found = getattr(found, attribute)
    if not callable(found):
        raise ValueError(f"factory {path!r} is {type(found).__name__} (allowed: a function or class)")
    return found


def _required_arguments(factory: Callable[..., Any]) -> int:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    arguments = inspect.signature(factory).parameters.values()
    return sum(argument.kind in positional and argument.default is argument.empty for argument in arguments)
