"""The preparation scripts in datasets/, run on tiny copies of the layouts that they read."""

import ast
import gzip
import importlib.util
import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

DATASETS = Path(__file__).resolve().parents[2] / "datasets"


def load(name: str, monkeypatch: pytest.MonkeyPatch, **per_class: int) -> ModuleType:
    """The script as a module, expecting tiny counts; the folder has no __init__.py, so it is loaded by its path."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", DATASETS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if per_class:
        monkeypatch.setattr(module, "PER_CLASS", per_class)
    return module


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content
                found[member.name] = content.read()
    return found


def picture(seed: int, kind: str = "PNG", side: int = 32) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(out, kind)
    return out.getvalue()


def write_parquet(path: Path, images: list[bytes], labels: list, column: str = "image") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": image, "path": None} for image in images]
    pq.write_table(pa.table({column: rows, "label": labels}), path)


def write_binary(folder: Path, per_file: int = 2) -> np.ndarray:
    """Every file holds each class once or more; returns the records of data_batch_1."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    first = None
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        records = rng.integers(0, 256, (10 * per_file, 3073), np.uint8)
        records[:, 0] = np.arange(10 * per_file) % 10
        records.tofile(folder / name)
        first = records if first is None else first
    assert first is not None
    return first


def write_idx(folder: Path, train: int = 2, test: int = 1, pack: bool = True) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    first = None
    for stem, per_class in (("train", train), ("t10k", test)):
        pixels = rng.integers(0, 256, (10 * per_class, 28, 28), np.uint8)
        labels = (np.arange(10 * per_class) % 10).astype(np.uint8)
        for name, array in ((f"{stem}-images-idx3-ubyte", pixels), (f"{stem}-labels-idx1-ubyte", labels)):
            raw = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
            (folder / (name + ".gz" * pack)).write_bytes(gzip.compress(raw) if pack else raw)
        first = pixels if first is None else first
    assert first is not None
    return first


def refusal(module: ModuleType, source: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        module.main(["--source", str(source), "--out", str(out)])
    assert stop.value.code == 2
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("column", ["image", "img"])
def test_cifar10_keeps_the_bytes_of_parquet_pictures(tmp_path, monkeypatch, column):
    script = load("cifar10", monkeypatch, train=2, test=1)
    monkeypatch.setattr(script, "SHARD", 8)
    images = [picture(i, "JPEG" if i % 2 else "PNG") for i in range(30)]
    # Sharded and nested as on the Hub; the test labels are names.
    write_parquet(tmp_path / "in/plain/train-00000-of-00002.parquet", images[:10], list(range(10)), column)
    write_parquet(tmp_path / "in/plain/train-00001-of-00002.parquet", images[10:20], list(range(10)), column)
    write_parquet(tmp_path / "in/plain/test-00000-of-00001.parquet", images[20:], list(script.CLASSES), column)
    script.main(["--source", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    train, test = members(tmp_path / "out/train"), members(tmp_path / "out/test")
    assert sorted(p.name for p in (tmp_path / "out/train").iterdir()) == [f"cifar10-000{i}.tar" for i in range(3)]
    assert len(train) == 40
    assert len(test) == 20
    assert train["000000.png"] == images[0]
    assert train["000011.jpg"] == images[11]
    assert train["000011.cls"] == b"automobile"
    assert test["000009.cls"] == b"truck"


def test_cifar10_reads_the_binary_version(tmp_path, monkeypatch):
    script = load("cifar10", monkeypatch, train=10, test=2)
    records = write_binary(tmp_path / "in/cifar-10-batches-bin")
    script.main(["--source", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    train = members(tmp_path / "out/train")
    assert len(train) == 200
    for row in (0, 13):
        assert train[f"{row:06d}.cls"].decode() == script.CLASSES[records[row, 0]]
        pixels = np.asarray(Image.open(io.BytesIO(train[f"{row:06d}.png"])))
        np.testing.assert_array_equal(pixels.transpose(2, 0, 1).ravel(), records[row, 1:])


def test_cifar10_never_opens_a_pickle(tmp_path, monkeypatch, capsys):
    script = load("cifar10", monkeypatch)
    trap = tmp_path / "opened"

    class Trap:
        def __reduce__(self):
            return Path.touch, (trap,)

    (tmp_path / "in").mkdir()
    (tmp_path / "in/data_batch_1").write_bytes(pickle.dumps(Trap()))
    message = refusal(script, tmp_path / "in", tmp_path / "out", capsys)
    assert "binary version" in message
    assert not trap.exists()


def test_cifar10_says_what_is_missing(tmp_path, monkeypatch, capsys):
    script = load("cifar10", monkeypatch, train=2, test=1)
    source, out = tmp_path / "in", tmp_path / "out"
    assert f"{source} is not a folder" in refusal(script, source, out, capsys)
    source.mkdir()
    assert "neither train*.parquet" in refusal(script, source, out, capsys)
    write_parquet(source / "train.parquet", [picture(0)] * 19, [*range(10), *range(9)])
    assert "no test*.parquet" in refusal(script, source, out, capsys)
    write_parquet(source / "test.parquet", [picture(0)] * 10, list(range(10)))
    message = refusal(script, source, out, capsys)
    assert "train split" in message
    assert "19 images, not 20 (truck 1; each should have 2)" in message
    assert not (out / "train").exists()
    write_parquet(source / "train.parquet", [picture(0)] * 20, [*range(10), *range(9), 12])
    assert "Label 12 in row 19 of" in refusal(script, source, out, capsys)
    write_parquet(source / "train.parquet", [picture(0)] * 19 + [b"GIF89a"], [*range(10)] * 2)
    assert "neither a PNG nor a JPEG" in refusal(script, source, out, capsys)
    write_parquet(source / "train.parquet", [picture(0)] * 20, [*range(10)] * 2, column="x")
    assert "has the columns x, label" in refusal(script, source, out, capsys)
    (source / "train.parquet").write_bytes(b"not parquet")
    assert "cannot be read as parquet" in refusal(script, source, out, capsys)
    write_parquet(source / "train.parquet", [picture(0)] * 20, [*range(10)] * 2)
    script.main(["--source", str(source), "--out", str(out)])
    assert "already has a folder train" in refusal(script, source, out, capsys)


def test_cifar10_names_missing_and_damaged_batches(tmp_path, monkeypatch, capsys):
    script = load("cifar10", monkeypatch, train=10, test=2)
    write_binary(tmp_path / "in")
    (tmp_path / "in/data_batch_3.bin").rename(tmp_path / "third")
    assert "lacks data_batch_3.bin" in refusal(script, tmp_path / "in", tmp_path / "out", capsys)
    (tmp_path / "in/data_batch_3.bin").write_bytes((tmp_path / "third").read_bytes()[:-5])
    assert "no multiple of 3,073" in refusal(script, tmp_path / "in", tmp_path / "out", capsys)


@pytest.mark.parametrize("pack", [True, False])
def test_fashion_mnist_keeps_every_pixel(tmp_path, monkeypatch, pack):
    script = load("fashion_mnist", monkeypatch, train=2, test=1)
    pixels = write_idx(tmp_path / "in", pack=pack)
    script.main(["--source", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    train = members(tmp_path / "out/train")
    assert len(train) == 40
    assert len(members(tmp_path / "out/test")) == 20
    for row in range(20):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(train[f"{row:06d}.png"]))), pixels[row])
        assert train[f"{row:06d}.cls"].decode() == script.CLASSES[row % 10]


def test_fashion_mnist_says_what_is_wrong(tmp_path, monkeypatch, capsys):
    script = load("fashion_mnist", monkeypatch, train=2, test=1)
    source, out = tmp_path / "in", tmp_path / "out"
    assert "is not a folder" in refusal(script, source, out, capsys)
    write_idx(source)
    labels = source / "t10k-labels-idx1-ubyte.gz"
    whole = labels.read_bytes()
    labels.unlink()
    assert "lacks t10k-labels-idx1-ubyte.gz" in refusal(script, source, out, capsys)
    labels.write_bytes(whole[:-9])
    assert f"{labels} cannot be unpacked" in refusal(script, source, out, capsys)
    labels.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    assert "announces 10 bytes and has 9" in refusal(script, source, out, capsys)
    labels.write_bytes((source / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert "not an idx file of bytes with 1 dimensions" in refusal(script, source, out, capsys)
    write_idx(source, train=1)
    assert "10 images, not 20" in refusal(script, source, out, capsys)
    assert not (out / "test").exists()


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist"])
def test_scripts_run_from_a_shell(tmp_path, name):
    command = [sys.executable, str(DATASETS / f"{name}.py"), "--source", str(tmp_path / "none"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("--source")
    assert "Traceback" not in done.stderr


def test_every_script_stands_in_the_list_and_has_a_card():
    listed = (DATASETS / "README.md").read_text(encoding="utf-8")
    for path in sorted(DATASETS.glob("*.py")):
        if path.name == "organise.py":  # what the others share
            continue
        assert f"[{path.name}]({path.name})" in listed
        card = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if path.name != "make_samples.py":  # its cards are in samples/README.md
            assert all(f"\n    {part}" in card for part in ("Content", "Source", "Licence", "Splits", "Disk")), (
                path.name
            )


def test_datasets_is_no_package():
    # A package named `datasets` would hide the library of that name.
    assert not (DATASETS / "__init__.py").exists()
