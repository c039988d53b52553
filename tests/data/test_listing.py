"""Claim: rows, labels and splits follow the folders, the metadata file or the tar, in an order of names only."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from mmssl.data.index import Index
from mmssl.data.listing import list_media
from mmssl.errors import UserError
from tests.media import make_image, make_tar


def rows_of(root: Path, kind: str | None = None) -> dict[str, tuple[str | None, str | None]]:
    """{id: (label, split)}, in row order."""
    return {record.id: (record.label, record.split) for record in list_media(root, kind).records}


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.Png"):
        make_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    listing = list_media(tmp_path, "image")
    assert [(r.id, r.label, r.split) for r in listing.records] == [
        ("a.JPG", None, None),
        ("b.png", None, None),
        ("c.Png", None, None),
    ]
    assert listing.ignored == {".txt": 1}


def test_class_folders_and_nesting(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/young/2.png", "dog/1.png", "loose.png"):
        make_image(tmp_path / name)
    assert rows_of(tmp_path) == {
        "cat/1.png": ("cat", None),
        "cat/young/2.png": ("cat", None),
        "dog/1.png": ("dog", None),
        "loose.png": (None, None),
    }


@pytest.mark.parametrize(
    ("folder", "split"), [("train", "train"), ("TEST", "test"), ("val", "validation"), ("dev", "validation")]
)
def test_split_folders(tmp_path: Path, folder: str, split: str) -> None:
    make_image(tmp_path / "Train" / "cat" / "1.png")
    make_image(tmp_path / folder / "dog" / "deep" / "2.png")
    make_image(tmp_path / folder / "3.png")
    found = rows_of(tmp_path)
    assert found["Train/cat/1.png"] == ("cat", "train")
    assert found[f"{folder}/dog/deep/2.png"] == ("dog", split)
    assert found[f"{folder}/3.png"] == (None, split)


def test_a_class_called_train_stays_a_class(tmp_path: Path) -> None:
    for name in ("train", "bus", "car"):
        make_image(tmp_path / name / "1.png")
    assert set(rows_of(tmp_path).values()) == {("train", None), ("bus", None), ("car", None)}


def test_kinds_by_extension(tmp_path: Path) -> None:
    for name in ("a.png", "b.mp4", "c.wav", "d.xyz"):
        (tmp_path / name).write_bytes(b"x")
    assert list(rows_of(tmp_path, "image")) == ["a.png"]
    assert list(rows_of(tmp_path, "video")) == ["b.mp4"]
    assert list(rows_of(tmp_path, "audio")) == ["b.mp4", "c.wav"]  # the sound track counts
    assert [r.kind for r in list_media(tmp_path).records] == ["image", "video", "audio"]
    assert list_media(tmp_path, "audio").ignored == {".png": 1, ".xyz": 1}


def test_links_are_followed_once(tmp_path: Path) -> None:
    make_image(tmp_path / "data" / "real" / "1.png")
    make_image(tmp_path / "elsewhere" / "2.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "away")
    os.symlink(tmp_path / "data", tmp_path / "data" / "real" / "loop")
    os.symlink(tmp_path / "data" / "real", tmp_path / "data" / "alias")
    os.symlink(tmp_path / "gone.png", tmp_path / "data" / "dangling.png")
    listed = list_media(tmp_path / "data").records
    assert [r.id for r in listed] == ["away/2.png", "dangling.png", "real/1.png"]
    assert listed[1].problem is not None
    assert "No such file" in listed[1].problem


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("column", ["label", "category"])
def test_metadata_overrides_folders(tmp_path: Path, form: str, column: str) -> None:
    """Hugging Face's folder convention: file_name is relative to the folder of the metadata file."""
    for name in ("set/x/1.png", "set/x/2.png", "set/3.png"):
        make_image(tmp_path / name)
    rows: list[dict[str, Any]] = [
        {"file_name": "x/1.png", column: "007", "split": "dev"},
        {"file_name": "3.png", column: "b,c", "split": "train"},
        {"file_name": "gone.png", column: "b,c", "split": "train"},
    ]
    file = tmp_path / "set" / f"metadata.{form}"
    if form == "csv":
        lines = [f"file_name,{column},split", *(f'{r["file_name"]},"{r[column]}",{r["split"]}' for r in rows)]
        file.write_text("\ufeff" + "\r\n".join(lines))
    elif form == "jsonl":
        file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    else:
        parquet.write_table(pa.Table.from_pylist(rows), file)
    records = {r.id: r for r in list_media(tmp_path, "image").records}
    assert (records["set/x/1.png"].label, records["set/x/1.png"].split) == ("007", "validation")
    assert (records["set/x/2.png"].label, records["set/x/2.png"].split) == ("set", None)
    assert (records["set/3.png"].label, records["set/3.png"].split) == ("b,c", "train")
    assert records["set/gone.png"].problem == "named in the metadata file, but no such file"


def test_metadata_about_other_things_is_left_alone(tmp_path: Path) -> None:
    make_image(tmp_path / "1.png")
    (tmp_path / "metadata.csv").write_text("class,count\ncat,3\n")
    assert rows_of(tmp_path) == {"1.png": (None, None)}


def test_broken_metadata_is_named(tmp_path: Path) -> None:
    make_image(tmp_path / "1.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": ')
    with pytest.raises(UserError, match=r"metadata\.jsonl cannot be read"):
        list_media(tmp_path)


def test_webdataset_tar(tmp_path: Path) -> None:
    png = make_image(tmp_path / "x" / "1.png").read_bytes()
    members = {
        "000.png": png,
        "000.cls": b"3\n",
        "a/001.json": json.dumps({"label": "dog", "caption": "..."}).encode(),
        "a/001.png": png,
        "002.txt": b"cat",
        "002.seg.png": png,
        "003.txt": b"a caption that goes on for more than the forty characters of a label",
        "003.png": png,
        "004.npy": b"?",
    }
    path = make_tar(tmp_path / "d" / "pets-train-0000.tar", members)
    listing = list_media(tmp_path / "d", "image")
    found = {record.id.removeprefix("pets-train-0000.tar/"): record for record in listing.records}
    assert {name: record.label for name, record in found.items()} == {
        "000.png": "3",
        "a/001.png": "dog",
        "002.seg.png": "cat",
        "003.png": None,
    }
    assert {record.split for record in found.values()} == {"train"}
    assert listing.ignored == {".npy": 1}
    content = path.read_bytes()
    for record in found.values():
        assert record.offset is not None
        assert content[record.offset : record.offset + record.size] == png


def test_a_compressed_or_cut_tar_is_a_problem_not_a_crash(tmp_path: Path) -> None:
    png = make_image(tmp_path / "x" / "1.png", 200, 200).read_bytes()
    path = make_tar(tmp_path / "d" / "a.tar", {f"{n}.png": png for n in range(3)})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    (tmp_path / "d" / "b.tar").write_bytes(b"\x1f\x8b" + b"?" * 2000)
    index = Index.build(tmp_path / "d", "image", workers=1, cache=tmp_path / "cache")
    assert index.column("id")[0] == "a.tar"
    assert len(index.rows()) >= 1
    assert {name for name, _ in index.problems()} >= {"a.tar", "b.tar"}
    assert all("uncompressed" in problem for name, problem in index.problems() if name in ("a.tar", "b.tar"))


def test_row_order_is_that_of_names(tmp_path: Path) -> None:
    names = ["b.png", "a/z.png", "a/b.png", "B.png", "ä.png"]
    for order, folder in ((names, "one"), (names[::-1], "two")):
        for name in order:
            make_image(tmp_path / folder / name)
    one, two = (list(rows_of(tmp_path / folder)) for folder in ("one", "two"))
    assert one == two == sorted(names)
