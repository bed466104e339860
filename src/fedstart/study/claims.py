"""What the paper claims, and whether our runs bear it out: paired over (task, seed), with a 95 % interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedstart import names
from fedstart.study.building import partition_label
from fedstart.study.schema import Study
from fedstart.study.tables import Claim

if TYPE_CHECKING:
    from fedstart.scores import Cell, Scores

PUBLISHED = {"mean": "accuracy", "variance": "variance", "worst10": "low10", "worst20": "low20", "worst30": "low30"}
"""What the published tables call each score."""

Setting = tuple[str, str]
Values = Mapping[tuple[int, int], "Scores"]


def check(study: Study, where: str) -> None:
    """That every claim names starts, an algorithm and a partition of the study; `where` opens every error.

    Raises ValueError with the nearest name.
    """
    starts = [entry.name for entry in study.starts]
    algorithms = [entry.name for entry in study.algorithms]
    labels = [partition_label(values) for values in study.downstream.partitions]
    for number, claim in enumerate(study.claims, 1):
        place = f"{where} [[claims]] number {number}"
        partition = claim.partition
        if partition is not None and study.pretraining.left_out is not None:
            partition = partition.rpartition(": ")[2]
        compared = ("start", starts) if claim.start is None else ("algorithm", algorithms)
        for kind, given, allowed in (
            (compared[0], claim.first, compared[1]),
            (compared[0], claim.second, compared[1]),
            ("start", claim.start, starts),
            ("start", claim.more_than, starts),
            ("algorithm", claim.algorithm, algorithms),
            ("partition", partition, labels),
        ):
            if given is not None and given not in allowed:
                raise ValueError(f"{place}: {names.unknown(kind, given, allowed)}")
        if claim.first == claim.second:
            raise ValueError(f"{place}: first and second are both {claim.first!r}")
        if claim.start is not None and claim.algorithm is not None:
            raise ValueError(f"{place} algorithm: not allowed with start, where first and second are algorithms")
        if claim.more_than is not None and claim.start in (None, claim.more_than):
            raise ValueError(f"{place} more_than: needs start, and another one than {claim.more_than!r}")


def verdicts(
    claims: Sequence[Claim], cells: Iterable[Cell], published: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The `claims` of summary.json: one for each claim and each setting in which both of its sides ran.

    A setting is an (algorithm, partition) for two starts, a partition for two algorithms. `published` are the rows of
    `published.find`. A difference is first minus second, over the (task, seed) pairs that both have; with `more_than`,
    less the same difference from that start. "reproduced" needs the whole 95 % interval and the mean of every seed on
    the claim's side of 0, "not reproduced" both on the other; all else is "undecided". One pair alone has no interval
    and decides nothing.
    """
    grouped: dict[tuple[str, str, str], dict[tuple[int, int], Scores]] = {}
    for cell in cells:
        grouped.setdefault((cell.start, cell.algorithm, cell.partition), {})[cell.task, cell.seed] = cell.scores
    settings = list(dict.fromkeys((algorithm, partition) for _, algorithm, partition in grouped))
    paper = {(row["start"], row["algorithm"], row["partition"]): row for row in published}
    found: list[dict[str, Any]] = []
    for claim in claims:
        for algorithm, partition in settings:
            # Two algorithms are compared once for each partition: where the first of them stands.
            wanted = (claim.algorithm or algorithm) if claim.start is None else claim.first
            if (algorithm, partition) != (wanted, claim.partition or partition):
                continue
            places = _places(claim, algorithm, partition)
            sides = [grouped.get(place, {}) for place in places]
            pairs = sorted(set.intersection(*map(set, sides)), key=lambda pair: (pair[1], pair[0]))
            if pairs:
                rows = [paper.get(place) for place in places[:2]] if claim.more_than is None else [None, None]
                found.append(_verdict(claim, (algorithm, partition), sides, pairs, _difference(claim, rows)))
    return found


def _places(claim: Claim, algorithm: str, partition: str) -> list[tuple[str, str, str]]:
    """Start, algorithm and partition of what a claim compares: first, second, and both from `more_than`."""
    if claim.start is None:
        return [(start, algorithm, partition) for start in (claim.first, claim.second)]
    starts = [claim.start] if claim.more_than is None else [claim.start, claim.more_than]
    return [(start, name, partition) for start in starts for name in (claim.first, claim.second)]


def _verdict(
    claim: Claim,
    setting: Setting,
    sides: Sequence[Values],
    pairs: Sequence[tuple[int, int]],
    published: float | None,
) -> dict[str, Any]:
    from fedstart.scores import paired, significant

    first, second, *other = ([_score(claim.score, values[pair]) for pair in pairs] for values in sides)
    left = [one - both for one, both in zip(first, other[0], strict=True)] if other else first
    right = [one - both for one, both in zip(second, other[1], strict=True)] if other else second
    contrast = paired(left, right)
    by_seed: dict[int, list[float]] = {}
    for (_, seed), one, other in zip(pairs, left, right, strict=True):
        by_seed.setdefault(seed, []).append(one - other)
    means = [sum(differences) / len(differences) for differences in by_seed.values()]
    side = -1 if claim.score == "variance" else 1
    return {
        "text": claim.text,
        "source": claim.source,
        "score": claim.score,
        "first": claim.first,
        "second": claim.second,
        "start": claim.start,
        "more_than": claim.more_than,
        "algorithm": setting[0],
        "partition": setting[1],
        "published": significant(published),
        "difference": significant(contrast.difference),
        "low": significant(contrast.low),
        "high": significant(contrast.high),
        "n": len(pairs),
        "seeds": len(by_seed),
        "by_seed": [significant(mean) for mean in means],
        "verdict": _word(side, contrast.low, contrast.high, means),
    }


def _word(side: int, low: float | None, high: float | None, means: Sequence[float]) -> str:
    for wanted, verdict in ((side, "reproduced"), (-side, "not reproduced")):
        if low is not None and high is not None and all(wanted * value > 0 for value in (low, high, *means)):
            return verdict
    return "undecided"


def _score(name: str, scores: Scores) -> float:
    return scores.worst(int(name.removeprefix("worst"))) if name.startswith("worst") else getattr(scores, name)


def _difference(claim: Claim, rows: Sequence[Mapping[str, Any] | None]) -> float | None:
    values = [None if row is None else row[PUBLISHED[claim.score]] for row in rows]
    return None if values[0] is None or values[1] is None else values[0] - values[1]
