"""Claims: rows, labels and splits follow the folders, the metadata file or the tar, in an order that depends on names
only; an interrupted index goes on without verifying anything twice, and a changed file is verified again; the table on
disk is whole or absent; sources of folders, of parquet and of Hugging Face data sets answer alike.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from mmssl.data import index as index_module
from mmssl.data.images import decode_image
from mmssl.data.index import Index
from mmssl.data.indexing import build_index
from mmssl.data.listing import list_media
from mmssl.data.sources import LocalSource, open_source
from mmssl.errors import UserError
from tests.media import make_audio, make_image, make_image_tree, make_tar, make_video, pixels

datasets: Any = importlib.import_module("datasets")
"""The library; by name, since type checkers take the folder `datasets/` of this repository for it."""


def rows_of(root: Path, kind: str | None = None) -> dict[str, tuple[str | None, str | None]]:
    """{id: (label, split)}, in row order."""
    return {record.id: (record.label, record.split) for record in list_media(root, kind).records}


# ---------------------------------------------------------------- listing


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


# ---------------------------------------------------------------- the index


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the files that were sent to be verified, in all builds of a test."""
    sent: list[str] = []
    real = index_module.verify

    def spy(root: Path, jobs: Any, **how: Any) -> Any:
        jobs = list(jobs)
        sent.extend(record.id for _, record in jobs)
        return real(root, jobs, **how)

    monkeypatch.setattr(index_module, "verify", spy)
    return sent


def test_facts_of_each_kind(tmp_path: Path) -> None:
    make_image(tmp_path / "d" / "a.png", 30, 50)
    make_video(tmp_path / "d" / "b.mp4", 24, rate=12)
    make_audio(tmp_path / "d" / "c.wav", 0.5, rate=44100, channels=2)
    index = Index.build(tmp_path / "d", workers=2, cache=tmp_path / "cache")
    image, video, sound = (index.record(row) for row in range(3))
    assert (image.width, image.height, image.frames, image.channels, image.backend) == (50, 30, 1, 3, "pillow")
    assert (video.width, video.height, video.frames, video.rate, video.duration) == (160, 96, 24, 12.0, 2.0)
    assert (sound.frames, sound.rate, sound.channels, sound.duration) == (22050, 44100.0, 2, 0.5)
    assert index.problems() == []
    assert index.rows().tolist() == [0, 1, 2]


def test_saved_and_loaded_the_same(tmp_path: Path) -> None:
    make_image_tree(tmp_path / "d", each=2)
    index = Index.build(tmp_path / "d", "image", workers=1, cache=tmp_path / "cache")
    index.save(tmp_path / "out" / "index.parquet")
    assert os.listdir(tmp_path / "out") == ["index.parquet"]
    loaded = Index.load(tmp_path / "out" / "index.parquet")
    assert loaded.table.equals(index.table)
    assert (loaded.root, loaded.fingerprint) == (index.root, index.fingerprint)
    assert loaded.rows("test").tolist() == [0, 1]
    assert loaded.rows("train").tolist() == [2, 3, 4, 5]
    (tmp_path / "other.parquet").write_bytes(b"junk")
    for wrong in ("other.parquet", "gone.parquet"):
        with pytest.raises(UserError, match=f"{wrong} is not an index"):
            Index.load(tmp_path / wrong)


def test_known_files_are_not_verified_again(tmp_path: Path, counted: list[str]) -> None:
    root, cache = tmp_path / "d", tmp_path / "cache"
    make_image_tree(root, each=2)
    first = Index.build(root, "image", workers=2, cache=cache)
    assert sorted(counted) == first.column("id")
    counted.clear()
    assert Index.build(root, "image", workers=2, cache=cache).table.equals(first.table)
    assert Index.build(root / "train", "image", workers=2, cache=cache).rows().size == 4  # known by their full path
    assert counted == []
    make_image(root / "train" / "cat" / "1.png", 20, 20, seed=9)
    make_image(root / "train" / "cat" / "new.png")
    changed = Index.build(root, "image", workers=2, cache=cache)
    assert sorted(counted) == ["train/cat/1.png", "train/cat/new.png"]
    assert changed.fingerprint != first.fingerprint
    shutil.rmtree(cache)
    counted.clear()
    assert len(Index.build(root, "image", workers=2, cache=cache)) == len(counted) == 7


def test_an_interrupted_build_goes_on_where_it_was(tmp_path: Path, counted: list[str]) -> None:
    root, cache = tmp_path / "d", tmp_path / "cache"
    for number in range(8):
        make_image(root / f"{number}.png")
    seen: list[int] = []

    def stop(done: int, total: int, bad: int) -> None:
        seen.append(done)
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Index.build(root, "image", workers=1, cache=cache, progress=stop)
    assert seen == [0, 1, 2, 3]
    counted.clear()
    index = Index.build(root, "image", workers=1, cache=cache)
    assert len(counted) == 5
    assert index.rows().size == 8


def test_a_killed_build_goes_on_where_it_was(tmp_path: Path, counted: list[str]) -> None:
    """SIGKILL of the whole process: what was committed by then is known, nothing is damaged, no child lives on."""
    root, cache = tmp_path / "d", tmp_path / "cache"
    for number in range(40):
        make_image(root / f"{number:02}.png")
    code = (
        "import sys, time; from pathlib import Path; from mmssl.data import verify; verify.COMMIT_SECONDS = 0\n"
        "from mmssl.data.index import Index\n"
        "def slow(done, total, bad): print(done, flush=True); time.sleep(0.05)\n"
        f"Index.build(Path({str(root)!r}), 'image', workers=1, cache=Path({str(cache)!r}), progress=slow)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 10:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    index = Index.build(root, "image", workers=1, cache=cache)
    assert 25 <= len(counted) <= 31
    assert index.rows().size == 40


def test_ctrl_c_in_the_command_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    make_image(tmp_path / "d" / "1.png")
    console = Console(record=True, width=200)

    def stop(*_: Any, progress: Any, **__: Any) -> None:
        progress(1, 5, 0)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Index, "build", stop)
        with pytest.raises(KeyboardInterrupt):
            build_index(tmp_path / "d", cache=tmp_path / "cache", console=console)
    assert "1 of 5 files are verified and kept" in console.export_text()
    (tmp_path / "d" / "bad.png").write_bytes(b"")
    index = build_index(
        tmp_path / "d", cache=tmp_path / "cache", console=console, out=tmp_path / "i.parquet", workers=1
    )
    text = console.export_text()
    assert "2 image files, 1 usable" in text
    assert "bad.png: empty file" in text
    assert Index.load(tmp_path / "i.parquet").table.equals(index.table)


def test_row_order_is_that_of_names(tmp_path: Path) -> None:
    names = ["b.png", "a/z.png", "a/b.png", "B.png", "ä.png"]
    for order, folder in ((names, "one"), (names[::-1], "two")):
        for name in order:
            make_image(tmp_path / folder / name)
    one, two = (list(rows_of(tmp_path / folder)) for folder in ("one", "two"))
    assert one == two == sorted(names)


# ---------------------------------------------------------------- sources


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


def test_children_start_without_torch(tmp_path: Path) -> None:
    code = "import sys, mmssl.data.probe; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def test_children_are_gone_when_a_build_ends(tmp_path: Path) -> None:
    for number in range(3):
        make_image(tmp_path / "d" / f"{number}.png")
    Index.build(tmp_path / "d", "image", workers=2, cache=tmp_path / "cache")
    deadline = time.monotonic() + 5
    while _children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _children() == []


def _children() -> list[int]:
    task = Path(f"/proc/self/task/{os.getpid()}/children")
    pids = [int(pid) for pid in task.read_text().split()]
    return [pid for pid in pids if b"mmssl.data.probe" in Path(f"/proc/{pid}/cmdline").read_bytes()]
