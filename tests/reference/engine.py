"""The fast side of the comparisons: a method's rounds on the local engine."""

from __future__ import annotations

from fedstart.data.federation import Federation
from fedstart.engines.local import LocalEngine
from fedstart.models import Model
from fedstart.training import train
from fedstart.types import Algorithm, Plan, Round, Weights


def last_round(method: Algorithm, model: Model, federation: Federation, plan: Plan, weights: Weights) -> Round:
    """The plan's last round."""
    with LocalEngine() as engine:
        *_, last = train(method, model, federation, plan, weights, engine)
    return last


def final(method: Algorithm, model: Model, federation: Federation, plan: Plan, weights: Weights) -> Weights:
    """The weights after it."""
    return last_round(method, model, federation, plan, weights).state.weights
