"""Reading the scores that the finished cells of a study left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pyarrow import parquet

from fedstart import scores
from fedstart.files import read_json
from fedstart.runs import RunDirectory
from fedstart.types import Counts


def read(folder: Path) -> list[scores.Cell]:
    """The finished downstream cells in `folder`, a directory of run directories, in the order of their names."""
    found: list[scores.Cell] = []
    for file in sorted(folder.glob("*/cell.json")):
        place = read_json(file)
        if place["kind"] == "downstream" and RunDirectory(file.parent).status == "done":
            where = (place["start"], place["algorithm"], place["partition"], place["task"], place["seed"])
            found.append(scores.Cell(*where, *evaluated(file.parent)))
    return found


def evaluated(directory: Path) -> tuple[scores.Scores, scores.Scores | None]:
    """Scores of a run's final weights on every client, and of the clients' own models if they have any."""
    table = parquet.read_table(directory / "clients.parquet")
    correct, total, loss = (np.asarray(table[name]) for name in ("correct", "total", "loss"))
    found = scores.Scores(Counts(correct, total, loss))
    if "personal_correct" not in table.column_names:
        return found, None
    correct, loss = (np.asarray(table[name]) for name in ("personal_correct", "personal_loss"))
    return found, scores.Scores(Counts(correct, total, loss))
