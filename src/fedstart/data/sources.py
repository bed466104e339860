"""Sources: from a name such as `digits`, `hf:NAME` or `path:FOLDER` to Examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from fedstart import names
from fedstart.data import cache as pixel_cache
from fedstart.data.federation import Examples, check_labels
from fedstart.data.kinds import KINDS, Synthetic
from fedstart.data.synthetic import synthetic
from fedstart.data.tables import Piece, read_hub, read_path


def load(
    spec: str,
    *,
    input: str | None = None,
    label: str | None = None,
    columns: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
    cache: Path | None = None,
) -> Examples:
    """The examples of a source (see `fedstart.data.kinds`; a bare path is understood too).

    `input` and `label` name columns; without them the one image column, and the column `label` or the one column
    with class names, are taken; a table without images gives its other numeric columns as float32 features.
    `columns` are kept beside, for partitions (writer, domain); `split` (0 = train, 1 = test) is added if the source
    has official splits: files named train*, test*, val*, or `files` as `{"train": pattern, "test": pattern}`.
    Images become uint8, RGB unless all are grey, and are kept decoded in the folder `cache` ($FEDSTART_CACHE or
    ~/.cache/fedstart). Mean and standard deviation come from the train rows (all rows without official splits).
    Raises ValueError, in one line with file and column, for whatever is missing, damaged, ambiguous or out of range.
    """
    kind, _, rest = spec.partition(":")
    if kind in ("digits", "synthetic"):
        return _built_in(kind, rest, input, label, columns, files)
    if kind == "hf" and rest:
        return _assemble(rest, read_hub(rest, files), input, label, columns, cache)
    path = Path(rest if kind == "path" and rest else spec).expanduser()
    if kind != "path" and not path.exists():
        raise names.unknown("data", spec, KINDS)
    name = path.resolve().name if path.is_dir() else path.stem
    return _assemble(name, read_path(path, files), input, label, columns, cache)


def _built_in(
    kind: str,
    settings: str,
    input: str | None,
    label: str | None,
    columns: Sequence[str],
    files: Mapping[str, str] | None,
) -> Examples:
    given = {"input": input, "label": label, "files": files}
    for name, value in given.items():
        if value:
            raise ValueError(f"{kind}: has no setting {name!r}; it is for files and hub datasets")
    if kind == "digits":
        # scikit-learn takes a second to import, which other data need not pay.
        from fedstart.data.digits import digits

        if settings:
            raise ValueError(f"digits: takes no settings (given: {settings})")
        examples = digits()
    else:
        pairs = [setting.partition("=") for setting in settings.split(",") if setting]
        built = names.build(Synthetic, {key.strip(): value.strip() for key, _, value in pairs}, kind)
        examples = synthetic(built)
    for column in columns:
        if column not in examples.columns:
            raise ValueError(f"{kind}: no column {column!r} (columns: {', '.join(examples.columns) or 'none'})")
    return examples


def _assemble(
    name: str, pieces: list[Piece], input: str | None, label: str | None, columns: Sequence[str], cache: Path | None
) -> Examples:
    pieces = [piece for piece in pieces if piece.table.num_rows]
    if not pieces:
        raise ValueError(f"{name}: no rows")
    label = label or _detect_label(pieces[0])
    input = input or _detect_image(pieces[0])
    labels, class_names = _labels(pieces, label)
    test = np.repeat([piece.test for piece in pieces], [piece.table.num_rows for piece in pieces])
    kept = {column: _entries(pieces, column) for column in columns}
    if test.any() and not test.all():
        kept["split"] = test.astype(np.int64)
    train = ~test if not test.all() else test
    if input is not None and _is_image(_column(pieces[0], input).type):
        encoded = _encoded(pieces, input)
        digest = encoded.digest()
        images, mean, std = pixel_cache.pixels(encoded, digest, train, cache or pixel_cache.default_folder())
        inputs = torch.from_numpy(images)
    else:
        features = _features(pieces, input, (label, *columns))
        digest, mean, std, inputs = pixel_cache.array_digest(features), (), (), torch.from_numpy(features)
    return Examples(
        name=name,
        inputs=inputs,
        labels=labels,
        class_names=class_names,
        fingerprint=pixel_cache.content_fingerprint(digest, labels, class_names),
        mean=mean,
        std=std,
        columns=kept,
    )


def _is_image(kind: pa.DataType) -> bool:
    """Encoded images: binary, or Hugging Face's struct of bytes and path."""
    if pa.types.is_struct(kind):
        return "bytes" in {field.name for field in kind}
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _detect_image(piece: Piece) -> str | None:
    found = [field.name for field in piece.table.schema if _is_image(field.type)]
    if len(found) > 1:
        raise ValueError(f"{piece.where}: several image columns ({', '.join(found)}); choose one as `input`")
    return found[0] if found else None


def _detect_label(piece: Piece) -> str:
    described = list(piece.class_names)
    if "label" in piece.table.column_names:
        return "label"
    if len(described) == 1:
        return described[0]
    if described:
        raise ValueError(f"{piece.where}: several label columns ({', '.join(described)}); choose one as `label`")
    raise ValueError(
        f"{piece.where}: no column says that it is the label; give `label` "
        f"(columns: {', '.join(piece.table.column_names)})"
    )


def _column(piece: Piece, column: str) -> pa.ChunkedArray:
    if column not in piece.table.column_names:
        raise ValueError(f"{piece.where}: {names.unknown('column', column, piece.table.column_names)}")
    entries = piece.table[column]
    if entries.null_count:
        raise ValueError(f"{piece.where}: column {column!r} has {entries.null_count} empty entries")
    return entries


def _entries(pieces: list[Piece], column: str) -> np.ndarray:
    """A whole column, shape (N,); classes by name."""
    if column == "split":
        raise ValueError(f"{pieces[0].where}: `split` is the name of the official splits and cannot be a column")
    parts = []
    for piece in pieces:
        values = _column(piece, column)
        if not (pa.types.is_integer(values.type) or pa.types.is_boolean(values.type) or _is_text(values.type)):
            raise ValueError(f"{piece.where}: column {column!r} holds {values.type}; whole numbers or text are needed")
        array = np.array(values.to_pylist()) if _is_text(values.type) else values.to_numpy()
        class_names = piece.class_names.get(column)
        if class_names:
            check_labels(array, class_names, f"{piece.where}, column {column!r}")
            array = np.array(class_names)[array]
        parts.append(array)
    return np.concatenate(parts)


def _labels(pieces: list[Piece], column: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels 0 .. C - 1, shape (N,), with the class names: the column's own, or its different values, sorted."""
    class_names = pieces[0].class_names.get(column)
    if not class_names:
        values = _entries(pieces, column)
        if values.dtype.kind in "iu" and values.min() < 0:
            raise ValueError(
                f"{pieces[0].where}: column {column!r} has the label {values.min()} (allowed: 0 and above)"
            )
        different, labels = np.unique(values, return_inverse=True)
        return labels.astype(np.int64), tuple(str(value) for value in different.tolist())
    parts = []
    for piece in pieces:
        if piece.class_names.get(column) != class_names:
            raise ValueError(f"{piece.where}: column {column!r} has other class names than {pieces[0].where}")
        parts.append(_column(piece, column).to_numpy().astype(np.int64))
        check_labels(parts[-1], class_names, f"{piece.where}, column {column!r}")
    return np.concatenate(parts), tuple(class_names)


def _encoded(pieces: list[Piece], column: str) -> pixel_cache.Encoded:
    images: list[bytes] = []
    starts = []
    for piece in pieces:
        starts.append(len(images))
        entries = _column(piece, column)
        if not _is_image(entries.type):
            raise ValueError(f"{piece.where}: column {column!r} holds {entries.type}, not images")
        images += _with_files(piece, column, entries) if pa.types.is_struct(entries.type) else entries.to_pylist()
    return pixel_cache.Encoded(images, starts, [f"{piece.where}: column {column!r}" for piece in pieces])


def _with_files(piece: Piece, column: str, entries: pa.ChunkedArray) -> list[bytes]:
    """The bytes of images; where a table only names a file, the file's."""
    found = pa.Table.from_struct_array(entries)["bytes"].to_pylist()
    for row in [row for row, image in enumerate(found) if image is None]:
        path = entries[row].as_py().get("path")
        if not path or not Path(path).is_file():
            raise ValueError(f"{piece.where}: column {column!r}, row {row}: no image (path: {path})")
        found[row] = Path(path).read_bytes()
    return found


def _features(pieces: list[Piece], input: str | None, others: tuple[str, ...]) -> np.ndarray:
    """Numeric columns as float32, shape (N, D): the column `input`, or every numeric one that is not in `others`."""
    first = pieces[0]
    numeric = [
        column
        for column in first.table.column_names
        if column not in others and _is_number(first.table.schema.field(column).type)
    ]
    chosen = [input] if input is not None else numeric
    if not chosen:
        raise ValueError(f"{first.where}: no image column and no numeric columns; give `input`")
    parts = [np.stack([_numbers(piece, column) for column in chosen], axis=1) for piece in pieces]
    return np.concatenate([part.reshape(len(part), -1) for part in parts])


def _numbers(piece: Piece, column: str) -> np.ndarray:
    """A numeric column, shape (n,), or a column of number lists of one length d, shape (n, d), as float32."""
    entries = _column(piece, column)
    if _is_number(entries.type):
        array = entries.to_numpy()
    elif pa.types.is_list(entries.type) or pa.types.is_fixed_size_list(entries.type):
        rows = entries.to_pylist()
        if len({len(row) for row in rows}) != 1:
            raise ValueError(f"{piece.where}: column {column!r} holds lists of different lengths")
        array = np.array(rows)
    else:
        raise ValueError(f"{piece.where}: column {column!r} holds {entries.type}; images or numbers are needed")
    if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise ValueError(f"{piece.where}: column {column!r} holds entries that are not finite numbers")
    return array.astype(np.float32)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
