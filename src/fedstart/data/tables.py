"""Reading tables: Parquet, Arrow, CSV, image folders and hub datasets, all with Hugging Face `datasets`.

Local files are read with the builders behind `datasets.load_dataset`, in a temporary folder: load_dataset itself asks
the network first, and would keep a copy in its cache beside ours. Streaming is no way out: with datasets 5.2.0 and
pyarrow, a process that had streamed a Parquet file was now and then aborted at its end.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

# `datasets` takes a second to import, which sources without files need not pay.
if TYPE_CHECKING:
    from datasets import DatasetBuilder, Features

TABLES = {".parquet": "Parquet", ".arrow": "Arrow", ".csv": "CSV"}
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
SPLITS = {"train": False, "test": True, "val": True, "validation": True}
"""Names of official splits, and whether their rows are test rows."""
BATCH = 1 << 20
"""Rows that are taken from a file at a time."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A table with the place it came from (for errors), its official split, and the class names of its columns."""

    where: str
    test: bool
    table: pa.Table
    class_names: Mapping[str, Sequence[str]]


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
    import datasets

    try:
        found = datasets.load_dataset(name, data_files=dict(files) if files else None)
    # load_dataset raises whatever the network, the cache and a dataset's builder raise; there is no common class.
    except Exception as error:
        raise ValueError(
            f"hf:{name}: cannot be loaded; check the name and the network, or give local files as path:... "
            f"({_reason(error)})"
        ) from None
    if not isinstance(found, datasets.DatasetDict):
        raise ValueError(f"hf:{name}: not a dataset with splits")
    pieces = []
    for split, part in found.items():
        rows: Any = part.with_format("arrow")[:]
        where, test = f"hf:{name} {split}", _is_test(Path(str(split)))
        pieces.append(Piece(where, test, _plain(rows), _class_names(part.features)))
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
    return _stream(file, TABLES[suffix], {test: [file]})[0]


def _image_folder(root: Path, found: list[Path]) -> list[Piece]:
    """Images as tables: the folder an image lies in is its class, the first folder may be an official split."""
    parts: dict[bool, list[Path]] = {}
    for file in found:
        *folders, _ = file.relative_to(root).parts
        if not folders or folders[-1].lower() in SPLITS:
            raise ValueError(f"{file}: images must lie in one folder per class")
        parts.setdefault(SPLITS.get(folders[0].lower(), False), []).append(file)
    return _train_first(_stream(root, "image folder", parts))


def _stream(place: Path, kind: str, parts: Mapping[bool, list[Path]]) -> list[Piece]:
    """The files of the train (False) and the test part (True), each as one table in the order given."""
    from datasets.data_files import DataFilesDict, DataFilesList

    # A list of this kind is taken as it is; plain paths would be searched for as patterns.
    files = DataFilesDict(
        {
            "test" if test else "train": DataFilesList([str(file.absolute()) for file in some], [])
            for test, some in parts.items()
        }
    )
    try:
        with tempfile.TemporaryDirectory() as scratch, _silence():
            builder = _builder(kind, files, scratch)
            builder.download_and_prepare()
            names = _class_names(builder.info.features)
            return [Piece(str(place), split == "test", _table(builder, split), names) for split in files]
    # As with load_dataset, there is no common class for what a builder raises.
    except Exception as error:
        raise ValueError(f"{place}: cannot be read as {kind} ({_reason(error)})") from None


def _builder(kind: str, files: Any, scratch: str) -> DatasetBuilder:
    if kind == "Parquet":
        from datasets.packaged_modules.parquet.parquet import Parquet

        # Left to itself, the library takes as many rows as the first row group has, which may be none.
        return Parquet(cache_dir=scratch, data_files=files, batch_size=BATCH)
    if kind == "Arrow":
        from datasets.packaged_modules.arrow.arrow import Arrow

        return Arrow(cache_dir=scratch, data_files=files)
    if kind == "CSV":
        from datasets.packaged_modules.csv.csv import Csv

        # In one go, as every chunk would get types of its own; and a first column without a name is no index.
        return Csv(cache_dir=scratch, data_files=files, chunksize=None, index_col=False)
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    # One class is a class too, and a metadata file does not change what the folders say.
    return ImageFolder(cache_dir=scratch, data_files=files, drop_labels=False, drop_metadata=True)


@contextmanager
def _silence() -> Iterator[None]:
    """No log of errors that are raised anyway; a CSV file that the library would misread with a warning is an error."""
    # The builder of `datasets` for CSV reads with pandas, so both are there.
    from datasets import disable_progress_bars, enable_progress_bars, is_progress_bar_enabled, logging
    from pandas.errors import DtypeWarning, ParserWarning

    level, bars = logging.get_verbosity(), is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DtypeWarning)
            warnings.simplefilter("error", ParserWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            enable_progress_bars()


def _table(builder: DatasetBuilder, split: str) -> pa.Table:
    # The library makes no split of no rows.
    splits = builder.info.splits or {}
    if split not in splits or not splits[split].num_examples:
        features = builder.info.features
        return features.arrow_schema.empty_table() if features else pa.table({})
    rows: Any = builder.as_dataset(split, in_memory=True)
    return _plain(rows.with_format("arrow")[:])


def _plain(table: pa.Table) -> pa.Table:
    """The library's own Arrow types (Array2D and others) as the lists that they are stored as."""
    for index, field in enumerate(table.schema):
        if isinstance(field.type, pa.BaseExtensionType):
            chunks: list[Any] = table.column(index).chunks
            stored = pa.chunked_array([chunk.storage for chunk in chunks], type=field.type.storage_type)
            table = table.set_column(index, field.name, stored)
    return table


def _class_names(features: Features | None) -> dict[str, list[str]]:
    from datasets import ClassLabel

    return {name: kind.names for name, kind in (features or {}).items() if isinstance(kind, ClassLabel)}


def _reason(error: BaseException) -> str:
    # A builder says what went wrong in the cause of what it raises.
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _is_test(relative: Path) -> bool:
    folders = [part.lower() for part in relative.parts[:-1]]
    return bool(re.match(r"test|val", relative.stem.lower())) or any(SPLITS.get(folder, False) for folder in folders)


def _hidden(relative: Path) -> bool:
    # `datasets` leaves cache-*.arrow files of derived tables beside a saved dataset.
    return any(part.startswith((".", "__")) for part in relative.parts) or relative.name.startswith("cache-")


def _train_first(pieces: list[Piece]) -> list[Piece]:
    return sorted(pieces, key=lambda piece: piece.test)
