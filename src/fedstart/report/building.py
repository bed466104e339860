"""Builds a report: reads a directory, draws, writes figures and tables beside it, and puts all of it on one page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from fedstart.files import write_atomically
from fedstart.report import (
    accuracy,
    choosing,
    claims,
    clients,
    costs,
    diagnosis,
    holdings,
    lab,
    local_steps,
    overview,
    paper,
    tables,
    targets,
    watched,
    words,
)
from fedstart.report.page import Block, Detail, Report, Section, render
from fedstart.report.reading import read
from fedstart.report.record import DAGGER, OPTIMISTIC, Record
from fedstart.report.style import Drawing, Look, applied, inlined, looks, written

PICTURES = 6
"""At most this many federations are drawn, one of each stage and partition."""


def build(directory: Path) -> Path:
    """Writes `report.html`, `figures/` and `tables/` into a directory and returns the page's path.

    The directory is that of a study, a run, a lab or a diagnosis. Nothing but it is read; the same directory gives the
    same bytes. The page needs no network.
    Cells that failed or are missing are named on the page. Raises ValueError for a directory that is neither a
    study nor a run nor a lab's nor of a diagnosis, and for a summary or findings that cannot be read.
    """
    directory = Path(directory)
    with applied():
        record, sections, others = _found(directory)
        files = {f"figures/{name}": data for drawing in _drawings(sections) for name, data in written(drawing).items()}
    for name, data in {**files, **others}.items():
        path = record.directory / name
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, data)
    pictures = {
        drawing.name: inlined(files[f"figures/{drawing.name}.svg"].decode(), drawing.name, drawing.alternative)
        for drawing in _drawings(sections)
    }
    page = record.directory / "report.html"
    write_atomically(page, render(record, sections, pictures))
    return page


def _found(directory: Path) -> Report:
    if lab.held(directory):
        return lab.report(directory)
    return diagnosis.report(directory) if diagnosis.held(directory) else _trained(read(directory))


def _trained(record: Record) -> Report:
    sections = _study(record) if record.kind == "study" else _run(record)
    found = {f"tables/{name}": data for table in _tables(record) for name, data in table.files().items()}
    return Report(record, sections, found)


def _study(record: Record) -> list[Section]:
    coloured = looks(record.starts, record.scratch)
    found = [
        _answer(record, coloured),
        _others(record, coloured),
        claims.section(record),
        paper.section(record),
        local_steps.section(record, coloured),
        targets.section(record),
        watched.section(record, coloured),
        _fairness(record),
        _personal(record),
        _rounds(record, coloured),
        _spread(record, coloured),
        _gains(record, coloured),
        _holdings(record),
        choosing.section(record, coloured),
        costs.section(record),
        _settings(record),
    ]
    return [section for section in found if section is not None]


def _answer(record: Record, coloured: Mapping[str, Look]) -> Section:
    if not record.pairings:
        return Section("answer", "", (words.answer(record, ("", "")),), ())
    setting = record.pairings[0]
    lead = [words.answer(record, setting), words.fairness(record, setting)]
    more = len(record.pairings) - 1
    place = f"Downstream: {words.setting_name(setting)}, {words.sample(words.ranked(record, setting)[0])}."
    lead.append(f"{place} {words.plural(more, 'other setting')} below." if more else place)
    lead.append(words.caution(record))
    if record.optimistic:
        names = ", ".join(record.called(start) for start in record.selection if start in record.optimistic)
        lead.append(f"{names}: settings {OPTIMISTIC.removeprefix(f'{DAGGER} ')}")
    drawings = _present(
        overview.means(record, setting, coloured, _short(0)), overview.differences(record, setting, coloured, _short(0))
    )
    return Section("answer", "", tuple(filter(None, lead)), (Block("", drawings),))


def _others(record: Record, coloured: Mapping[str, Look]) -> Section | None:
    blocks = [
        Block(
            words.setting_name(setting),
            _present(
                overview.means(record, setting, coloured, _short(place)),
                overview.differences(record, setting, coloured, _short(place)),
            ),
            text=words.answer(record, setting),
        )
        for place, setting in enumerate(record.pairings)
        if place
    ]
    return Section("settings", "The other settings", (), tuple(blocks)) if blocks else None


def _fairness(record: Record) -> Section | None:
    found = tables.parts(record, accuracy.fairness(record))
    blocks = tuple(Block(_heading(record, setting), (), (part,)) for setting, part in found)
    return Section("fairness", "Accuracy and fairness", (), blocks) if blocks else None


def _personal(record: Record) -> Section | None:
    found = tables.parts(record, accuracy.personal(record))
    blocks = tuple(Block(_heading(record, setting), (), (part,)) for setting, part in found)
    text = "Each client trains the final global model further on its own examples and keeps the result."
    return Section("personal", "Personalised models", (text,), blocks) if blocks else None


def _rounds(record: Record, coloured: Mapping[str, Look]) -> Section | None:
    drawings: list[Drawing] = []
    for place, setting in enumerate(record.pairings):
        groups = clients.by_start(record, setting)
        name, title = f"rounds-{_short(place)}", words.setting_name(setting)
        drawings.extend(_present(overview.rounds(groups, coloured, "accuracy", "mean accuracy (%)", name, title)))
    return Section("rounds", "Accuracy over rounds", (), (Block("", tuple(drawings)),)) if drawings else None


def _spread(record: Record, coloured: Mapping[str, Look]) -> Section | None:
    blocks: list[Block] = []
    for place, setting in enumerate(record.pairings):
        groups = clients.by_start(record, setting)
        where = f", {words.setting_name(setting)}"
        if groups:
            drawings = (
                clients.cumulative(groups, coloured, where, f"clients-{_short(place)}"),
                clients.spread(groups, coloured, where, f"spread-{_short(place)}"),
            )
            blocks.append(Block(_heading(record, setting), drawings))
    return Section("clients", "Accuracy of the clients", (), tuple(blocks)) if blocks else None


def _gains(record: Record, coloured: Mapping[str, Look]) -> Section | None:
    blocks: list[Block] = []
    for place, setting in enumerate(record.pairings):
        order = [row["start"] for row in words.ranked(record, setting)]
        groups = clients.by_start(record, setting)
        against = [start for start in dict.fromkeys((record.scratch, *order[1:2])) if start not in (None, order[0])]
        drawings: list[Drawing] = []
        for other, start in enumerate(against):
            pair = (groups, setting, order[0], str(start), coloured)
            end = f"{_short(place)}-{other + 1}"
            drawings += _present(clients.gains(*pair, f"gains-{end}"), clients.scatter(*pair, f"pairs-{end}"))
        if drawings:
            blocks.append(Block(_heading(record, setting), tuple(drawings)))
    text = "The same clients of the same tasks and seeds, from the best start and from another."
    return Section("gains", "Who gains, who loses", (text,), tuple(blocks)) if blocks else None


def _holdings(record: Record) -> Section | None:
    if not record.holdings:
        return None
    drawings: list[Drawing] = []
    first = {holding.kind: holding for holding in reversed(record.holdings)}
    chosen = [holding for holding in record.holdings if first[holding.kind] is holding][:PICTURES]
    for place, holding in enumerate(chosen):
        drawings += [holdings.labels(holding, f"labels-{place + 1}"), holdings.sizes(holding, f"sizes-{place + 1}")]
    every = len(chosen) == len(record.holdings)
    text = "" if every else "One federation of each kind is drawn; the table lists more."
    table = Block("", (), (holdings.sizes_table(record),))
    return Section("partitions", "Who holds what", tuple(filter(None, (text,))), (Block("", tuple(drawings)), table))


def _settings(record: Record) -> Section:
    details: list[Detail] = []
    comparisons = accuracy.contrasts(record)
    if comparisons.rows:
        details.append(Detail(f"All {len(comparisons.rows)} comparisons", "", comparisons))
    if record.settings:
        details.append(Detail("Settings", record.settings))
    about = {json.dumps(run.about["versions"], sort_keys=True) for run in record.runs if "versions" in run.about}
    facts = {
        "versions": [json.loads(text) for text in sorted(about)],
        "fingerprints": record.summary.get("fingerprints", {}),
    }
    details.append(Detail("Versions and data fingerprints", _pretty(facts)))
    if record.timing:
        details.append(Detail("Time", _pretty({key: value for key, value in record.timing.items() if key != "cells"})))
    return Section("details", "Settings and versions", (), (Block("", (), (), details=tuple(details)),))


def _run(record: Record) -> list[Section]:
    run = record.runs[0]
    name = record.name
    coloured = looks([name], None)
    scores = accuracy.run_scores(record, run)
    if run.scores is not None:
        mean, worst = words.number(run.scores.mean), words.number(run.scores.worst(10))
        lead = f"Mean accuracy {mean} % over {words.plural(len(run.scores.clients), 'client')}; worst 10 %: {worst} %."
    else:
        lead = f"{words.plural(len(run.rounds), 'round')} of training; no client was evaluated."
    one = {name: [run]}
    curves = _present(
        overview.rounds(one, coloured, "accuracy", "mean accuracy (%)", "rounds"),
        overview.rounds(one, coloured, "loss", "training loss of the cohort", "loss"),
    )
    answer = Section("answer", "", (lead,), (Block("", curves, (scores,) if scores.rows else ()),))
    found = [answer]
    if run.scores is not None:
        drawings = (clients.cumulative(one, coloured, "", "clients"), clients.spread(one, coloured, "", "spread"))
        found.append(Section("clients", "Accuracy of the clients", (), (Block("", drawings),)))
    cost = costs.run_cost(record, run)
    if cost.rows:
        found.append(Section("costs", "Costs", (), (Block("", (), (cost,)),)))
    details = [Detail("Settings, versions and data fingerprints", record.settings)]
    if record.timing.get("seconds"):
        details.append(Detail("Time", f"{words.duration(sum(record.timing['seconds']))} for the rounds of this run"))
    return [*found, Section("details", "Settings and versions", (), (Block("", (), (), details=tuple(details)),))]


def _tables(record: Record) -> list[tables.Table]:
    if record.kind == "run":
        run = record.runs[0]
        found = [accuracy.run_scores(record, run), costs.run_cost(record, run)]
    else:
        made = (
            accuracy.fairness,
            accuracy.personal,
            accuracy.contrasts,
            claims.claims,
            paper.beside,
            targets.targets,
            watched.watched,
            choosing.candidates,
            costs.costs,
            costs.break_even,
            holdings.sizes_table,
        )
        found = [make(record) for make in made]
    return [table for table in found if table.rows]


def _drawings(sections: Iterable[Section]) -> list[Drawing]:
    return [drawing for section in sections for block in section.blocks for drawing in block.drawings]


def _present(*drawings: Drawing | None) -> tuple[Drawing, ...]:
    return tuple(drawing for drawing in drawings if drawing is not None)


def _heading(record: Record, setting: tuple[str, str]) -> str:
    return words.setting_name(setting) if len(record.pairings) > 1 else ""


def _short(place: int) -> str:
    return str(place + 1)


def _pretty(value: object) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
