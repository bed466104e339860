"""Decoding images once: from encoded bytes to one uint8 array on disk, which later runs map into memory."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress

DECODER = 2
"""Goes up whenever the same bytes would be decoded to other pixels, another layout or other statistics."""
CHUNK = 256
GREY = frozenset({"1", "L", "LA"})

Channels = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Encoded:
    """Images as files hold them: the bytes of each, and for pieces of rows the place they came from."""

    images: Sequence[bytes]
    starts: Sequence[int]
    places: Sequence[str]

    def place(self, row: int) -> str:
        """Where a row came from, for an error message."""
        piece = int(np.searchsorted(self.starts, row, side="right")) - 1
        return f"{self.places[piece]}, row {row - self.starts[piece]}"

    def digest(self) -> str:
        """SHA-256 of all bytes in order."""
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(len(image).to_bytes(8, "big"))
            digest.update(image)
        return digest.hexdigest()


def default_folder() -> Path:
    """$FEDSTART_CACHE, or ~/.cache/fedstart."""
    given = os.environ.get("FEDSTART_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "fedstart"


def pixels(encoded: Encoded, digest: str, train: np.ndarray, folder: Path) -> tuple[np.ndarray, Channels, Channels]:
    """The decoded images, shape (N, C, H, W), uint8, with mean and standard deviation of the train rows.

    In memory, and in the file, the channels are last. C is 1 if every image is grey, else 3. `train` marks the rows,
    shape (N,), that the statistics are taken from. The array is mapped copy-on-write from `folder`, where it is made if
    it is not there yet: in a temporary folder, then a rename, so several processes may do this at once.
    Raises ValueError for an image that cannot be decoded or differs in size, and for a folder that cannot be used.
    """
    key = hashlib.sha256(f"{DECODER}:{digest}:".encode() + np.packbits(train).tobytes()).hexdigest()[:32]
    home = folder / key
    try:
        if not home.exists():
            _make(encoded, train, home)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be used as cache ({error}); set FEDSTART_CACHE to another folder") from None
    try:
        card = json.loads((home / "statistics.json").read_text())
        images = np.load(home / "pixels.npy", mmap_mode="c")
        return images.transpose(0, 3, 1, 2), tuple(card["mean"]), tuple(card["std"])
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{home}: damaged; remove this folder ({str(error).splitlines()[0]})") from None


def statistics(images: np.ndarray, train: np.ndarray | None = None) -> tuple[Channels, Channels]:
    """Mean and standard deviation per channel on the scale 0 .. 1, exact, over the `train` rows (or all rows).

    A channel that never varies gets the standard deviation 1, so that it can be normalised.
    """
    rows = np.arange(len(images)) if train is None or not train.any() else np.flatnonzero(train)
    histogram = np.zeros((images.shape[1], 256), dtype=np.int64)
    for start in range(0, len(rows), CHUNK):
        some = images[rows[start : start + CHUNK]]
        for channel in range(images.shape[1]):
            histogram[channel] += np.bincount(some[:, channel].ravel(), minlength=256)
    scale = np.arange(256) / 255
    mean = histogram @ scale / histogram.sum(axis=1)
    variance = (histogram * (scale - mean[:, None]) ** 2).sum(axis=1) / histogram.sum(axis=1)
    std = np.where(variance > 0, np.sqrt(variance), 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())


def array_digest(array: np.ndarray) -> str:
    """SHA-256 of an array's type, shape and content."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def content_fingerprint(inputs: str, labels: np.ndarray, class_names: Sequence[str]) -> str:
    """The fingerprint of examples: SHA-256 over the digest of the inputs, the labels and the class names."""
    return hashlib.sha256(json.dumps([inputs, array_digest(labels), list(class_names)]).encode()).hexdigest()


def _make(encoded: Encoded, train: np.ndarray, home: Path) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{home.name}.", dir=home.parent))
    try:
        images = _decode(encoded, temporary / "pixels.npy")
        mean, std = statistics(images.transpose(0, 3, 1, 2), train)
        (temporary / "statistics.json").write_text(json.dumps({"mean": mean, "std": std}))
        try:
            temporary.rename(home)
        except OSError:
            # Another process may have finished the same folder first; its content is the same.
            if not home.exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _decode(encoded: Encoded, file: Path) -> np.ndarray:
    first = _open(encoded, 0)
    # Most sources are all grey or all colour, so the first image is a good guess and a wrong one costs a restart.
    modes = ("L", "RGB") if first.mode in GREY else ("RGB",)
    for mode in modes:
        shape = (len(encoded.images), first.height, first.width, len(mode))
        images = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
        if _fill(encoded, images, mode):
            images.flush()
            return images
    raise AssertionError("RGB takes every image")


def _fill(encoded: Encoded, images: np.ndarray, mode: str) -> bool:
    """Decodes every image into its row; False as soon as a coloured image turns up in mode L."""

    def chunk(start: int) -> bool:
        for row in range(start, min(start + CHUNK, len(images))):
            image = _open(encoded, row)
            if (image.height, image.width) != images.shape[1:3]:
                raise ValueError(
                    f"{encoded.place(row)}: the image is {image.width}x{image.height}, but the first one is "
                    f"{images.shape[2]}x{images.shape[1]}; all images must have one size"
                )
            if mode == "L" and image.mode not in GREY:
                return False
            images[row] = _array(image, mode, encoded.place(row))
        return True

    console = Console(stderr=True)
    pool = ThreadPoolExecutor(max_workers=os.cpu_count())
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task("decoding images", total=len(images))
            for done in pool.map(chunk, range(0, len(images), CHUNK)):
                if not done:
                    return False
                progress.advance(bar, CHUNK)
        return True
    finally:
        pool.shutdown(cancel_futures=True)


def _open(encoded: Encoded, row: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(encoded.images[row]))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{encoded.place(row)}: not a readable image ({type(error).__name__})") from None
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{encoded.place(row)}: images of more than 8 bits per channel are not supported")
    return image


def _array(image: Image.Image, mode: str, place: str) -> np.ndarray:
    """The pixels of one image, shape (H, W, C), uint8."""
    try:
        # A palette with transparency goes to RGB by way of RGBA, or Pillow warns.
        converted = (image.convert("RGBA") if image.mode == "P" else image).convert(mode)
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{place}: not a readable image ({error})") from None
    return np.asarray(converted).reshape(image.height, image.width, len(mode))
