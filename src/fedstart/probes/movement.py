"""Movement: how far weights are from where they began, and from where they end."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic.dataclasses import dataclass

from fedstart.probes._subject import Measured, Subject
from fedstart.probes._tensors import Numbers, measured, products, relative, square_lengths, whole
from fedstart.types import STRICT


@dataclass(frozen=True, config=STRICT)
class Movement:
    """Distances of the weights w to `start` and `end` of `subject.others`, of the whole network and of each layer.

    Only parameters that are trained count. With s the start: `from_start` is ||w - s||, `from_start_relative` that over
    ||s||, `cosine_with_start` that of w and s, from -1 to 1. With e the end: `to_end` is ||w - e||, `to_end_relative`
    that over ||e||. A number that is not defined, relative to or in the direction of zero, is left out, and None in a
    layer's row. Raises ValueError where neither `start` nor `end` is given, or one does not fit the model.
    """

    cost: ClassVar[str] = "no examples; two passes over the weights for each of start and end"

    def measure(self, subject: Subject) -> Measured:
        """The numbers above, those of `start` and `end` where they are given; a row for each layer has the same."""
        found = [name for name in ("start", "end") if name in subject.others]
        if not found:
            given = ", ".join(sorted(subject.others)) or "nothing"
            raise ValueError(
                f"movement needs weights to compare with in others, got {given} (allowed: start, end); "
                "fedstart diagnose takes an end with --end"
            )
        network: Numbers = {}
        rows: dict[str, Numbers] = {layer: {} for layer in subject.model.parameters}
        for name in found:
            terms = _terms(subject, name)
            network = {**network, **_numbers(name, whole(terms))}
            rows = {layer: {**rows[layer], **_numbers(name, terms[layer])} for layer in rows}
        return measured(network, rows)


def _terms(subject: Subject, reference: str) -> dict[str, np.ndarray]:
    """Per layer: squared lengths of the reference, the weights and their difference, and the inner product."""
    layers, here, there = subject.model.parameters, subject.weights, subject.others[reference]
    try:
        subject.model.check(there)
    except ValueError as error:
        raise ValueError(f"movement, {reference}: {error}") from None
    apart = {name: here[name].double() - there[name].double() for name in layers}
    columns = (
        square_lengths(there, layers),
        square_lengths(here, layers),
        square_lengths(apart, layers),
        products(here, there, layers),
    )
    return {name: np.array([column[name] for column in columns]) for name in layers}


def _numbers(reference: str, terms: np.ndarray) -> Numbers:
    length, own, distance = np.sqrt(terms[:3]).tolist()
    if reference == "end":
        return {"to_end": distance, "to_end_relative": relative(distance, length)}
    cosine = relative(float(terms[3]), length * own)
    return {
        "from_start": distance,
        "from_start_relative": relative(distance, length),
        "cosine_with_start": None if cosine is None else max(-1.0, min(1.0, cosine)),
    }
