"""How one client's training examples become support and query where the split is not at random.

These are the other values of `Plan.query_split`. What is drawn is keyed by (seed, "query", round, client).
"""

from __future__ import annotations

import numpy as np

from fedstart import keys
from fedstart.types import Plan


def divide(plan: Plan, number: int, client: int, labels: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the support and of the query among a client's n examples with these labels, shape (n,).

    The query has `wanted` examples, 1 to n - 1; with "classes" it may have fewer. The places are in the keyed order
    of the round, with "time" in their own. See `_stratified`, `_time` and `_classes`.
    """
    if plan.query_split == "time":
        return _time(len(labels), wanted)
    order, other = _order(plan, number, client, len(labels), 0), _order(plan, number, client, len(labels), 1)
    if plan.query_split == "stratified":
        return _stratified(labels, wanted, order, int(other[0]))
    classes = len(np.unique(labels))
    if plan.query_split == "classes" and classes > 1:
        return _classes(labels, wanted, order, _order(plan, number, client, classes, 1))
    return order[wanted:], order[:wanted]


def _stratified(labels: np.ndarray, wanted: int, order: np.ndarray, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """A class of m examples has `wanted * m / n` of them in the query, rounded down or up.

    Systematic sampling: the examples lie on a line, class after class, and equal steps from a random first one hit
    `wanted` of them. So each example has the same chance, `wanted / n`, those of rare classes too, which by largest
    remainders would never be asked for.
    """
    line = order[np.argsort(labels[order], kind="stable")]
    hit = np.zeros(len(labels), dtype=bool)
    hit[line] = (np.arange(len(labels)) * wanted + shift) % len(labels) >= len(labels) - wanted
    return order[~hit[order]], order[hit[order]]


def _time(examples: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """The last ones in the client's own order are the query, in every round."""
    places = np.arange(examples)
    return places[: examples - wanted], places[examples - wanted :]


def _classes(
    labels: np.ndarray, wanted: int, order: np.ndarray, class_order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Whole classes, in a random order, are set apart until they hold `wanted` examples; the last one never is.

    The query is the first `wanted` examples of these, or all if they have fewer; the rest of them is in neither part.
    All examples of the other classes are the support.
    """
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    enough = 1 + int(np.searchsorted(np.cumsum(counts[class_order]), wanted))
    apart = np.isin(codes, class_order[: min(enough, len(counts) - 1)])
    return order[~apart[order]], order[apart[order]][:wanted]


def _order(plan: Plan, number: int, client: int, size: int, repeat: int) -> np.ndarray:
    return keys.orders(plan.seed, "query", number, np.array([client]), np.array([size]), repeat)[0]
