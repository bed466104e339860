"""Sources: detection of columns and splits, every kind of file, and one-line errors that name file and column."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedstart.data import sources
from fedstart.data.sources import load
from pictures import encode, insects, pictures, write


@pytest.fixture
def folder(tmp_path):
    return insects(tmp_path / "data")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_digits():
    examples = load("digits")
    assert tuple(examples.inputs.shape) == (1797, 1, 8, 8) and str(examples.inputs.dtype) == "torch.uint8"
    assert (int(examples.inputs.min()), int(examples.inputs.max())) == (0, 255)
    assert np.bincount(examples.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert examples.class_names == tuple("0123456789") and not examples.columns
    # The first digit is a zero: its centre is empty, its ring is not.
    assert examples.inputs[0, 0, 3, 3] == 0 and examples.inputs[0, 0, 3, 2] > 100


def test_synthetic_is_keyed_and_separable():
    examples = load("synthetic:classes=4,examples=400,size=6,channels=3,seed=5", columns=("group",))
    assert tuple(examples.inputs.shape) == (400, 3, 6, 6) and np.bincount(examples.labels).tolist() == [100] * 4
    again = load("synthetic: classes=4, examples=400, size=6, channels=3, seed=5")
    other = load("synthetic:classes=4,examples=400,size=6,channels=3,seed=6")
    assert examples.fingerprint == again.fingerprint != other.fingerprint
    flat = examples.inputs.numpy().reshape(400, -1).astype(float)
    means = np.stack([flat[:200][examples.labels[:200] == label].mean(axis=0) for label in range(4)])
    nearest = ((flat[200:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == examples.labels[200:]).mean() > 0.95


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        ("digit", {}, "unknown data 'digit'; did you mean 'digits'"),
        ("hf:", {}, "unknown data 'hf:'"),
        ("digits:3", {}, "digits: takes no settings"),
        ("digits", {"label": "x"}, "digits: has no setting 'label'"),
        ("digits", {"columns": ("writer",)}, r"digits: no column 'writer' \(columns: none\)"),
        ("synthetic:clases=3", {}, "did you mean 'classes'"),
        ("synthetic:classes=x", {}, "synthetic: classes: .*integer"),
        ("synthetic:classes", {}, "synthetic: classes: .*integer"),
        ("synthetic:classes=9,examples=3", {}, "3 examples are too few for 9 classes"),
        ("path:/nowhere/at/all", {}, "/nowhere/at/all: no such file or folder"),
    ],
)
def test_wrong_names_and_settings(spec, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(spec, **arguments)
    assert "\n" not in str(caught.value)


def test_parquet_gives_pixels_labels_split_columns_and_statistics(folder, cache):
    examples = load(f"path:{folder}", columns=("writer",), cache=cache)
    assert examples.name == "data" and examples.class_names == ("ant", "bee", "cat")
    shown = pictures(10)
    assert np.array_equal(examples.inputs.numpy(), shown.transpose(0, 3, 1, 2))
    assert examples.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 2, 1, 0] and examples.labels.dtype == np.int64
    assert examples.columns["split"].tolist() == [0] * 7 + [1] * 3
    assert examples.columns["writer"].tolist() == list("aabbccdabc")
    assert np.allclose(examples.mean, (shown[:7] / 255).mean(axis=(0, 1, 2)), atol=1e-12)
    assert np.allclose(examples.std, (shown[:7] / 255).std(axis=(0, 1, 2)), atol=1e-12)


def test_the_label_column_called_label_wins(tmp_path, cache):
    names = {"label": ["a", "b"], "domain": ["x", "y"]}
    file = write(tmp_path / "f.parquet", [encode(p) for p in pictures(2)], names, domain=[1, 1], label=[1, 0])
    assert load(str(file), cache=cache).labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("columns", "arguments", "message"),
    [
        ({"label": [0, 3]}, {}, r"f.parquet, column 'label': label 3 in row 1 is out of range \(allowed: 0 to 1\)"),
        ({"label": [0, -1]}, {}, "label -1 in row 1 is out of range"),
        ({"label": [0, None]}, {}, "f.parquet: column 'label' has 1 empty entries"),
        ({"label": [0, 1]}, {"label": "lable"}, "f.parquet: unknown column 'lable'; did you mean 'label'"),
        ({"label": [0, 1]}, {"input": "images"}, "f.parquet: unknown column 'images'; did you mean 'image'"),
        ({"label": [0, 1]}, {"columns": ["writer"]}, "f.parquet: unknown column 'writer'"),
        ({"label": [0, 1], "x": [0.5, 1.5]}, {"columns": ["x"]}, "column 'x' holds double; whole numbers or text"),
        ({"label": [0, 1], "x": [0.5, 1.5]}, {"label": "x"}, "column 'x' holds double; whole numbers or text"),
        ({"label": [0, 1], "x": [-1, 0]}, {"label": "x"}, r"column 'x' has the label -1 \(allowed: 0 and above\)"),
        ({"label": [0, 1], "x": ["a", "b"]}, {"input": "x"}, "column 'x' holds string; images or numbers"),
        ({"label": [0, 1], "split": [0, 1]}, {"columns": ["split"]}, "`split` is the name of the official splits"),
        ({"target": [0, 1]}, {}, r"no column says that it is the label; give `label` \(columns: image, target\)"),
    ],
)
def test_wrong_columns(tmp_path, cache, columns, arguments, message):
    encoded = [encode(pixels) for pixels in pictures(2)]
    file = write(tmp_path / "f.parquet", encoded, {"label": ["a", "b"]} if "label" in columns else {}, **columns)
    with pytest.raises(ValueError, match=message):
        load(str(file), cache=cache, **arguments)


def test_labels_without_names_are_the_different_values_sorted(tmp_path, cache):
    encoded = [encode(pixels) for pixels in pictures(4)]
    numbers = load(str(write(tmp_path / "n.parquet", encoded, label=[10, 2, 10, 7])), cache=cache)
    assert numbers.labels.tolist() == [2, 0, 2, 1] and numbers.class_names == ("2", "7", "10")
    words = load(str(write(tmp_path / "w.parquet", encoded, label=list("zaza"))), cache=cache)
    assert words.labels.tolist() == [1, 0, 1, 0] and words.class_names == ("a", "z")


def test_class_names_must_agree_between_files(folder, cache):
    write(folder / "more.parquet", [encode(p) for p in pictures(1)], {"label": ["ant", "bee", "dog"]}, label=[0])
    with pytest.raises(ValueError, match=r"train.parquet: column 'label' has other class names than .*more.parquet"):
        load(str(folder), cache=cache)


def test_two_image_columns_need_a_choice(tmp_path, cache):
    encoded = [encode(pixels) for pixels in pictures(2)]
    file = write(tmp_path / "f.parquet", encoded, label=[0, 1], mask=pa.array(encoded[::-1], type=pa.binary()))
    with pytest.raises(ValueError, match=r"several image columns \(image, mask\); choose one as `input`"):
        load(str(file), cache=cache)
    assert np.array_equal(load(str(file), input="mask", cache=cache).inputs[0], pictures(2)[1].transpose(2, 0, 1))


def test_images_may_lie_beside_the_table(tmp_path, cache):
    (tmp_path / "one.png").write_bytes(encode(pictures(1)[0]))
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    image = pa.array([{"bytes": None, "path": str(tmp_path / "one.png")}], type=kind)
    pq.write_table(pa.table({"image": image, "label": [0]}), tmp_path / "f.parquet")
    examples = load(str(tmp_path / "f.parquet"), cache=cache)
    assert np.array_equal(examples.inputs[0].numpy(), pictures(1)[0].transpose(2, 0, 1))


def test_files_names_the_splits(folder, cache):
    swapped = load(f"path:{folder}", files={"train": "te*.parquet", "validation": "train.parquet"}, cache=cache)
    assert swapped.labels.tolist() == [2, 1, 0, 0, 1, 2, 0, 1, 2, 0]
    assert swapped.columns["split"].tolist() == [0] * 3 + [1] * 7
    both = load(f"path:{folder}", files={"train": "*.parquet"}, cache=cache)
    assert "split" not in both.columns and len(both) == 10
    assert both.mean != load(f"path:{folder}", files={"train": "train.parquet"}, cache=cache).mean
    for files, message in [
        ({"trian": "*"}, "unknown split 'trian'"),
        ({"train": "x*"}, r"no file matches 'x\*' \(train\)"),
        ({"train": "/etc/*"}, "must be relative"),
    ]:
        with pytest.raises(ValueError, match=message):
            load(f"path:{folder}", files=files, cache=cache)
    with pytest.raises(ValueError, match="but this is a file"):
        load(f"path:{folder / 'test.parquet'}", files={"train": "x"}, cache=cache)


@pytest.mark.parametrize(
    ("file", "test"),
    [("val-00000.parquet", 1), ("validation.parquet", 1), ("test/data.parquet", 1), ("all.parquet", None)],
)
def test_splits_follow_from_file_names(folder, cache, file, test):
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / "test.parquet").rename(folder / file)
    columns = load(str(folder), cache=cache).columns
    assert ("split" in columns) == (test is not None)
    if test is not None:
        assert columns["split"].tolist() == [0] * 7 + [1] * 3


def test_what_cannot_be_read_is_named(tmp_path, cache):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no Parquet, Arrow, CSV or image files"):
        load(str(tmp_path / "empty"), cache=cache)
    for name in ("broken.parquet", "broken.arrow"):
        (tmp_path / name).write_bytes(b"PAR1 but not really")
        with pytest.raises(ValueError, match=rf"{name}: cannot be read as (Parquet|Arrow) \(") as caught:
            load(str(tmp_path / name), cache=cache)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="holds both Arrow and Parquet files"):
        load(str(tmp_path), cache=cache)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"notes.txt: not a table \(allowed: .parquet, .arrow, .csv\)"):
        load(str(tmp_path / "notes.txt"), cache=cache)
    write(tmp_path / "none.parquet", [], label=pa.array([], type=pa.int64()))
    with pytest.raises(ValueError, match="none: no rows"):
        load(str(tmp_path / "none.parquet"), cache=cache)


def test_csv_gives_float_features(tmp_path):
    (tmp_path / "train.csv").write_text("a,b,place,label\n1,0.5,x,yes\n2,1.5,y,no\n")
    (tmp_path / "test.csv").write_text("a,b,place,label\n3,2.5,x,no\n")
    examples = load(str(tmp_path), columns=("place",))
    assert examples.inputs.tolist() == [[1, 0.5], [2, 1.5], [3, 2.5]] and str(examples.inputs.dtype) == "torch.float32"
    assert examples.labels.tolist() == [1, 0, 0] and examples.class_names == ("no", "yes")
    assert examples.columns["split"].tolist() == [0, 0, 1] and examples.columns["place"].tolist() == list("xyx")
    assert examples.mean == () and examples.std == ()
    assert load(str(tmp_path), input="b").inputs.tolist() == [[0.5], [1.5], [2.5]]
    assert load(str(tmp_path), columns=("a",)).inputs.tolist() == [[0.5], [1.5], [2.5]]


def test_lists_of_numbers_are_features(tmp_path):
    pq.write_table(pa.table({"v": [[1.0, 2.0], [3.0, 4.0]], "label": [0, 1]}), tmp_path / "f.parquet")
    assert load(str(tmp_path / "f.parquet"), input="v").inputs.tolist() == [[1, 2], [3, 4]]
    with pytest.raises(ValueError, match="no image column and no numeric columns; give `input`"):
        load(str(tmp_path / "f.parquet"))
    pq.write_table(pa.table({"v": [[1.0], [3.0, 4.0]], "label": [0, 1]}), tmp_path / "f.parquet")
    with pytest.raises(ValueError, match="column 'v' holds lists of different lengths"):
        load(str(tmp_path / "f.parquet"), input="v")
    pq.write_table(pa.table({"v": [float("nan"), 1.0], "label": [0, 1]}), tmp_path / "f.parquet")
    with pytest.raises(ValueError, match="column 'v' holds entries that are not finite numbers"):
        load(str(tmp_path / "f.parquet"))


def test_image_folders(tmp_path, cache):
    shown = pictures(4)
    places = ["train/bee/1.png", "train/ant/1.png", "train/ant/2.jpg", "test/bee/9.png"]
    for place, pixels in zip(places, shown, strict=True):
        (tmp_path / "f" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / place).write_bytes(encode(pixels))
    examples = load(str(tmp_path / "f"), cache=cache)
    assert np.array_equal(examples.inputs.numpy(), shown[[1, 2, 0, 3]].transpose(0, 3, 1, 2))
    assert examples.labels.tolist() == [0, 0, 1, 1] and examples.class_names == ("ant", "bee")
    assert examples.columns["split"].tolist() == [0, 0, 0, 1]
    # A class may be called like the beginning of a split.
    (tmp_path / "f/train/ant").rename(tmp_path / "f/train/valley")
    assert load(str(tmp_path / "f"), cache=cache).columns["split"].sum() == 1
    (tmp_path / "f/train/loose.png").write_bytes(encode(shown[0]))
    with pytest.raises(ValueError, match=r"loose.png: images must lie in one folder per class"):
        load(str(tmp_path / "f"), cache=cache)


def test_a_saved_hugging_face_dataset_and_the_hub_give_the_same_as_parquet(folder, cache, tmp_path, monkeypatch):
    import datasets

    parts = {part: str(folder / f"{part}.parquet") for part in ("train", "test")}
    found = datasets.load_dataset("parquet", data_files=parts, cache_dir=str(tmp_path / "hub"))
    found.save_to_disk(str(tmp_path / "saved"))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, data_files: found)
    expected = load(str(folder), columns=("writer",), cache=cache)
    for spec in ("hf:somebody/insects", f"path:{tmp_path / 'saved'}"):
        examples = load(spec, columns=("writer",), cache=cache)
        assert examples.fingerprint == expected.fingerprint and examples.class_names == expected.class_names
        assert {name: list(v) for name, v in examples.columns.items()} == {
            name: list(v) for name, v in expected.columns.items()
        }
    assert len(list(cache.iterdir())) == 1


def test_the_hub_out_of_reach_is_one_line(monkeypatch):
    import datasets

    def unreachable(name, data_files):
        raise ConnectionError(f"Couldn't reach {name} on the Hub\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        ValueError, match=r"hf:a/b: cannot be loaded; check the name and the network.*reach a/b"
    ) as caught:
        load("hf:a/b")
    assert "\n" not in str(caught.value)


def test_kinds_are_described():
    assert set(sources.KINDS) == {"digits", "synthetic", "hf:NAME", "path:FOLDER"}
