"""How a start's settings are chosen where its entry says `choose`: by a study of the candidates, run first.

With the rule "validation" the candidates are judged by tasks of classes taken out of the pre-training classes, so no
example of a downstream task has a say. With the rule "paper" they are judged by the downstream tasks themselves, as
Chu et al. 2025 do (arXiv:2402.02225, C.2): what is reported was then also chosen by.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedstart.study.schema import Entry, Study, build
from fedstart.study.sharing import LeftOut
from fedstart.study.tables import Selection, Settings

FOLDER = "selection"
"""The subdirectory of a study's directory in which the candidates run."""
WORK = ("local_steps", "local_epochs")


@dataclass(frozen=True)
class Candidate:
    """One point of an entry's grid: `changes` (path = value), and the entry with them and without `choose`."""

    changes: Settings
    entry: Entry


def wanted(study: Study) -> bool:
    """Whether any start of the study has settings to choose."""
    return any(entry.choose for entry in study.starts)


def candidates(entry: Entry) -> list[Candidate]:
    """The product of the lists of `choose`, the last path changing fastest; each is named after its changes.

    What a path chooses takes the place of what the entry itself says there, and one kind of local work that of the
    other. Raises ValueError for a path that does not lead into the entry, and for a value that is there twice.
    """
    choose = entry.choose or {}
    lasts = [path.rpartition(".")[2] for path in choose]
    for path, values in choose.items():
        _check_path(path)
        twice = [value for place, value in enumerate(values) if value in values[:place]]
        if twice:
            raise ValueError(f"{path}: {twice[0]!r} is there twice")
    found: list[Candidate] = []
    for point in itertools.product(*choose.values()):
        changes = dict(zip(choose, point, strict=True))
        words = [
            f"{path if lasts.count(last) > 1 else last}={_word(value)}"
            for last, (path, value) in zip(lasts, changes.items(), strict=True)
        ]
        found.append(Candidate(changes, _changed(entry, changes, f"{entry.name} {', '.join(words)}")))
    return found


def check(study: Study, where: str) -> None:
    """Builds all that the study names, with every candidate; `where` is the file, which opens every error.

    Raises ValueError as `build` does, and for a `choose` that is not possible.
    """
    for entry in study.algorithms:
        if entry.choose:
            raise ValueError(f"{where} [[algorithms]] {entry.name} choose: only [[starts]] can have it")
    for entry in study.starts:
        try:
            candidates(entry)
        except ValueError as error:
            raise ValueError(f"{where} [[starts]] {entry.name} choose {error}") from None
    build(first(study), where)
    if wanted(study):
        build(_of_candidates(study), where)


def first(study: Study) -> Study:
    """The study with the first candidate of each entry: what is known before anything is chosen, such as its data."""
    return settled(study, {entry.name: candidates(entry)[0].changes for entry in study.starts if entry.choose})


def settled(study: Study, chosen: Mapping[str, Settings]) -> Study:
    """The study with `chosen` (name of an entry: path = value) in the place of every `choose`."""
    starts = [_changed(entry, chosen[entry.name], entry.name) if entry.choose else entry for entry in study.starts]
    return study.model_copy(update={"starts": starts})


def selecting(study: Study, classes: Sequence[int], tested: Collection[int], values: Sequence[str] = ()) -> Study:
    """The study that settles `study`: its starts are the candidates, entries without `choose` are left out.

    `classes` are the labels that `study` pre-trains on, `tested` those of its downstream tasks. With the rule
    "validation", the last `selection.classes` of those that are pre-trained on and not tested make the tasks, and
    the candidates are pre-trained on the others. Where `study` leaves out rows by a column, whose `values` these are,
    the last value that it does not leave out takes the place of these classes, and the rows that it does leave out
    are not used at all. With the rule "paper" all is as in `study`.
    Raises ValueError when there are too few classes or values.
    """
    asked = study.selection or Selection()
    if asked.rule == "paper":
        return _of_candidates(study)
    shared = {"seeds": asked.seeds or study.seeds[:1]}
    downstream: dict[str, Any] = {"tasks": asked.tasks, "personal": None}
    if (left_out := study.pretraining.left_out) is not None:
        changed = shared | {
            "pretraining": study.pretraining.model_copy(update={"left_out": _validating(left_out, values)}),
            "downstream": study.downstream.model_copy(update=downstream),
        }
        return _of_candidates(study).model_copy(update=changed)
    free = [label for label in classes if label not in set(tested)]
    most = min(len(free), len(classes) - 2)
    if asked.classes > most:
        allowed = f"2 to {most}" if most >= 2 else 'none; give rule = "paper" or settings without choose'
        raise ValueError(
            f"[selection] classes: {asked.classes} validation classes asked for, but {len(classes)} classes are "
            f"pre-trained on, {len(free)} of them in no downstream task (allowed: {allowed})"
        )
    validation = free[-asked.classes :]
    rest = [label for label in classes if label not in set(validation)]
    width = min(study.downstream.classes_per_task, len(validation))
    downstream |= {"classes": "unseen", "classes_per_task": width}
    changed = shared | {
        "pretraining": study.pretraining.model_copy(update={"held_out": validation, "classes": rest}),
        "downstream": study.downstream.model_copy(update=downstream),
    }
    return _of_candidates(study).model_copy(update=changed)


def _validating(left_out: LeftOut, values: Sequence[str]) -> LeftOut:
    given = None if left_out.values is None else {str(value) for value in left_out.values}
    unused = {str(value) for value in left_out.unused} | (given or set())
    free = [value for value in values if value not in unused]
    if given is None or len(free) < 2:
        raise ValueError(
            f"[selection] rule: 'validation' needs two values of {left_out.column!r} that are never left out, one for "
            f'the tasks; there are {0 if given is None else len(free)} (allowed: rule = "paper", or settings '
            "without choose)"
        )
    return left_out.model_copy(update={"values": free[-1:], "unused": [v for v in values if v in unused]})


def _of_candidates(study: Study) -> Study:
    starts = [candidate.entry for entry in study.starts if entry.choose for candidate in candidates(entry)]
    changed = {"name": f"{study.name}-selection", "starts": starts, "selection": None, "published": None, "claims": []}
    return study.model_copy(update=changed)


def _changed(entry: Entry, changes: Settings, name: str) -> Entry:
    values: dict[str, Any] = json.loads(entry.model_dump_json(exclude_none=True, exclude={"choose"}))
    for path, value in changes.items():
        *outer, last = path.split(".")
        table = values
        for step in outer:
            table = table.setdefault(step, {})
        for other in WORK if last in WORK else ():
            table.pop(other, None)
        table[last] = value
    return Entry(**{**values, "name": name})


def _check_path(path: str) -> None:
    allowed = [field for field in Entry.model_fields if field not in ("method", "name", "choose")]
    steps = path.split(".")
    if len(steps) < 2 or not all(steps) or steps[0] not in allowed:
        shown = " or ".join(f"{field}.KEY" for field in allowed)
        raise ValueError(f"{path!r}: not a path into the entry (allowed: {shown})")


def _word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
