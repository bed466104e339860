"""Which rows and classes of a source a federation may use; the examples themselves are never copied for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedstart import keys, names
from fedstart.data.federation import Examples


def checked(examples: Examples, classes: Sequence[int]) -> list[int]:
    """The labels as they are. Raises ValueError for one that does not exist or is there twice, and for none at all."""
    labels = [int(label) for label in classes]
    wrong = [label for label in labels if not 0 <= label < len(examples.class_names)]
    if wrong:
        raise ValueError(f"{examples.name}: no class {wrong[0]} (allowed: 0 to {len(examples.class_names) - 1})")
    if not labels or len(set(labels)) != len(labels):
        raise ValueError(f"{examples.name}: the classes must be one or more different labels (given: {labels})")
    return labels


def values_of(examples: Examples, column: str) -> tuple[str, ...]:
    """The different values of a column as text, in the order of the values. Raises ValueError for an unknown column."""
    if column not in examples.columns:
        raise names.unknown("column", column, examples.columns)
    return tuple(str(value) for value in np.unique(examples.columns[column]).tolist())


def rows_with(examples: Examples, column: str, values: Sequence[str | int]) -> np.ndarray:
    """Which rows have one of the values in the column, shape (N,), boolean. Values are compared as text.

    Raises ValueError for an unknown column or value.
    """
    known = values_of(examples, column)
    for value in values:
        if str(value) not in known:
            raise names.unknown(f"value of column {column!r}", str(value), known)
    wanted = [place for place, value in enumerate(known) if value in {str(value) for value in values}]
    return np.isin(np.unique(examples.columns[column], return_inverse=True)[1], wanted)


def mixed(seen: Sequence[int], unseen: Sequence[int], seed: int) -> tuple[int, ...]:
    """Half as many labels as there are unseen ones, drawn from these, and as many drawn from the seen ones; ascending.

    CoPreFL's Table 4 (Chu et al. 2025, arXiv:2402.02225): of 80 seen and 20 unseen classes ten each.
    Raises ValueError for fewer than two unseen classes, and for fewer seen ones than are drawn.
    """
    number = len(unseen) // 2
    if not 1 <= number <= len(seen):
        raise ValueError(
            f"mixed classes: {number} of the {len(unseen)} held-out classes and as many of the {len(seen)} seen ones "
            f"cannot be drawn (held-out classes allowed: 2 to {2 * len(seen) + 1})"
        )
    draws = keys.generator(seed, "mixed-classes")
    chosen = [draws.choice(np.sort(side), size=number, replace=False) for side in (unseen, seen)]
    return tuple(np.sort(np.concatenate(chosen)).tolist())
