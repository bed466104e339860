"""What a command says: tables and sentences on stdout, or one JSON document there; progress on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

PIPE_WIDTH = 160


@dataclass(frozen=True)
class Screen:
    """Where a command's words go. With `json`, stdout carries one JSON document and nothing else."""

    json: bool = False
    quiet: bool = False

    def show(self, *things: RenderableType) -> None:
        """Prints for a person to read; silent with `json` or `quiet`."""
        if self.json or self.quiet:
            return
        # A pipe or a file has no width of its own; no table of ours is wider than this.
        width = None if sys.stdout.isatty() else PIPE_WIDTH
        console = Console(file=sys.stdout, highlight=False, soft_wrap=True, width=width)
        for thing in things:
            console.print(thing, markup=False)

    def answer(self, value: Any) -> None:
        """Prints the machine-readable result, if that was asked for."""
        if self.json:
            sys.stdout.write(json.dumps(plain(value), indent=2, allow_nan=False) + "\n")

    def progress(self) -> Rounds:
        """A bar with the time left, to be used in a `with`."""
        console = Console(file=sys.stderr)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        silent = self.quiet or not console.is_terminal
        return Rounds(Progress(*columns, console=console, transient=True, disable=silent))


class Rounds:
    """A bar that counts rounds, drawn on stderr where that is a terminal; it leaves no trace."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("preparing", total=None)

    def __enter__(self) -> Rounds:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def total(self, n: int) -> None:
        """There are `n` rounds in all."""
        self._bar.update(self._task, total=n)

    def advance(self, text: str) -> None:
        """One more round is finished; `text` says which run it belongs to."""
        self._bar.update(self._task, advance=1, description=text)


def plain(value: Any) -> Any:
    """`value` in the types that JSON knows: NaN and infinity become null, paths and numpy numbers their values."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return fspath(value) if isinstance(value, PathLike) else value


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[object]], numbers: int = 0) -> Table:
    """A table whose last `numbers` columns are set flush right."""
    result = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for column, head in enumerate(heads):
        result.add_column(head, justify="right" if column >= len(heads) - numbers else "left", no_wrap=True)
    for row in rows:
        result.add_row(*(cell(item) for item in row))
    return result


def cell(value: object) -> str:
    """A value as a table shows it: `none` for None, a dash for NaN, two decimals for a float."""
    if isinstance(value, float):
        return f"{value:.2f}" if math.isfinite(value) else "-"
    return "none" if value is None else str(value)
