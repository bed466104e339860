"""The federations of a study: pre-training for each seed, case and way of sharing, and the downstream tasks.

A case is a value of the column that `pretraining.left_out` names: pre-training has the rows with any other value, the
downstream tasks those with this one. A study that leaves out nothing has the one case "".
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fedstart import names
from fedstart.data import fitting, sources, subsets, tasks
from fedstart.data.federation import Examples, Federation
from fedstart.study.schema import Parts, Study
from fedstart.study.sharing import Sharing, Source


class Setting(NamedTuple):
    """Where downstream tasks are played: the case, and the partition by its label in the study."""

    case: str
    partition: str


class Shared(NamedTuple):
    """A pre-training federation of a study; `start` is "" for that of `[pretraining]`, else the first that has it."""

    case: str
    start: str
    sharing: Sharing

    @property
    def label(self) -> str:
        """What the results call it: `dirichlet(0.5)`, `sketch: iid, for coprefl`."""
        name = f"{self.sharing.label}, for {self.start}" if self.start else self.sharing.label
        return f"{self.case}: {name}" if self.case else name

    def key(self, seed: int) -> str:
        """Its name in the summary's fingerprints: `0`, `0, without sketch, for coprefl`."""
        words = [str(seed), f"without {self.case}" if self.case else "", f"for {self.start}" if self.start else ""]
        return ", ".join(filter(None, words))


class Federations:
    """Federations over one copy of the examples, each built when it is first asked for.

    Raises ValueError for a column or value that is not there, classes that do not exist, too few examples.
    """

    def __init__(self, study: Study, parts: Parts, examples: Examples) -> None:
        self._study, self._parts, self._examples = study, parts, examples
        table = study.pretraining
        total = tuple(range(len(examples.class_names)))
        others, self.held_out = (total, ()) if table.held_out is None else tasks.split_classes(examples, table.held_out)
        self.classes = others if table.classes is None else tuple(table.classes)
        self.cases = self._cases()
        labels = {case: f"{case}: " if case else "" for case in self.cases}
        self.settings: Mapping[str, Setting] = {
            f"{labels[case]}{label}": Setting(case, label)
            for case in self.cases
            for label in parts.downstream_partitions
        }
        given = study.downstream.classes
        if isinstance(given, list):
            subsets.checked(examples, given)
        self._built = functools.cache(self._build)
        self._others = functools.cache(self._other)
        self._left = functools.cache(self._rows)
        self.tasks = functools.cache(self._tasks)

    def pretraining(self, seed: int, case: str = "", start: str = "") -> Federation:
        """What a start is made on; `start=""` is what `[pretraining]` says.

        Starts that share out the rows in the same way have the same federation.
        Raises ValueError for a case that the study does not have.
        """
        if case not in self.cases:
            raise names.unknown("value left out", case, self.cases)
        return self._built(seed, case, self._parts.sharings[start] if start else self._parts.sharing)

    def shared(self) -> list[Shared]:
        """The pre-training federations of each seed: in each case that of `[pretraining]`, then those that differ."""
        others: dict[Sharing, str] = {self._parts.sharing: ""}
        for start, sharing in self._parts.sharings.items():
            others.setdefault(sharing, start)
        return [Shared(case, start, sharing) for case in self.cases for sharing, start in others.items()]

    def pool(self, seed: int) -> tuple[int, ...]:
        """The labels that tasks of a seed draw from, ascending."""
        given = self._study.downstream.classes
        if isinstance(given, list):
            return tuple(sorted(given))
        if given == "mixed":
            return subsets.mixed(self.classes, self.held_out, seed)
        # Where only a domain is left out, what is new downstream is the domain.
        return self.held_out if given == "unseen" and self.held_out else tuple(sorted(self.classes))

    def _cases(self) -> tuple[str, ...]:
        left_out = self._study.pretraining.left_out
        if left_out is None:
            return ("",)
        known = subsets.values_of(self._examples, left_out.column)
        if len(known) < 2:
            raise ValueError(
                f"pretraining.left_out: column {left_out.column!r} has no other value than {', '.join(known)!r}; "
                "without it no row is left for pre-training"
            )
        unused = {str(value) for value in left_out.unused}
        given = tuple(value for value in known if value not in unused)
        given = given if left_out.values is None else tuple(str(value) for value in left_out.values)
        for value in given:
            subsets.rows_with(self._examples, left_out.column, [value])
        return given

    def _rows(self, case: str) -> np.ndarray | None:
        """Which rows are left out in the case, shape (N,), boolean; None where nothing is."""
        left_out = self._study.pretraining.left_out
        return None if left_out is None else subsets.rows_with(self._examples, left_out.column, [case])

    def _unused(self) -> np.ndarray:
        """Which rows nobody gets, shape (N,), boolean."""
        left_out = self._study.pretraining.left_out
        unused = left_out.unused if left_out else []
        if left_out is None or not unused:
            return np.zeros(len(self._examples.labels), dtype=bool)
        return subsets.rows_with(self._examples, left_out.column, unused)

    def _build(self, seed: int, case: str, sharing: Sharing) -> Federation:
        left = self._left(case)
        name = f"pre-training without {case}" if case else "pre-training"
        examples, classes, among = self._examples, self.classes, None if left is None else ~(left | self._unused())
        if sharing.data:
            examples = self._others(sharing.data)
            name, classes, among = f"pre-training on {examples.name}", tuple(range(len(examples.class_names))), None
        return tasks.federate(
            examples,
            classes=classes,
            partition=sharing.partition,
            clients=sharing.clients,
            seed=seed,
            name=name,
            test_fraction=0.0,
            withheld=sharing.withheld,
            merge=self._study.data.merge or sharing.data is not None,
            among=among,
        )

    def _other(self, data: Source) -> Examples:
        found = sources.load(data.source, input=data.input, label=data.label)
        return fitting.fitted(found, self._examples.shape)

    def _tasks(self, label: str, seed: int) -> list[Federation]:
        table, (case, partition) = self._study.downstream, self.settings[label]
        return tasks.tasks(
            self._examples,
            classes=self.pool(seed),
            count=table.tasks,
            classes_per_task=table.classes_per_task,
            clients=table.clients,
            partition=self._parts.downstream_partitions[partition],
            test_fraction=table.test_fraction,
            seed=seed,
            merge=self._study.data.merge,
            name=f"{self._examples.name} {case}" if case else None,
            among=self._left(case),
        )
