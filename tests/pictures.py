"""Small images and Parquet files for the tests of the data layer."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def encode(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    image = Image.fromarray(pixels)
    stream = io.BytesIO()
    (image.convert(mode) if mode else image).save(stream, format=kind)
    return stream.getvalue()


def pictures(count: int, seed: int = 0, grey: bool = False) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(count, 5, 4) if grey else (count, 5, 4, 3), dtype=np.uint8)


def write(file: Path, images: list[bytes], described: dict[str, list[str]] | None = None, **columns) -> Path:
    """A Parquet file in the Hugging Face convention; `described` gives class names by column."""
    table = pa.table(
        {
            "image": pa.array(
                [{"bytes": image, "path": None} for image in images],
                type=pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            ),
            **columns,
        }
    )
    features = {"image": {"_type": "Image"}} | {
        column: {"names": names, "_type": "ClassLabel"} for column, names in (described or {}).items()
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), file)
    return file


def insects(folder: Path) -> Path:
    """Seven train and three test images of three classes, with a writer; the pixels are `pictures(10)`."""
    encoded = [encode(pixels) for pixels in pictures(10)]
    names = {"label": ["ant", "bee", "cat"]}
    write(folder / "train.parquet", encoded[:7], names, label=[0, 1, 2, 0, 1, 2, 0], writer=list("aabbccd"))
    write(folder / "test.parquet", encoded[7:], names, label=[2, 1, 0], writer=list("abc"))
    return folder
