"""Claim: killed anywhere, the making of units goes on to the units of one that was left alone, and makes nothing again
that was finished; files that cannot be read are left out and bounded; what goes wrong is told in one sentence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mmssl.adapters.specs import AudioSpec
from mmssl.data.sources import open_source
from mmssl.errors import UserError
from mmssl.targets import joining, make, reading, work
from mmssl.targets.codebook import Codebook
from mmssl.targets.features import MfccFeatures
from mmssl.targets.units import Units
from mmssl.targets.work import Work
from tests.media import tone
from tests.targets.making import content, kmeans

pytestmark = pytest.mark.usefixtures("chunks")


# ------------------------------------------------------------------------------------------------ stopped and resumed


class Killed(BaseException):
    """As a signal would: nothing of ours catches it."""


def killing(act: Callable[..., Any], at: int, after: bool) -> Callable[..., Any]:
    calls = 0

    def instead(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at and not after:
            raise Killed
        done = act(*given, **named)
        if calls == at:
            raise Killed
        return done

    return instead


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_every_stage(data: Path, made: Units, tmp_path: Path, after: bool) -> None:
    """Before and after each thing that is written; what was finished is not made again."""
    out = tmp_path / "out"
    puts: list[str] = []
    kept = Work.put

    def counted(self: Work, stage: str, chunk: work.Chunk, *given: Any) -> None:
        kept(self, stage, chunk, *given)
        puts.append(f"{stage} {chunk.number}")

    for holder, name, at in (
        (Work, "begin", 1),
        (Work, "put", 1),
        (Work, "put", 2),
        (make, "fit_stream", 1),
        (Codebook, "save", 1),
        (Work, "put", 3),
        (Work, "put", 2),
        (joining, "write_units", 1),
        (make, "measure", 1),
        (Work, "remove", 1),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Work, "put", counted)
            patch.setattr(holder, name, killing(getattr(holder, name), at, after))
            with pytest.raises(Killed):
                kmeans(data, out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Work, "put", counted)
        again = kmeans(data, out)
    assert content(again) == content(made)
    assert sorted(puts) == sorted(set(puts))  # each chunk once
    assert sum(put.startswith("labels") for put in puts) == 6
    assert sorted(os.listdir(out)) == [
        "codebook.safetensors",
        "index.parquet",
        "offsets.npy",
        "units.json",
        "units.npy",
    ]


# ---------------------------------------------------------------------------------------------------- what goes wrong


def spoil(file: Path) -> None:
    """Another content of equal size and time, which the index does not see."""
    known = file.stat()
    file.write_bytes(b"\0" * known.st_size)
    os.utime(file, ns=(known.st_atime_ns, known.st_mtime_ns))


def test_unreadable_in_the_middle(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    ids = open_source(folder, "audio").index.column("id")  # type: ignore[attr-defined]
    spoil(folder / ids[10])
    with pytest.raises(UserError, match=rf"1 of 27 files could not be read \({ids[10]}: .*raise --max-bad-share"):
        kmeans(folder, tmp_path / "strict", max_bad_share=0.01)
    units = kmeans(folder, tmp_path / "units", max_bad_share=0.1)
    assert units.about["recordings"] == 26
    assert units.about["skipped"] == 1
    [line] = [json.loads(line) for line in (units.folder / "skipped.jsonl").read_text().splitlines()]
    assert line["id"] == ids[10]
    assert ids[10] in line["reason"]
    assert ids[10] not in units
    assert all(id in units for id in ids if id != ids[10])


def test_an_unreadable_file_that_would_be_drawn_first(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    source = open_source(folder, "audio")
    first = source.id(int(np.random.default_rng(0).permutation(source.rows("train"))[0]))
    spoil(folder / first)
    patches = {"features": "patches", "input": AudioSpec(mels=16, frames=32), "clusters": 4, "frames": 30}
    units = kmeans(folder, tmp_path / "units", max_bad_share=0.1, **patches)
    assert first not in units
    assert units.about["skipped"] == 1
    assert units.about["fit"]["features"] > 10


def test_a_decoder_that_hangs(data: Path, tmp_path: Path) -> None:
    """The file becomes a pipe into which nobody writes."""
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    source = open_source(folder, "audio")
    file = folder / source.id(4)
    features = MfccFeatures()
    groups = [chunk.parts for chunk in work.chunks_of(source, source.rows(), features.timing)]
    file.unlink()
    os.mkfifo(file)
    read = reading.features_of_parts(
        source, groups, features, device=torch.device("cpu"), workers=1, timeout=10.0
    )  # starting a worker counts, too
    with pytest.raises(UserError, match=rf"{source.id(4)} has been read for 10 s"):
        list(read)


def test_one_sentence_each(data: Path, made: Units, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds units of other settings or data"):
        kmeans(data, made.folder, clusters=13)
    with pytest.raises(UserError, match="leave out --features"):
        kmeans(data, tmp_path, codebook=made.folder, features="mfcc")
    with pytest.raises(UserError, match="needs --encoder and --layer"):
        kmeans(data, tmp_path, features="layer", layer=6)
    with pytest.raises(UserError, match="belongs to --features layer"):
        kmeans(data, tmp_path, layer=6)
    with pytest.raises(UserError, match="--clusters 0: give 1 or more"):
        kmeans(data, tmp_path, clusters=0)
    for clusters in (3500, 10000):
        with pytest.raises(UserError, match=f"{clusters} clusters got 2... features .* or ask for fewer"):
            kmeans(data, tmp_path / f"many{clusters}", clusters=clusters)
    with pytest.raises(UserError, match="was begun with another clusters"):
        kmeans(data, tmp_path / "many10000", clusters=20)
    (tmp_path / "labels.csv").write_text("id,label\na,b\n")
    with pytest.raises(UserError, match="columns id, start, end, label"):
        kmeans(data, made.folder, labels=tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text("id,start,end\n")
    with pytest.raises(UserError, match=r"labels\.csv holds no labels of frames.* id, start, end, label"):
        kmeans(data, made.folder, labels=tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text("id,start,end,label\nnobody,0,1,b\n")
    with pytest.raises(UserError, match="belong to none of the units"):
        kmeans(data, made.folder, labels=tmp_path / "labels.csv")
    soundfile.write(tmp_path / "short.wav", tone(440, 0.02, 16000), 16000)
    with pytest.raises(UserError, match=r"Nothing in|as long as one window"):
        kmeans(tmp_path, tmp_path / "none")
    with pytest.raises(UserError, match="as long as one window"):
        kmeans(tmp_path, tmp_path / "empty", codebook=made.folder)


def test_units_that_were_changed_are_not_found_made(data: Path, made: Units, tmp_path: Path) -> None:
    shutil.copytree(made.folder, tmp_path / "units")
    labels = np.load(tmp_path / "units/units.npy")
    labels[100] += 1
    np.save(tmp_path / "units/units.npy", labels)
    with pytest.raises(UserError, match=r"units\.npy has other content than was written: remove the folder"):
        kmeans(data, tmp_path / "units")


def test_one_command_at_a_time(data: Path, tmp_path: Path) -> None:
    busy = Work(tmp_path)
    with pytest.raises(UserError, match="Another command makes units"):
        kmeans(data, tmp_path)
    busy.close()
    assert kmeans(data, tmp_path).codes == 12
