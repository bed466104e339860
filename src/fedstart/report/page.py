"""The page: sections of figures, tables and details, put into one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jinja2
from markupsafe import Markup

from fedstart.report.record import Record
from fedstart.report.style import Drawing, plain
from fedstart.report.tables import Table


@dataclass(frozen=True)
class Detail:
    """A part that opens on a click: text as it is, or a table."""

    title: str
    text: str
    table: Table | None = None


@dataclass(frozen=True, eq=False)
class Block:
    """Figures side by side, then tables, under one heading."""

    heading: str
    drawings: tuple[Drawing, ...] = ()
    tables: tuple[Table, ...] = ()
    text: str = ""
    details: tuple[Detail, ...] = ()


@dataclass(frozen=True, eq=False)
class Section:
    """A section of the page; the one without a title opens it, and its first line of text is the answer."""

    id: str
    title: str
    text: tuple[str, ...]
    blocks: tuple[Block, ...]


def render(record: Record, sections: list[Section], pictures: Mapping[str, str]) -> str:
    """The page as text. `pictures` holds the inline SVG of every figure, by name; everything else is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fedstart.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        record=record,
        name=plain(record.name),
        command=f"fedstart report {plain(record.directory.resolve().name)}",
        sections=sections,
        # Our own SVG, in which matplotlib has escaped every text.
        pictures={name: Markup(svg) for name, svg in pictures.items()},
    )
