"""The tables of a report, for the page and as CSV (full precision), Markdown and LaTeX files."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from fedstart.report.record import DAGGER, OPTIMISTIC, Record
from fedstart.report.style import plain

NAMES = ("start", "first", "second", "against", "more_than")
"""Columns that hold names of starts: a start whose settings were chosen on the test tasks has a dagger there."""
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "−": "$-$",
        "–": "--",
        "²": r"\textsuperscript{2}",
        "×": r"$\times$",
        "γ": r"$\gamma$",
        DAGGER: r"\textdagger{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    }
)
_MARKDOWN = str.maketrans({letter: f"\\{letter}" for letter in "\\|*_`<>[]"})


class Gap(str):
    """Words in place of a number that does not exist; an empty field in CSV."""

    __slots__ = ()


class Column(NamedTuple):
    """A column: its key in CSV, its title, how a value is shown, and which value is best ("max", "min" or "").

    Words stand at the left of their column, numbers at the right; `words` is for words that are not shown as they are.
    """

    key: str
    title: str
    show: Callable[[Any], str] = plain
    best: str = ""
    words: bool = False

    @property
    def left(self) -> bool:
        """True for a column of words."""
        return self.words or self.show is plain


@dataclass(frozen=True)
class Table:
    """Rows of plain values under typed columns; None is a gap, a tuple is several values in one field.

    `optimistic` names the starts that get a dagger; CSV keeps their names and has a column that says it.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]
    optimistic: frozenset[str] = frozenset()

    @property
    def cells(self) -> list[list[str]]:
        """Every value as shown to a reader."""
        return [
            [self._shown(column, value) for column, value in zip(self.columns, row, strict=True)] for row in self.rows
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

    @property
    def classes(self) -> list[list[str]]:
        """How the page styles every value: best of its column, words, or a verdict."""

        def of(column: Column, value: Any, best: bool) -> str:
            if column.key == "verdict" and value is not None:
                return f"word verdict {plain(value).replace(' ', '-')}"
            return "best" if best else "word" if column.left else ""

        return [
            [of(column, value, best) for column, value, best in zip(self.columns, row, marks, strict=True)]
            for row, marks in zip(self.rows, self.marks, strict=True)
        ]

    @property
    def note(self) -> str:
        """What the dagger means; empty where no start has one."""
        return OPTIMISTIC if self.optimistic else ""

    def files(self) -> dict[str, bytes]:
        """The three files, by file name."""
        return {
            f"{self.name}.csv": self._csv().encode(),
            f"{self.name}.md": self._markdown().encode(),
            f"{self.name}.tex": self._latex().encode(),
        }

    def _shown(self, column: Column, value: Any) -> str:
        if value is None or isinstance(value, Gap):
            return "–" if value is None else str(value)
        dagger = column.key in NAMES and value in self.optimistic
        return f"{column.show(value)}{DAGGER}" if dagger else column.show(value)

    def _csv(self) -> str:
        def field(value: Any) -> Any:
            if value is None or isinstance(value, Gap):
                return ""
            return ";".join(map(str, value)) if isinstance(value, tuple) else value

        target = io.StringIO()
        writer = csv.writer(target, lineterminator="\n")
        rows = [[field(value) for value in row] for row in self.rows]
        head = [column.key for column in self.columns]
        if self.optimistic:
            places = [place for place, key in enumerate(head) if key in NAMES]
            for row in rows:
                row.append(";".join(row[place] for place in places if row[place] in self.optimistic))
            head.append("chosen_on_test_tasks")
        writer.writerows([head, *rows])
        return target.getvalue()

    def _markdown(self) -> str:
        def line(cells: list[str]) -> str:
            return "| " + " | ".join(plain(cell).translate(_MARKDOWN) for cell in cells) + " |\n"

        sides = ["---" if column.left else "---:" for column in self.columns]
        head = line([column.title for column in self.columns]) + "| " + " | ".join(sides) + " |\n"
        return head + "".join(line(cells) for cells in self.cells) + f"\n{self.caption}\n"

    def _latex(self) -> str:
        def line(cells: list[str]) -> str:
            return " & ".join(plain(cell).translate(_LATEX) for cell in cells) + r" \\" + "\n"

        sides = "".join("l" if column.left else "r" for column in self.columns)
        note = f"% {self.caption}\n% Needs \\usepackage{{booktabs}}.\n"
        head = f"\\begin{{tabular}}{{{sides}}}\n\\toprule\n{line([column.title for column in self.columns])}\\midrule\n"
        foot = "\\bottomrule\n"
        if self.optimistic:
            foot += f"\\multicolumn{{{len(sides)}}}{{l}}{{{OPTIMISTIC.translate(_LATEX)}}}\n"
        return note + head + "".join(line(cells) for cells in self.cells) + foot + "\\end{tabular}\n"


def table(
    record: Record,
    name: str,
    caption: str,
    columns: Iterable[Column],
    rows: Iterable[Mapping[str, Any]],
    optional: Collection[str] = (),
) -> Table:
    """A table of the values that `rows` have under the columns' keys.

    Columns named in `optional` are left out where no row has a value. Starts whose settings were chosen on the test
    tasks get their dagger, and the caption its note.
    """
    rows = list(rows)
    kept = tuple(
        column
        for column in columns
        if column.key not in optional or any(row.get(column.key) is not None for row in rows)
    )
    values = tuple(tuple(row.get(column.key) for column in kept) for row in rows)
    named = {value for row in values for value, column in zip(row, kept, strict=True) if column.key in NAMES}
    optimistic = record.optimistic & named
    found = Table(name, caption, kept, values, optimistic)
    return replace(found, caption=f"{caption} {found.note}".rstrip())


def only(whole: Table, caption: str | None = None, **where: Any) -> Table:
    """The rows with the given values, without those columns; under another caption if one is given."""
    keys = [column.key for column in whole.columns]
    places = [place for place, key in enumerate(keys) if key not in where]
    wanted = {keys.index(key): value for key, value in where.items()}
    rows = tuple(
        tuple(row[place] for place in places)
        for row in whole.rows
        if all(row[place] == value for place, value in wanted.items())
    )
    columns = tuple(whole.columns[place] for place in places)
    return replace(whole, columns=columns, rows=rows, caption=whole.caption if caption is None else caption)


def parts(record: Record, whole: Table) -> list[tuple[tuple[str, str], Table]]:
    """The table cut by algorithm and partition; the caption below the last part serves all of them."""
    held = [(setting, only(whole, algorithm=setting[0], partition=setting[1])) for setting in record.pairings]
    held = [(setting, part) for setting, part in held if part.rows]
    return [(setting, replace(part, caption="")) for setting, part in held[:-1]] + held[-1:]
