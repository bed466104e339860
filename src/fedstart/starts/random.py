"""Scratch: random initial weights, no pre-training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass as settings_dataclass

from fedstart.starts._start import without_training
from fedstart.types import STRICT, Cohort, Info, Plan, State, Weights

if TYPE_CHECKING:
    from fedstart.data.federation import Federation
    from fedstart.models import Model


@settings_dataclass(frozen=True, config=STRICT)
class Random:
    """The model's initial weights, and nothing else: zero rounds of pre-training."""

    def begin(self, model: Model, seed: int) -> Weights:
        """Initial weights of `seed`: the same that every trained method begins from."""
        return model.init(seed)

    def prepare(self, federation: Federation, plan: Plan) -> tuple[Federation, Plan]:
        """The federation as it is, and zero rounds."""
        return federation, without_training(plan)

    def step(self, state: State, cohort: Cohort) -> tuple[State, Info]:
        """The state as it is."""
        return state, {}
