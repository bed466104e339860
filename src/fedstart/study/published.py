"""The CoPreFL paper's own numbers (Chu et al. 2025, arXiv:2402.02225v4, Tables 1-51), to stand beside ours.

Accuracies in percent; variances in %² as printed, which are most likely squares of a mean standard deviation.
"""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from fedstart import names
from fedstart.study.building import partition_label
from fedstart.study.schema import Study
from fedstart.study.tables import Number, Published

FILE = "coprefl_tables.csv"
COLUMNS = (
    "dataset",
    "scenario",
    "participants",
    "pretrain_distribution",
    "downstream_distribution",
    "downstream_algorithm",
    "gamma",
)
"""Columns that `where` may name; a row of `rows` or `partitions` may name `method` as well."""
OPEN = ("scenario", "participants", "pretrain_distribution")
"""Columns that are empty where they have no meaning, as for a random start; such a row fits every value."""
NUMBERS = ("gamma", "accuracy", "variance", "low10", "low20", "low30")
DISTRIBUTIONS = (("iid", "IID"), ("dirichlet(0.5)", "Non-IID"))
"""Partitions of ours that are the paper's [paper], by their labels' beginnings."""

Row = Mapping[str, str]


@functools.cache
def rows() -> tuple[Row, ...]:
    """Every result row of the paper's tables, as text: what is not printed is empty."""
    file = resources.files("fedstart.study") / "presets" / FILE
    return tuple(csv.DictReader(file.read_text("utf-8").splitlines()))


def check(study: Study, where: str) -> None:
    """That `[published]` names what is there; `where` is the file, which opens every error.

    Raises ValueError with the nearest name for an unknown table, column, value, method, start, algorithm or
    partition, and when no row fits.
    """
    asked = study.published
    if asked is None:
        return
    try:
        _check_names(study, asked)
        _check_rows(asked)
    except ValueError as error:
        raise ValueError(f"{where} [published] {error}") from None


def find(asked: Published | None, settings: Iterable[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """The paper's row for each (start, algorithm, partition) that it has one for, as summary.json has them.

    Of several tables the first that has a row counts. Raises ValueError when a table has more than one.
    """
    found: list[dict[str, Any]] = []
    for start, algorithm, partition in settings if asked else ():
        assert asked is not None
        row = _row(asked, start, algorithm, partition)
        if row is not None:
            place = {"start": start, "algorithm": algorithm, "partition": partition}
            numbers = {name: float(row[name]) if row[name] else None for name in NUMBERS}
            found.append({**place, "method": row["method"], "table": row["table"], **numbers})
    return found


def _row(asked: Published, start: str, algorithm: str, partition: str) -> Row | None:
    conditions = [_of_start(asked, start), _of_algorithm(asked, algorithm), _of_partition(asked, partition)]
    wanted = dict(asked.where)
    for condition in conditions:
        if condition is None:
            return None
        wanted |= condition
    for table in _tables(asked):
        fitting = [row for row in rows() if _is_in(row, table) and _fits(row, wanted)]
        if len(fitting) > 1:
            differ = [name for name in COLUMNS if len({row[name] for row in fitting}) > 1]
            raise ValueError(
                f"[published] table {table} has {len(fitting)} rows for {start}, {algorithm}, {partition}; "
                f"they differ in {' and '.join(differ)}: say which in where, rows or partitions"
            )
        if fitting:
            return fitting[0]
    return None


def _of_start(asked: Published, start: str) -> dict[str, Number] | None:
    given = asked.rows.get(start)
    return {"method": given} if isinstance(given, str) else given


def _of_algorithm(asked: Published, algorithm: str) -> dict[str, Number] | None:
    if asked.algorithms is not None:
        given = asked.algorithms.get(algorithm)
        return None if given is None else {"downstream_algorithm": given}
    same = {_letters(row["downstream_algorithm"]): row["downstream_algorithm"] for row in rows()}
    return {"downstream_algorithm": same[_letters(algorithm)]} if _letters(algorithm) in same else None


def _of_partition(asked: Published, partition: str) -> dict[str, Number] | None:
    if asked.partitions is not None:
        given = asked.partitions.get(partition)
        return {"downstream_distribution": given} if isinstance(given, str) else given
    label = partition.rpartition(": ")[2]
    for ours, theirs in DISTRIBUTIONS:
        # Further settings, such as a minimum, come after the first.
        if label == ours or label.startswith((f"{ours}(", f"{ours.rstrip(')')},")):
            return {"downstream_distribution": theirs}
    return None


def _fits(row: Row, wanted: Mapping[str, Number]) -> bool:
    return all(row[name] == _text(value) or (name in OPEN and not row[name]) for name, value in wanted.items())


def _tables(asked: Published) -> Sequence[str]:
    return [asked.table] if isinstance(asked.table, str) else asked.table


def _is_in(row: Row, table: str) -> bool:
    """Whether a row is in a table; rows that are printed in two have both names, such as 3b/49."""
    return table in (row["table"], *row["table"].split("/"))


def _check_names(study: Study, asked: Published) -> None:
    tables = {name for row in rows() for name in (row["table"], *row["table"].split("/"))}
    for table in _tables(asked):
        _known("table", table, tables)
    _check_columns(asked.where, COLUMNS, "where")
    for start, given in asked.rows.items():
        _known("start", start, [entry.name for entry in study.starts])
        if not isinstance(given, str):
            _check_columns(given, ("method", *COLUMNS), f"rows {start}")
            if "method" not in given:
                raise ValueError(f"rows {start}: method is missing")
    for algorithm, given in (asked.algorithms or {}).items():
        _known("algorithm", algorithm, [entry.name for entry in study.algorithms])
        _check_columns({"downstream_algorithm": given}, COLUMNS, "algorithms")
    labels = [partition_label(values) for values in study.downstream.partitions]
    for partition, given in (asked.partitions or {}).items():
        case, _, label = partition.rpartition(": ")
        _known("partition", label if case and study.pretraining.left_out else partition, labels)
        columns = {"downstream_distribution": given} if isinstance(given, str) else given
        _check_columns(columns, COLUMNS, f"partitions {partition}")


def _check_columns(given: Mapping[str, Number], allowed: Sequence[str], where: str) -> None:
    for name, value in given.items():
        if name not in allowed:
            raise ValueError(f"{where}: {names.unknown('column', name, allowed)}")
        if name != "method":
            _known(name, _text(value), {row[name] for row in rows() if row[name]}, where)


def _check_rows(asked: Published) -> None:
    """That every start's method is in the tables, among the rows that `where` leaves."""
    shown = " or ".join(_tables(asked))
    inside = [row for row in rows() if any(_is_in(row, table) for table in _tables(asked))]
    for start, given in asked.rows.items():
        condition = {"method": given} if isinstance(given, str) else given
        rest = {name: value for name, value in {**asked.where, **condition}.items() if name != "method"}
        left = [row for row in inside if _fits(row, rest)]
        if not left:
            raise ValueError(f"rows {start}: table {shown} has no row with {rest}")
        _known(f"method of table {shown}", str(condition["method"]), {row["method"] for row in left}, f"rows {start}")


def _known(kind: str, given: str, allowed: Iterable[str], where: str = "") -> None:
    if given not in (choices := set(allowed)):
        raise ValueError(f"{where}: {names.unknown(kind, given, choices)}".removeprefix(": "))


def _text(value: Number) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())
