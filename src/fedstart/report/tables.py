"""The tables of a report, for the page and as CSV (full precision), Markdown and LaTeX files."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fedstart.report.record import Record, Run
from fedstart.report.style import plain
from fedstart.report.words import number, probability, signed, size

_COUNTS = ("examples", "exchanges", "bytes_down", "bytes_up")
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "−": "$-$",
        "–": "--",
        "²": r"\textsuperscript{2}",
        "×": r"$\times$",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    }
)
_MARKDOWN = str.maketrans({letter: f"\\{letter}" for letter in "\\|*_`<>[]"})


class Column(NamedTuple):
    """A column: its key in CSV, its title, how a value is shown, and which value is best ("max", "min" or "")."""

    key: str
    title: str
    show: Callable[[Any], str] = plain
    best: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of plain values under typed columns; None is a gap."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]

    @property
    def cells(self) -> list[list[str]]:
        """Every value as shown to a reader."""
        return [
            ["–" if value is None else column.show(value) for column, value in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]

    @property
    def marks(self) -> list[list[bool]]:
        """Which values are the best of their column, where a column has a best; none for a single row."""
        best: list[str | None] = []
        for place, column in enumerate(self.columns):
            values = [row[place] for row in self.rows if row[place] is not None]
            wanted = {"max": max, "min": min}.get(column.best)
            best.append(column.show(wanted(values)) if wanted and len(values) > 1 else None)
        return [[text == most for text, most in zip(row, best, strict=True)] for row in self.cells]

    def files(self) -> dict[str, bytes]:
        """The three files, by file name."""
        return {
            f"{self.name}.csv": self._csv().encode(),
            f"{self.name}.md": self._markdown().encode(),
            f"{self.name}.tex": self._latex().encode(),
        }

    def _csv(self) -> str:
        target = io.StringIO()
        writer = csv.writer(target, lineterminator="\n")
        writer.writerow([column.key for column in self.columns])
        writer.writerows([["" if value is None else value for value in row] for row in self.rows])
        return target.getvalue()

    def _markdown(self) -> str:
        def line(cells: list[str]) -> str:
            return "| " + " | ".join(plain(cell).translate(_MARKDOWN) for cell in cells) + " |\n"

        sides = ["---" if column.show is plain else "---:" for column in self.columns]
        head = line([column.title for column in self.columns]) + "| " + " | ".join(sides) + " |\n"
        return head + "".join(line(cells) for cells in self.cells) + f"\n{self.caption}\n"

    def _latex(self) -> str:
        def line(cells: list[str]) -> str:
            return " & ".join(plain(cell).translate(_LATEX) for cell in cells) + r" \\" + "\n"

        sides = "".join("l" if column.show is plain else "r" for column in self.columns)
        note = f"% {self.caption}\n% Needs \\usepackage{{booktabs}}.\n"
        head = f"\\begin{{tabular}}{{{sides}}}\n\\toprule\n{line([column.title for column in self.columns])}\\midrule\n"
        return note + head + "".join(line(cells) for cells in self.cells) + "\\bottomrule\n\\end{tabular}\n"


def fairness(record: Record) -> Table:
    """Accuracy and fairness of every start in every setting."""
    columns = (
        Column("start", "start"),
        Column("algorithm", "algorithm"),
        Column("partition", "partition"),
        Column("n", "n", _count),
        Column("mean", "mean", number, "max"),
        Column("low", "95 % from", number),
        Column("high", "to", number),
        Column("worst10", "worst 10 %", number, "max"),
        Column("worst20", "worst 20 %", number, "max"),
        Column("worst30", "worst 30 %", number, "max"),
        Column("variance", "variance", number, "min"),
        Column("variance_squared_mean_deviation", "(mean std)²", number, "min"),
    )
    caption = (
        "Accuracy in percent, every client with the same weight; mean over the n runs with its 95 % t-interval. "
        "Worst k % = mean accuracy of the ceil(k n / 100) clients with the lowest accuracy. "
        "Variance in %²: mean over the runs of the variance between clients; (mean std)² = square of the mean "
        "standard deviation, which is what published tables most likely hold. Best values are bold."
    )
    return _of("summary", caption, columns, record.rows)


def setting_table(table: Table, setting: tuple[str, str]) -> Table:
    """The rows of one algorithm and partition, without those two columns."""
    keys = [column.key for column in table.columns]
    places = [place for place, key in enumerate(keys) if key not in ("algorithm", "partition")]
    at = keys.index("algorithm"), keys.index("partition")
    rows = tuple(tuple(row[place] for place in places) for row in table.rows if (row[at[0]], row[at[1]]) == setting)
    return Table(table.name, table.caption, tuple(table.columns[place] for place in places), rows)


def contrasts(record: Record) -> Table:
    """All paired comparisons."""
    columns = (
        Column("first", "first"),
        Column("second", "second"),
        Column("algorithm", "algorithm"),
        Column("partition", "partition"),
        Column("n", "pairs", _count),
        Column("difference", "difference", signed),
        Column("low", "95 % from", signed),
        Column("high", "to", signed),
        Column("p", "p", _p),
        Column("p_holm", "p (Holm)", _p),
    )
    caption = (
        "First minus second in points of mean accuracy, paired over (task, seed), with the 95 % t-interval; "
        "p of the paired t-test, and after Holm's correction over all pairs of one algorithm and partition."
    )
    return _of("contrasts", caption, columns, record.summary.get("contrasts", ()))


def costs(record: Record) -> Table:
    """What every start took, before and after."""
    columns = (
        Column("start", "start"),
        Column("stage", "stage"),
        Column("examples", "client examples", _count),
        Column("exchanges", "exchanges", _count),
        Column("bytes_down", "sent to clients", size),
        Column("bytes_up", "sent to server", size),
    )
    caption = (
        "Work and traffic: mean of a pre-training run, and of a downstream run. "
        "Client examples = examples that went through a model on a client; "
        "an exchange = once out to the cohort and back; bytes as tensors on the wire."
    )
    rows = [
        {"start": start, "stage": stage.replace("pretraining", "pre-training"), **cost}
        for start, stages in record.summary.get("cost", {}).items()
        for stage, cost in stages.items()
        if isinstance(cost, Mapping)
    ]
    return _of("costs", caption, columns, rows)


def run_cost(run: Run) -> Table:
    """What one run took."""
    columns = (
        Column("rounds", "rounds", _count),
        Column("examples", "client examples", _count),
        Column("exchanges", "exchanges", _count),
        Column("bytes_down", "sent to clients", size),
        Column("bytes_up", "sent to server", size),
    )
    total = {key: sum(line.get("cost", {}).get(key, 0) for line in run.rounds) for key in _COUNTS}
    caption = "Work and traffic of all rounds together."
    return _of("costs", caption, columns, [{"rounds": len(run.rounds), **total}] if run.rounds else [])


def run_scores(run: Run) -> Table:
    """Accuracy and fairness of one run."""
    columns = (
        Column("clients", "clients", _count),
        Column("mean", "mean", number),
        Column("sample_mean", "over examples", number),
        Column("variance", "variance", number),
        *(Column(f"worst{k}", f"worst {k} %", number) for k in (10, 20, 30)),
        Column("loss", "test loss", _three),
        Column("excluded", "without test examples", _count),
    )
    caption = (
        "Final weights on the clients' test examples: accuracy in percent, mean over clients, over all examples "
        "together, variance between clients (%²), and mean of the worst clients."
    )
    rows: list[dict[str, Any]] = []
    if run.scores is not None:
        found = run.scores
        keys = ("mean", "sample_mean", "variance", "loss", "excluded")
        worst = {f"worst{k}": found.worst(k) for k in (10, 20, 30)}
        rows = [{"clients": len(found.clients), **{key: getattr(found, key) for key in keys}, **worst}]
    return _of("summary", caption, columns, rows)


def holdings(record: Record) -> Table:
    """Sizes and heterogeneity of every federation."""
    columns = (
        Column("federation", "federation"),
        Column("clients", "clients", _count),
        Column("classes", "classes", _count),
        Column("examples", "examples", _count),
        Column("smallest", "smallest client", _count),
        Column("median", "median", _count),
        Column("largest", "largest", _count),
        Column("heterogeneity", "heterogeneity", _three),
    )
    caption = (
        "Training examples. Heterogeneity = total variation distance between a client's labels and the pooled labels, "
        "mean over clients weighted by their examples: 0 = all alike, towards 1 = no overlap."
    )
    rows = []
    for holding in record.holdings:
        held = holding.counts.sum(axis=1)
        row = (holding.name, *holding.counts.shape, held.sum(), held.min(), np.median(held), held.max())
        rows.append((row[0], *(int(value) for value in row[1:]), float(f"{holding.heterogeneity:.10g}")))
    return Table("partitions", caption, columns, tuple(rows))


def _of(name: str, caption: str, columns: tuple[Column, ...], rows: Any) -> Table:
    return Table(name, caption, columns, tuple(tuple(row.get(column.key) for column in columns) for row in rows))


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _three(value: float) -> str:
    return number(value, 3)


def _p(value: float) -> str:
    return probability(value).removeprefix("p ").removeprefix("= ")
