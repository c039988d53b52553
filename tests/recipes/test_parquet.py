"""A data set of parquet files, as the Hugging Face Hub serves them, goes the whole way: trained on, probed by its
labels, gone on with, evaluated. Its rows are no files, and its split `test` is not trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from mmssl.cli import main
from tests.media import make_image
from tests.recipes.samples import RUN, check_going_on
from tests.runs import metrics, pretrain


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "data"
    folder.mkdir()
    for split, count in (("train", 12), ("test", 6)):
        pictures = [make_image(tmp_path / f"{split}{number}.png", seed=number).read_bytes() for number in range(count)]
        rows = [{"image": {"bytes": content, "path": None}, "label": n % 2} for n, content in enumerate(pictures)]
        features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
        about = {"huggingface": json.dumps({"info": {"features": features}})}
        table = pa.Table.from_pylist(rows).replace_schema_metadata(about)
        parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_parquet_goes_the_whole_way(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    pretrain("image/mae", data, out, *RUN)
    assert metrics(out)[1]["probe/chance"] == 0.5
    assert json.loads((out / "neighbours.json").read_text())
    check_going_on("image/mae", data, out)
    result = tmp_path / "knn.json"
    line = f"evaluate knn --encoder {out / 'encoder'} --data {data} --out {result} --workers 0 --k 3 --neighbours 1"
    main(line.split())
    figures = json.loads(result.read_text())
    assert figures["data"]["files"] == {"train": 12, "test": 6}
    assert figures["data"]["classes"] == ["cat", "dog"]
