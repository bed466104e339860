"""Decoding and its cache: the pixels that Pillow gives, decoded once, and errors that name file and row."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedstart.data import cache as pixel_cache
from fedstart.data.cache import statistics
from fedstart.data.sources import load
from pictures import encode, insects, pictures, write


@pytest.fixture
def folder(tmp_path):
    return insects(tmp_path / "data")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_the_second_load_decodes_nothing_and_gives_the_same(folder, cache, monkeypatch, capsys):
    first = load(str(folder), cache=cache)
    monkeypatch.setattr(pixel_cache, "_open", lambda *_: pytest.fail("decoded again"))
    second = load(str(folder), cache=cache)
    assert second.fingerprint == first.fingerprint and np.array_equal(second.inputs, first.inputs)
    assert (second.mean, second.std) == (first.mean, first.std)
    assert len(list(cache.iterdir())) == 1 and not capsys.readouterr().err


def test_writing_into_the_inputs_leaves_the_cache_alone(folder, cache):
    first = load(str(folder), cache=cache)
    before = first.inputs.clone()
    first.inputs.zero_()
    assert np.array_equal(load(str(folder), cache=cache).inputs, before)


def test_labels_share_one_decoded_copy_and_differ_in_fingerprint(tmp_path, cache):
    names = {"fine": ["a", "b", "c"], "coarse": ["x", "y"]}
    file = write(tmp_path / "both.parquet", [encode(p) for p in pictures(3)], names, fine=[0, 1, 2], coarse=[0, 0, 1])
    with pytest.raises(ValueError, match=r"both.parquet: several label columns \(fine, coarse\)"):
        load(str(file), cache=cache)
    fine, coarse = (load(str(file), label=label, cache=cache) for label in ("fine", "coarse"))
    assert fine.fingerprint != coarse.fingerprint and len(list(cache.iterdir())) == 1
    assert coarse.labels.tolist() == [0, 0, 1] and coarse.class_names == ("x", "y")
    assert load(str(file), label="fine", columns=("coarse",), cache=cache).columns["coarse"].tolist() == list("xxy")


def test_another_split_of_the_same_rows_has_its_own_statistics(tmp_path, cache):
    for name, seed in (("a", 0), ("b", 1)):
        write(tmp_path / f"{name}.parquet", [encode(p) for p in pictures(2, seed)], label=[0, 1])
    apart = load(str(tmp_path), files={"train": "a*", "test": "b*"}, cache=cache)
    together = load(str(tmp_path), files={"train": "?.parquet"}, cache=cache)
    assert np.array_equal(apart.inputs, together.inputs)
    assert np.allclose(apart.mean, (pictures(2, 0) / 255).mean(axis=(0, 1, 2)))
    assert np.allclose(together.mean, (np.concatenate([pictures(2, 0), pictures(2, 1)]) / 255).mean(axis=(0, 1, 2)))


def test_other_bytes_are_another_source(tmp_path, cache):
    loaded = [
        load(str(write(tmp_path / "one.parquet", [encode(p) for p in pictures(3, seed)], label=[0, 1, 0])), cache=cache)
        for seed in (0, 1)
    ]
    assert loaded[0].fingerprint != loaded[1].fingerprint and len(list(cache.iterdir())) == 2
    assert not np.array_equal(loaded[0].inputs, loaded[1].inputs)


def test_grey_images_have_one_channel_unless_one_is_coloured(tmp_path, cache):
    grey, coloured = pictures(600, grey=True), pictures(1)[0]
    encoded = [encode(pixels) for pixels in grey]
    all_grey = load(str(write(tmp_path / "g.parquet", encoded, label=[0, 1] * 300)), cache=cache)
    assert np.array_equal(all_grey.inputs.numpy(), grey[:, None]) and len(all_grey.mean) == 1
    mixed = load(str(write(tmp_path / "m.parquet", [*encoded, encode(coloured)], label=[0] * 601)), cache=cache)
    assert np.array_equal(mixed.inputs[:600].numpy(), np.repeat(grey[:, None], 3, axis=1))
    assert np.array_equal(mixed.inputs[600].numpy(), coloured.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK", "LA", "1"])
def test_other_modes_of_eight_bits_are_read(tmp_path, cache, mode):
    pixels = pictures(1)[0]
    kind = "TIFF" if mode == "CMYK" else "PNG"
    encoded = encode(pixels, kind, mode)
    examples = load(str(write(tmp_path / "f.parquet", [encoded], label=[0])), cache=cache)
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("L" if mode in ("LA", "1") else "RGB"))
    assert np.array_equal(
        examples.inputs[0].numpy().squeeze(), expected.transpose(2, 0, 1).squeeze() if expected.ndim == 3 else expected
    )


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path, cache):
    image = Image.fromarray(pictures(1)[0]).convert("P")
    stream = io.BytesIO()
    image.save(stream, format="PNG", transparency=bytes(range(256)))
    examples = load(str(write(tmp_path / "f.parquet", [stream.getvalue()], label=[0])), cache=cache)
    assert np.array_equal(examples.inputs[0].numpy(), np.asarray(image.convert("RGB")).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"nothing", r"f.parquet: column 'image', row 300: not a readable image"),
        (encode(pictures(1)[0])[:60], r"f.parquet: column 'image', row 300: not a readable image"),
        (encode(pictures(1)[0][:4]), r"row 300: the image is 4x4, but the first one is 4x5; all images must have one"),
        (encode(np.zeros((5, 4), dtype=np.uint16)), "row 300: images of more than 8 bits per channel"),
        (None, "row 300: no image"),
    ],
)
def test_a_bad_image_is_named_and_leaves_nothing_behind(tmp_path, cache, bad, message):
    encoded = [encode(pixels) for pixels in pictures(400)]
    file = write(tmp_path / "f.parquet", [*encoded[:300], bad, *encoded[301:]], label=[0] * 400)
    with pytest.raises(ValueError, match=message):
        load(str(file), cache=cache)
    assert not cache.exists() or not list(cache.iterdir())


def test_the_row_of_a_bad_image_counts_from_its_own_file(folder, cache):
    table = pq.read_table(folder / "test.parquet")
    images = [row["bytes"] for row in table["image"].to_pylist()]
    write(folder / "test.parquet", [*images[:2], b"x"], {"label": ["ant", "bee", "cat"]}, label=[2, 1, 0])
    with pytest.raises(ValueError, match=r"test.parquet: column 'image', row 2: not a readable"):
        load(str(folder), cache=cache)


def test_the_cache_folder_comes_from_the_environment(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSTART_CACHE", str(tmp_path / "elsewhere"))
    load(str(folder))
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1
    monkeypatch.delenv("FEDSTART_CACHE")
    assert pixel_cache.default_folder() == Path.home() / ".cache" / "fedstart"


def test_a_cache_that_cannot_be_used_and_a_damaged_one(folder, cache, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"file: cannot be used as cache .*; set FEDSTART_CACHE"):
        load(str(folder), cache=tmp_path / "file")
    load(str(folder), cache=cache)
    (home,) = cache.iterdir()
    (home / "pixels.npy").write_bytes((home / "pixels.npy").read_bytes()[:150])
    with pytest.raises(ValueError, match=rf"{home.name}: damaged; remove this folder"):
        load(str(folder), cache=cache)


def test_two_processes_may_make_the_same_cache(folder, cache, monkeypatch):
    """The other one finishes while this one is still decoding."""
    decode = pixel_cache._decode

    def slow(encoded, file):
        monkeypatch.setattr(pixel_cache, "_decode", decode)
        load(str(folder), cache=cache)
        return decode(encoded, file)

    monkeypatch.setattr(pixel_cache, "_decode", slow)
    examples = load(str(folder), cache=cache)
    assert np.array_equal(examples.inputs.numpy(), pictures(10).transpose(0, 3, 1, 2))
    assert len(list(cache.iterdir())) == 1


@given(seed=st.integers(0, 1000), count=st.integers(1, 600), channels=st.integers(1, 3), low=st.integers(0, 255))
def test_statistics_are_those_of_numpy(seed, count, channels, low):
    rng = np.random.default_rng(seed)
    images = rng.integers(low, 256, size=(count, channels, 2, 2), dtype=np.uint8)
    train = rng.random(count) < 0.5
    mean, std = statistics(images, train)
    rows = images[train] / 255 if train.any() else images / 255
    expected = rows.std(axis=(0, 2, 3))
    assert np.allclose(mean, rows.mean(axis=(0, 2, 3)))
    assert np.allclose(std, np.where(rows.min(axis=(0, 2, 3)) == rows.max(axis=(0, 2, 3)), 1.0, expected))
