"""Rounds: who takes part, and a generator of finished rounds for the caller's own `for`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Protocol, TypeVar

import numpy as np

from fedstart import keys, tree
from fedstart.models import Model
from fedstart.schedules import Seen, saw
from fedstart.types import Algorithm, Cohort, Cost, Counts, Diverged, Info, Memories, Plan, Round, State, Weights


class Roster(Protocol):
    """Who could take part: a federation in this process, or the nodes that a server knows."""

    @property
    def name(self) -> str: ...

    @property
    def eligible(self) -> np.ndarray:
        """Identities of the clients that have training examples, ascending."""
        ...


class MeasuredCohort(Cohort, Protocol):
    """A cohort that also knows what the round cost, its mean training loss (NaN without training), and who failed."""

    @property
    def cost(self) -> Cost: ...

    @property
    def loss(self) -> float: ...

    @property
    def missing(self) -> Mapping[int, str]: ...

    @property
    def memories(self) -> Memories: ...

    @property
    def stagnating(self) -> float:
        """Share of filters that stagnate, where the plan's schedule asks for it; else NaN."""
        ...

    def refine(self, weights: Weights) -> Weights:
        """The plan's minibatch steps on the server's own examples."""
        ...


Who = TypeVar("Who", bound=Roster, contravariant=True)


class Engine(Protocol[Who]):
    """What runs cohorts and evaluations: the local engine, or Flower.

    `unscored` says of each client that should have given scores in the last evaluation and did not, why.
    """

    @property
    def unscored(self) -> Mapping[int, str]: ...

    def cohort(
        self, model: Model, federation: Who, plan: Plan, number: int, clients: tuple[int, ...], memories: Memories
    ) -> MeasuredCohort: ...

    def evaluate(self, model: Model, federation: Who, weights: Weights, part: str = "test") -> Counts: ...


def draw(federation: Roster, plan: Plan, number: int) -> tuple[int, ...]:
    """The clients of round `number`, ascending: uniform without replacement among those with training examples.

    Raises ValueError when the plan asks for more clients than there are.
    """
    eligible = federation.eligible
    if plan.cohort is None or plan.cohort == len(eligible):
        return tuple(eligible.tolist())
    if plan.cohort > len(eligible):
        raise ValueError(
            f"{federation.name}: cohort = {plan.cohort}, but only {len(eligible)} clients have training examples"
        )
    chosen = keys.generator(plan.seed, "cohort", number).choice(len(eligible), plan.cohort, replace=False)
    return tuple(np.sort(eligible[chosen]).tolist())


def of_round(plan: Plan, number: int, seen: Seen | None) -> Plan:
    """The plan of round `number` = 1, 2, ...: its `local_steps` are those of the schedule, if there is one."""
    if plan.schedule is None or plan.local_steps is None:
        return plan
    return replace(plan, local_steps=plan.schedule.steps(plan.local_steps, number, seen))


def _seen(info: Info) -> Seen | None:
    """What a round with a schedule left in its info."""
    return Seen(int(info["tau"]), info["stagnating"], info["best"], int(info["waited"])) if "tau" in info else None


def train(
    algorithm: Algorithm,
    model: Model,
    federation: Who,
    plan: Plan,
    weights: Weights,
    engine: Engine[Who],
    after: Round | None = None,
) -> Iterator[Round]:
    """Yields the rounds one by one, `plan.rounds` in all; `weights` itself is never changed.

    `after` goes on behind a round of an earlier run with the same arguments, with the same bits as if it had
    not been interrupted. Where the plan has a schedule, each round's info has its `tau` and what else the server saw
    (`schedules.Seen`). Raises Diverged, naming the round, when a loss or a weight is NaN or infinite.
    """
    state, memories = (State(tree.clone(weights)), {}) if after is None else (after.state, after.memories)
    seen = None if after is None else _seen(after.info)
    for number in range(1 if after is None else after.number + 1, plan.rounds + 1):
        clients = draw(federation, plan, number)
        now = of_round(plan, number, seen)
        cohort = engine.cohort(model, federation, now, number, clients, memories)
        state, info = algorithm.step(state, cohort)
        if now.schedule and now.local_steps:
            seen = saw(seen, now.local_steps, cohort.stagnating, cohort.loss)
            info = {**info, **asdict(seen)}
        if plan.server_steps:
            state = replace(state, weights=cohort.refine(state.weights))
        memories = cohort.memories
        if math.isinf(cohort.loss) or not tree.is_finite(state.weights):
            raise Diverged(f"round {number}: the training loss or a weight is NaN or infinite; a smaller lr may help")
        yield Round(number, state, info, cohort.cost, clients, cohort.loss, cohort.missing, memories)
