"""Reading tables: Parquet, Arrow, CSV, image folders and Hugging Face datasets, as Arrow tables with their origin."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

TABLES = {".parquet": "Parquet", ".arrow": "Arrow", ".csv": "CSV"}
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
SPLITS = {"train": False, "test": True, "val": True, "validation": True}
"""Names of official splits, and whether their rows are test rows."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A table with the place it came from (for errors) and the official split it belongs to."""

    where: str
    test: bool
    table: pa.Table

    @property
    def features(self) -> dict[str, dict[str, Any]]:
        """Hugging Face's description of the columns, as far as the table carries one."""
        text = (self.table.schema.metadata or {}).get(b"huggingface", b"{}")
        return json.loads(text).get("info", {}).get("features", {})


def read_path(path: Path, files: Mapping[str, str] | None) -> list[Piece]:
    """The tables of a file or folder, in the order of their names, train pieces first.

    `files` maps a split (train, test, val or validation) to a file name or pattern inside the folder.
    Raises ValueError if nothing readable is there.
    """
    path = path.expanduser()
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if path.is_file():
        if files:
            raise ValueError(f"{path}: `files` names files of a folder, but this is a file")
        return [_read_file(path, test=False)]
    if files:
        return _read_named(path, files)
    present = [file for file in sorted(path.rglob("*")) if file.is_file() and not _hidden(file.relative_to(path))]
    suffixes = sorted({file.suffix.lower() for file in present} & set(TABLES))
    if len(suffixes) > 1:
        kinds = " and ".join(TABLES[suffix] for suffix in suffixes)
        raise ValueError(f"{path}: holds both {kinds} files; give one file, or name them with `files`")
    if suffixes:
        found = [file for file in present if file.suffix.lower() == suffixes[0]]
        return _train_first([_read_file(file, test=_is_test(file.relative_to(path))) for file in found])
    found = [file for file in present if file.suffix.lower() in IMAGES]
    if not found:
        raise ValueError(f"{path}: no Parquet, Arrow, CSV or image files in this folder")
    return _image_folder(path, found)


def read_hub(name: str, files: Mapping[str, str] | None) -> list[Piece]:
    """The splits of a dataset on the Hugging Face hub (or in its cache), read with `datasets.load_dataset`.

    Raises ValueError in one line if it cannot be had, for instance without a network.
    """
    import datasets  # takes a second, and local files do without

    try:
        found = datasets.load_dataset(name, data_files=dict(files) if files else None)
    # load_dataset raises whatever the network, the cache and a dataset's builder raise; there is no common class.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"hf:{name}: cannot be loaded; check the name and the network, or give local files as path:... ({reason})"
        ) from None
    if not isinstance(found, datasets.DatasetDict):
        raise ValueError(f"hf:{name}: not a dataset with splits")
    pieces = []
    for split, part in found.items():
        rows: Any = part.with_format("arrow")[:]
        table = rows.replace_schema_metadata(part.features.arrow_schema.metadata)
        pieces.append(Piece(f"hf:{name} {split}", _is_test(Path(str(split))), table))
    return _train_first(pieces)


def _read_named(folder: Path, files: Mapping[str, str]) -> list[Piece]:
    pieces = []
    for split, pattern in files.items():
        if split not in SPLITS:
            raise ValueError(f"{folder}: unknown split {split!r} in `files` (allowed: {', '.join(SPLITS)})")
        if Path(pattern).is_absolute():
            raise ValueError(f"{folder}: {pattern!r} ({split}) must be relative to this folder")
        found = sorted(file for file in folder.glob(pattern) if file.is_file())
        if not found:
            raise ValueError(f"{folder}: no file matches {pattern!r} ({split})")
        pieces += [_read_file(file, test=SPLITS[split]) for file in found]
    return _train_first(pieces)


def _read_file(file: Path, *, test: bool) -> Piece:
    suffix = file.suffix.lower()
    if suffix not in TABLES:
        raise ValueError(f"{file}: not a table (allowed: {', '.join(TABLES)})")
    try:
        if suffix == ".parquet":
            table = pyarrow.parquet.read_table(file)
        elif suffix == ".csv":
            table = pyarrow.csv.read_csv(file)
        else:
            table = _read_arrow(file)
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{file}: cannot be read as {TABLES[suffix]} ({reason})") from None
    return Piece(str(file), test, table)


def _read_arrow(file: Path) -> pa.Table:
    """Arrow has a file and a stream format; `datasets` writes the stream format."""
    with pa.memory_map(str(file)) as source:
        if source.read(6) == b"ARROW1":
            return pa.ipc.open_file(source).read_all()
        source.seek(0)
        return pa.ipc.open_stream(source).read_all()


def _image_folder(root: Path, found: list[Path]) -> list[Piece]:
    """Images as a table: the folder an image lies in is its class, the first folder may be an official split."""
    rows: dict[bool, tuple[list[dict[str, Any]], list[str]]] = {False: ([], []), True: ([], [])}
    for file in found:
        *folders, _ = file.relative_to(root).parts
        test = bool(folders) and SPLITS.get(folders[0].lower(), False)
        if not folders or folders[-1].lower() in SPLITS:
            raise ValueError(f"{file}: images must lie in one folder per class")
        images, labels = rows[test]
        images.append({"bytes": file.read_bytes(), "path": str(file.relative_to(root))})
        labels.append(folders[-1])
    kind = pa.struct({"bytes": pa.large_binary(), "path": pa.string()})
    return [
        Piece(str(root), test, pa.table({"image": pa.array(images, type=kind), "label": labels}))
        for test, (images, labels) in rows.items()
        if images
    ]


def _is_test(relative: Path) -> bool:
    folders = [part.lower() for part in relative.parts[:-1]]
    return bool(re.match(r"test|val", relative.stem.lower())) or any(SPLITS.get(folder, False) for folder in folders)


def _hidden(relative: Path) -> bool:
    # `datasets` leaves cache-*.arrow files of derived tables beside a saved dataset.
    return any(part.startswith((".", "__")) for part in relative.parts) or relative.name.startswith("cache-")


def _train_first(pieces: list[Piece]) -> list[Piece]:
    return sorted(pieces, key=lambda piece: piece.test)
