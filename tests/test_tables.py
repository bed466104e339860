"""Tables through `datasets`: no network, no second copy, nothing printed, and CSV files that pandas would misread."""

from __future__ import annotations

import datasets
import pyarrow.parquet as pq
import pytest

from fedstart.data.sources import load
from pictures import insects


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "No columns to parse"),
        ("a,label\n1,2,3\n4,5,6\n", "does not match length of data"),
        ("a,label\n1,2\n4,5,6\n", "Expected 2 fields in line 3, saw 3"),
        ("a,label\n" + "1,0\n" * 300_000 + "x,0\n", "mixed types"),
    ],
)
def test_csv_that_would_be_misread_is_named(tmp_path, text, message):
    (tmp_path / "f.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"f.csv: cannot be read as CSV \(.*{message}"):
        load(str(tmp_path / "f.csv"))


def test_local_files_need_no_network_no_second_copy_and_print_nothing(tmp_path, monkeypatch, caplog, capfd):
    folder = insects(tmp_path / "data")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "copies")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    (folder / "sub [1]*").mkdir()
    (folder / "train.parquet").rename(folder / "sub [1]*" / "train.parquet")
    assert len(load(str(folder), cache=tmp_path / "cache")) == 10
    content = (folder / "test.parquet").read_bytes()
    (folder / "test.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="test.parquet: cannot be read as Parquet"):
        load(str(folder), cache=tmp_path / "cache")
    assert not (tmp_path / "copies").exists() and not caplog.records and not any(capfd.readouterr())
    assert datasets.logging.get_verbosity() == datasets.logging.WARNING


def test_arrays_of_two_axes_are_features(tmp_path):
    kinds = datasets.Features({"v": datasets.Array2D((2, 2), "float32"), "label": datasets.Value("int64")})
    saved = datasets.Dataset.from_dict({"v": [[[1, 2], [3, 4]]] * 2, "label": [0, 1]}, features=kinds)
    pq.write_table(saved.data.table, tmp_path / "f.parquet")
    assert load(str(tmp_path / "f.parquet"), input="v").inputs.tolist() == [[1, 2, 3, 4]] * 2
