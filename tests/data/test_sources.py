"""Claims: sources of folders, of parquet and of Hugging Face data sets answer alike; mistakes get one sentence."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from mmssl.data.images import decode_image
from mmssl.data.index import Index
from mmssl.data.listing import list_media
from mmssl.data.sources import LocalSource, open_source
from mmssl.errors import UserError
from tests.media import make_audio, make_image, make_image_tree, make_tar, pixels

datasets: Any = importlib.import_module("datasets")
"""The library; by name, since type checkers take the folder `datasets/` of this repository for it."""


def test_local_source(tmp_path: Path) -> None:
    make_image_tree(tmp_path / "d", each=2)
    options: dict[str, Any] = {"cache": tmp_path / "cache", "workers": 1}
    source = open_source(tmp_path / "d", "image", out=tmp_path / "out", **options)
    assert len(source) == 6
    assert source.labels() == ["cat", "dog"]
    assert [source.id(row) for row in source.rows("test")] == ["test/cat/0.png", "test/dog/0.png"]
    assert source.rows("validation").size == 0
    assert source.rows().dtype == np.int64
    sent = pickle.dumps(source)
    assert len(sent) < 1000  # the file is read in the worker, the table does not travel
    for other in (pickle.loads(sent), pickle.loads(pickle.dumps(open_source(str(tmp_path / "d"), "image", **options)))):
        assert isinstance(other, LocalSource)
        assert other.fingerprint == source.fingerprint
        assert [other.label(row) for row in other.rows()] == [source.label(row) for row in source.rows()]
        assert torch.equal(decode_image(other.media(3)), decode_image(source.media(3)))


def test_share_of_bad_files(tmp_path: Path) -> None:
    for number in range(9):
        make_image(tmp_path / "d" / f"{number}.png")
    (tmp_path / "d" / "bad.png").write_bytes(b"")
    options: dict[str, Any] = {"cache": tmp_path / "cache", "workers": 1}
    with pytest.raises(UserError, match=r"1 of 10 image files in .* cannot be used \(bad\.png: empty file\).*max-bad"):
        open_source(tmp_path / "d", "image", **options)
    source = open_source(tmp_path / "d", "image", max_bad_share=0.1, **options)
    assert source.rows().size == 9
    assert source.problems() == [("bad.png", "empty file")]


def test_mistakes_get_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"holds no image files \(it holds 1 \.txt\)"):
        open_source(tmp_path, "image", cache=tmp_path / "cache")
    with pytest.raises(UserError, match="is a file"):
        open_source(tmp_path / "a.txt", "image")
    with pytest.raises(UserError, match="is not there"):
        open_source(tmp_path / "nowhere", "image")
    with pytest.raises(UserError, match="Unknown kind"):
        open_source(tmp_path, "text")
    with pytest.raises(UserError, match=r"verified\.sqlite, where .* cannot be used .*MMSSL_CACHE"):
        open_source(tmp_path, "image", cache=tmp_path / "a.txt" / "cache")
    (tmp_path / "cache" / "verified.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match=r"verified\.sqlite, where .* cannot be used .*not a database"):
        open_source(tmp_path, "image", cache=tmp_path / "cache")
    index = Index.from_records(tmp_path, [])
    with pytest.raises(UserError, match=r"The index cannot be written to .*a\.txt/i\.parquet"):
        index.save(tmp_path / "a.txt" / "i.parquet")


@pytest.fixture
def ordinary_user() -> Iterator[Path]:
    """A folder that anybody may use, and nobody's rights: root may read everything."""
    user = os.geteuid()
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    folder.chmod(0o777)
    os.seteuid(65534 if user == 0 else user)
    try:
        yield folder
    finally:
        os.seteuid(user)
        for locked in folder.rglob("*"):
            if locked.is_dir():
                locked.chmod(0o700)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("locked", "mode", "data", "named"),
    [
        (".", 0o000, ".", "."),
        (".", 0o000, "cat", "cat"),  # nobody can tell whether it is there
        (".", 0o600, ".", "cat"),
        ("dog/puppy", 0o000, ".", "dog/puppy"),
    ],
)
def test_a_folder_that_may_not_be_read_ends_in_one_sentence(
    ordinary_user: Path, locked: str, mode: int, data: str, named: str
) -> None:
    """Passing over it would train on a part of the data without a word."""
    root = ordinary_user / "d"
    for name in ("cat/1.png", "dog/1.png", "dog/puppy/1.png"):
        make_image(root / name)
    (root / locked).chmod(mode)
    with pytest.raises(UserError, match=r"^\S+ cannot be read \(Permission denied\): change its rights, or ") as caught:
        open_source(root / data, "image", cache=ordinary_user / "cache")
    assert str(caught.value).split()[0] == str(root / named)


def test_lost_and_found_and_tars_that_nobody_may_read(ordinary_user: Path) -> None:
    root = ordinary_user / "d"
    make_image(root / "1.png")
    (root / "lost+found").mkdir(mode=0o000)
    make_tar(root / "a.tar", {"2.png": b"x"}).chmod(0o000)
    (root / "b.tar").symlink_to("nowhere")
    records = {record.id: record.problem for record in list_media(root, "image").records}
    assert records == {
        "1.png": None,
        "a.tar": "cannot be read: Permission denied",
        "b.tar": "cannot be read: No such file or directory",
    }


def _write_parquet(root: Path, about: bool) -> None:
    """Hugging Face's layout: struct column {bytes, path}, integer labels, with or without its own feature metadata."""
    seed = 0
    for split, count in (("train", 4), ("test", 2)):
        rows = []
        for number in range(count):
            seed += 1
            content = make_image(root.parent / "made" / f"{seed}.png", seed=seed).read_bytes()
            rows.append({"image": {"bytes": content, "path": None}, "label": number % 2})
        table = pa.Table.from_pylist(rows)
        if about:
            features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        root.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, root / f"{split}-00000-of-00001.parquet")


@pytest.mark.parametrize("about", [True, False])
def test_parquet_in_hugging_face_layout(tmp_path: Path, about: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    _write_parquet(tmp_path / "d", about)
    source = open_source(tmp_path / "d", "image")
    source = pickle.loads(pickle.dumps(source))
    assert len(source) == 6
    assert source.labels() == (["cat", "dog"] if about else ["0", "1"])
    train, test = source.rows("train"), source.rows("test")
    assert sorted([*train, *test]) == list(range(6))
    assert len(train) == 4
    for number, row in enumerate([*train, *test]):
        image = decode_image(source.media(row))
        assert np.array_equal(image.permute(1, 2, 0), pixels(seed=number + 1))
    assert source.label(int(test[1])) == source.labels()[1]
    assert source.id(int(test[1])) == "test/1"
    assert source.fingerprint == open_source(tmp_path / "d", "image").fingerprint
    with pytest.raises(UserError, match=r"has no audio column \(its columns are image, label\)"):
        open_source(tmp_path / "d", "audio")


def test_hub_names_go_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`owner/name:split` is loaded map-style; rows come undecoded (files of the data set's cache, or bytes)."""
    sound = make_audio(tmp_path / "a.wav", 0.2)
    features = datasets.Features({"audio": datasets.Audio(), "word": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"audio": [{"path": str(sound), "bytes": None}, {"path": "b", "bytes": sound.read_bytes()}], "word": [1, -1]}
    # Not from_dict with these features: encoding sound needs torchcodec there, which reading must not need.
    part = datasets.Dataset.from_dict(rows).cast(features)
    asked: list[tuple[str, str | None]] = []

    def load(name: str, split: str | None = None) -> Any:
        asked.append((name, split))
        if name == "owner/missing":
            raise datasets.exceptions.DatasetNotFoundError("no such data set")
        return part if split else datasets.DatasetDict({"train": part, "val": part})

    monkeypatch.setattr(datasets, "load_dataset", load)
    from mmssl.data.audio import read_audio

    both, one = open_source("owner/name", "audio"), open_source("owner/name:train", "audio")
    assert asked == [("owner/name", None), ("owner/name", "train")]
    assert (len(both), len(one)) == (4, 2)
    assert both.rows("validation").tolist() == [2, 3]
    assert [both.label(row) for row in range(4)] == ["yes", None, "yes", None]
    assert torch.equal(read_audio(both.media(0), 16000), read_audio(both.media(3), 16000))
    with pytest.raises(
        UserError, match=r"owner/missing is neither a folder here nor a Hub data set .*no such data set"
    ):
        open_source("owner/missing", "audio")
