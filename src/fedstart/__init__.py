"""Starting points for federated learning: make one, test one, choose one.

The names below are the library's front door. Each is imported when it is first used, so that `import fedstart`
takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedstart.algorithms.coprefl import CoPreFL as CoPreFL
    from fedstart.algorithms.fedavg import FedAvg as FedAvg
    from fedstart.algorithms.fedprox import FedProx as FedProx
    from fedstart.algorithms.scaffold import Scaffold as Scaffold
    from fedstart.data.federation import Examples as Examples
    from fedstart.data.federation import Federation as Federation
    from fedstart.data.partitions import IID as IID
    from fedstart.data.partitions import ByDomain as ByDomain
    from fedstart.data.partitions import Dirichlet as Dirichlet
    from fedstart.data.partitions import Natural as Natural
    from fedstart.data.partitions import Shards as Shards
    from fedstart.data.sources import load as load
    from fedstart.data.tasks import federate as federate
    from fedstart.data.tasks import split_classes as split_classes
    from fedstart.data.tasks import tasks as tasks
    from fedstart.engines.local import LocalEngine as LocalEngine
    from fedstart.models import Model as Model
    from fedstart.models import calibrated as calibrated
    from fedstart.models import distilled as distilled
    from fedstart.models import load_architecture as load_architecture
    from fedstart.models import renormalise as renormalise
    from fedstart.models.cnn import CNN as CNN
    from fedstart.models.cnn3x3 import CNN3x3 as CNN3x3
    from fedstart.models.custom import Custom as Custom
    from fedstart.models.mlp import MLP as MLP
    from fedstart.models.resnet18 import ResNet18 as ResNet18
    from fedstart.scores import Scores as Scores
    from fedstart.starts import Card as Card
    from fedstart.starts import Start as Start
    from fedstart.training import train as train
    from fedstart.types import Diverged as Diverged
    from fedstart.types import Plan as Plan
    from fedstart.types import Round as Round
    from fedstart.types import State as State
    from fedstart.types import Weights as Weights

__version__ = "0.1.0"

__all__ = [
    "__version__",
    # data
    "load",
    "split_classes",
    "federate",
    "tasks",
    "Examples",
    "Federation",
    "IID",
    "Dirichlet",
    "Shards",
    "Natural",
    "ByDomain",
    # models
    "Model",
    "load_architecture",
    "renormalise",
    "calibrated",
    "distilled",
    "MLP",
    "CNN",
    "CNN3x3",
    "ResNet18",
    "Custom",
    "Weights",
    # training
    "Plan",
    "LocalEngine",
    "train",
    "Round",
    "State",
    "Diverged",
    # methods
    "FedAvg",
    "FedProx",
    "Scaffold",
    "CoPreFL",
    # results
    "Start",
    "Card",
    "Scores",
]

_MODULES = {
    "algorithms.coprefl": ("CoPreFL",),
    "algorithms.fedavg": ("FedAvg",),
    "algorithms.fedprox": ("FedProx",),
    "algorithms.scaffold": ("Scaffold",),
    "data.federation": ("Examples", "Federation"),
    "data.partitions": ("IID", "Dirichlet", "Shards", "Natural", "ByDomain"),
    "data.sources": ("load",),
    "data.tasks": ("federate", "split_classes", "tasks"),
    "engines.local": ("LocalEngine",),
    "models": ("Model", "calibrated", "distilled", "load_architecture", "renormalise"),
    "models.cnn": ("CNN",),
    "models.cnn3x3": ("CNN3x3",),
    "models.custom": ("Custom",),
    "models.mlp": ("MLP",),
    "models.resnet18": ("ResNet18",),
    "scores": ("Scores",),
    "starts": ("Card", "Start"),
    "training": ("train",),
    "types": ("Diverged", "Plan", "Round", "State", "Weights"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
