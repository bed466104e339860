"""Models: one file per architecture, and `Model`, the functional view of all of them."""

from fedstart.models._model import Architecture, Model, load_architecture

__all__ = ["Architecture", "Model", "load_architecture"]
