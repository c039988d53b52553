"""`mmssl prepare`: a copy of a folder of videos from which clips are read several times faster.

The copy has the same tree, file names, labels and splits, hence the same ids; every video in it is an mp4, whatever its
extension says (decoders look at the content).
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from mmssl.data.children import Answer, Job, run_jobs
from mmssl.data.index import Index
from mmssl.data.indexing import build_index, show_progress
from mmssl.data.listing import list_media, walk
from mmssl.data.media import Record
from mmssl.data.metadata import METADATA_NAMES
from mmssl.data.prepared import STATE, Prepared
from mmssl.data.repack import Output, members, mirrored, sharded, write_tar
from mmssl.data.transcode import Encoding
from mmssl.errors import UserError
from mmssl.files import writing

VERSION = 1
"""Of what is written: raised when the same settings give other files, so that those of before are made again."""
LOOSE = ".loose"
"""Folder in OUT for videos that wait for the others of their tar."""
PROBLEMS = "problems.csv"
SECONDS_A_MIB = 20.0
"""Time limit a file grows by its size."""


@dataclass
class PrepareSettings:
    """Make a copy of a folder of videos from which clips are read several times faster."""

    data: tyro.conf.Positional[Path]
    """Folder of videos (with tars, labels and splits as for `mmssl pretrain`)."""
    out: Path
    """Folder for the copy; the same command goes on where it was stopped."""
    short_side: int = 256
    """Pixels of the shorter side; smaller videos are not enlarged."""
    key_frames: int = 16
    """Frames from one key frame to the next."""
    rate: float | None = None
    """Frames/s; each video's own average if not given."""
    sound: Literal["keep", "drop"] = "keep"
    """Keep the sound (as aac) or drop it."""
    crf: int = 20
    """Quality, 0 to 51: lower is better and larger."""
    tars: int | None = None
    """Pack the videos into WebDataset tars of so many each, instead of single files."""
    workers: int | None = None
    """Videos that are worked on at once; one a core if not given."""
    timeout: float = 120.0
    """Seconds after which a video counts as hanging its decoder; 20 more a MiB."""

    def __post_init__(self) -> None:
        for name, low, high in (("short_side", 16, 8192), ("key_frames", 1, 1000), ("crf", 0, 51), ("tars", 1, 10**9)):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UserError(f"--{name.replace('_', '-')} {value} is not between {low} and {high}.")
        if self.rate is not None and not 0 < self.rate <= 1000:
            raise UserError(f"--rate {self.rate:g} is not between 0 and 1000 frames/s.")

    def encoding(self) -> Encoding:
        return Encoding(self.short_side, self.key_frames, self.rate, self.sound == "keep", self.crf)


def run_prepare(settings: PrepareSettings, console: Console | None = None, cache: Path | None = None) -> Index:
    """Write the copy, then verify it, so that pre-training on it starts at once; returns its index.

    What cannot be used is left out and listed in OUT/problems.csv. Ctrl-C loses nothing that is finished. Raises
    UserError where DATA holds no video, OUT is in the way or cannot be written, or another command writes to it.
    """
    console = console or Console()
    data, out = settings.data.expanduser().absolute(), settings.out.expanduser().absolute()
    records = list_media(data, "video").records
    if not records:
        raise UserError(f"{data} holds no video files: give the folder that holds them.")
    _check_out(data, out)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with closing(Prepared(out)) as state:
        work = _Work(settings, data, out, records, state)
        _sweep(out)
        try:
            work.run(console)
        except KeyboardInterrupt:
            console.print(
                f"Stopped: {work.done} of {len(records)} videos are done; the same command goes on from there."
            )
            raise
        finally:
            _sweep(out)
            work.write_problems()
        if settings.tars is None:
            _copy_metadata(data, out)
        shutil.rmtree(out / LOOSE, ignore_errors=True)
        work.summarise(console)
    return build_index(out, "video", workers=settings.workers, cache=cache, console=console)


def _check_out(data: Path, out: Path) -> None:
    inner, outer = os.path.realpath(out), os.path.realpath(data)
    if inner == outer or outer.startswith(inner + os.sep) or inner.startswith(outer + os.sep):
        raise UserError(f"--out {out} and {data} lie in one another: give a folder elsewhere.")
    if out.is_dir() and not (out / STATE).exists() and any(out.iterdir()):
        raise UserError(f"--out {out} holds other files: name a new folder, so that nothing of yours is replaced.")


def _sweep(out: Path) -> None:
    """Remove what processes that were killed had begun to write."""
    for part in out.rglob(".*.part"):
        part.unlink(missing_ok=True)


def _copy_metadata(data: Path, out: Path) -> None:
    """As it is: a video that could not be used is then still counted as missing."""
    for path in walk(data):
        if path.name.lower() in METADATA_NAMES:
            target = out / path.relative_to(data)
            with writing(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target.with_name(f".{target.name}.part"))
                os.replace(target.with_name(f".{target.name}.part"), target)


class _Work:
    """All videos of one folder, with what became of them."""

    def __init__(
        self, settings: PrepareSettings, data: Path, out: Path, records: list[Record], state: Prepared
    ) -> None:
        self.settings, self.data, self.out, self.records, self.state = settings, data, out, records, state
        self.row_of = {record.id: row for row, record in enumerate(records)}
        self.outputs = mirrored(records) if settings.tars is None else sharded(records, settings.tars)
        self.output = {row: output for output in self.outputs for row in output.rows}
        self.problems = {row: record.problem for row, record in enumerate(records) if record.problem is not None}
        self.notes: dict[int, str] = {}
        self.done = self.before = 0

    def run(self, console: Console) -> None:
        """Make every output that is not there yet."""
        self._refuse_leftovers()
        unfinished = [output for output in self.outputs if not self._finished(output.path, self._key(output))]
        todo = [
            row
            for output in unfinished
            for row in output.rows
            if row not in self.problems and not self._finished(self._place(row), self._row_key(row))
        ]
        self.done = self.before = len(self.records) - len(todo)
        left = Counter(self.output[row].path for row in todo)
        for output in unfinished:
            if not left[output.path]:
                self._finish(output)
        workers = self.settings.workers or len(os.sched_getaffinity(0))
        with (
            show_progress(console, "preparing", "prepared") as show,
            closing(run_jobs("mmssl.data.transcode", map(self._job, todo), workers=workers)) as answers,
        ):
            show(self.done, len(self.records), len(self.problems))
            for row, answer in answers:
                self._take(row, answer)
                self.done += 1
                left[self.output[row].path] -= 1
                if not left[self.output[row].path]:
                    self._finish(self.output[row])
                show(self.done, len(self.records), len(self.problems))

    def _refuse_leftovers(self) -> None:
        """Files of OUT that this command would not make would be trained on all the same."""
        ours = {output.path for output in self.outputs}
        others = [path for path in self.state.done if path not in ours and (self.out / path).is_file()]
        others = [path for path in others if not path.startswith(LOOSE)]
        if others:
            raise UserError(
                f"{self.out} holds {len(others)} files of an earlier run that are not part of this one ({others[0]}, "
                "...): remove them, or name a new folder."
            )

    def _job(self, row: int) -> Job:
        record = self.records[row]
        content = {
            "record": asdict(record),
            "root": str(self.data),
            "target": str(self.out / self._place(row)),
            "encoding": asdict(self.settings.encoding()),
        }
        return Job(row, content, self.settings.timeout + SECONDS_A_MIB * record.size / 2**20)

    def _take(self, row: int, answer: Answer) -> None:
        if "stop" in answer:
            raise UserError(answer["stop"])
        if "problem" in answer:
            self.problems[row] = answer["problem"]
        else:
            if answer["note"] is not None:
                self.notes[row] = answer["note"]
            self.state.add(self._place(row), self._row_key(row), {}, self._by_id(self.notes, (row,)))

    def _finish(self, output: Output) -> None:
        """All that could be prepared is there: pack it. An earlier copy of what is no longer good is removed."""
        if output.kind == "video":
            if output.rows[0] in self.problems:
                (self.out / output.path).unlink(missing_ok=True)
            return
        videos = {row: self.out / self._place(row) for row in output.rows if row not in self.problems}
        write_tar(self.out / output.path, members(output, self.records, self.data, videos))
        problems, notes = (self._by_id(found, output.rows) for found in (self.problems, self.notes))
        self.state.add(output.path, self._key(output), problems, notes)
        for video in videos.values():
            video.unlink(missing_ok=True)

    def _place(self, row: int) -> str:
        """Where the prepared video goes, relative to OUT."""
        if self.output[row].kind == "video":
            return self.output[row].path
        return f"{LOOSE}/{hashlib.sha256(self.records[row].id.encode()).hexdigest()[:24]}.mp4"

    def _row_key(self, row: int) -> str:
        record = self.records[row]
        return _hash([VERSION, asdict(self.settings.encoding()), record.id, record.size, record.mtime_ns])

    def _key(self, output: Output) -> str:
        """Of all that the output depends on: settings, sources, and for a tar the labels in it."""
        if output.kind == "video":
            return self._row_key(output.rows[0])
        return _hash([output.kind, [(self._row_key(row), self.records[row].label) for row in output.rows]])

    def _finished(self, path: str, key: str) -> bool:
        """Whether it is there; what was said about it then is said again."""
        done = self.state.done.get(path)
        if done is None or done["key"] != key or not (self.out / path).is_file():
            return False
        for known, said in ((self.problems, done["problems"]), (self.notes, done["notes"])):
            known |= {self.row_of[name]: text for name, text in said.items()}
        return True

    def _by_id(self, said: dict[int, str], rows: Iterable[int]) -> dict[str, str]:
        return {self.records[row].id: said[row] for row in rows if row in said}

    def write_problems(self) -> None:
        """The table of what could not be used, or not all of it; none where all is well."""
        file = self.out / PROBLEMS
        said = self.notes | self.problems
        if not said:
            file.unlink(missing_ok=True)
            return
        part = file.with_name(f".{file.name}.part")
        with writing(file):
            with open(part, "w", encoding="utf-8", newline="") as table:
                rows = csv.writer(table)
                rows.writerow(("file", "problem"))
                rows.writerows((self.records[row].id, said[row]) for row in sorted(said))
            os.replace(part, file)

    def summarise(self, console: Console) -> None:
        good = [row for row in range(len(self.records)) if row not in self.problems]
        before = sum(self.records[row].size for row in good)
        after = sum(
            (self.out / output.path).stat().st_size for output in self.outputs if (self.out / output.path).exists()
        )
        again = f" ({self.before} were done before)" if self.before else ""
        console.print(f"{len(good)} videos prepared{again}: {before / 1e6:.1f} MB became {after / 1e6:.1f} MB")
        if self.problems or self.notes:
            console.print(
                f"{len(self.problems)} videos cannot be used and are left out, {len(self.notes)} lack something: "
                f"see {self.out / PROBLEMS}",
                soft_wrap=True,
            )


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
