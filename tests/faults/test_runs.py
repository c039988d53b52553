"""What can go wrong around a run ends in one clear sentence that names the thing and the remedy, with every earlier
checkpoint intact; a broken checkpoint or a bad batch does not end it at all.

The disk is filled for real where that is possible (a file size limit of the process, /dev/full), and OUT is made
read-only for another user, since root may write anywhere.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch

from mmssl import cli
from mmssl.errors import UserError
from mmssl.files import write_json, writing
from mmssl.training.checkpoint import problem_of
from mmssl.training.log import JsonLines
from tests.runs import end_at, make_media, metrics, options, pretrain, start, trace


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_media(tmp_path_factory.mktemp("data"), "image")
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    pretrain("image/mae", data, out, "--save-every", "2", "--keep", "3")
    return out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The sentence of a command that ends with status 2."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    assert caught.value.code == 2
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


# ------------------------------------------------------------------------------------------------------- command line


def test_unknown_option_names_the_nearest(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, *options("image/mae", data, tmp_path / "run", "--encoder.widht", "64"))
    assert "--encoder.widht" in said
    assert "--encoder.width" in said.replace("--encoder.widht", "")
    assert not (tmp_path / "run").exists()


def test_ill_typed_option(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, *options("image/mae", data, tmp_path / "run", "--batch-size", "many"))
    assert "--batch-size" in said
    assert "many" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pretrain", "image/mea"), ("image/mea", "image/mae")),
        (("pretrain", "videomae"), ("video/videomae",)),
        (("pretrian",), ("pretrian", "pretrain")),
        (("pretrain", "--data", "x"), ("recipe comes first",)),
    ],
)
def test_unknown_names(arguments: tuple[str, ...], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, *arguments)
    assert all(word in said for word in words), said


def test_settings_that_contradict(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, word in [
        (["--accumulate", "3"], "--batch-size 8"),
        (["--batch-size", "400"], "--batch-size"),
        (["--steps", "0"], "--steps"),
        (["--warmup", "40"], "--warmup"),
        (["--encoder.arch", "resnet18"], "ViT"),
    ]:
        assert word in refused(capsys, *options("image/mae", data, tmp_path / "run", *more))


def test_wrong_modality_of_init(data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sounds = make_media(tmp_path / "sounds", "audio", 8)
    said = refused(capsys, *options("audio/mae", sounds, tmp_path / "run", "--init", str(finished / "encoder")))
    assert "image" in said
    assert "audio" in said


# ----------------------------------------------------------------------------------------------------------------- OUT


def test_a_run_older_than_a_setting_has_its_default(
    data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    content = json.loads((out / "recipe.json").read_text())
    assert content["settings"].pop("schedule") == "cosine"
    (out / "recipe.json").write_text(json.dumps(content))
    said = refused(capsys, *options("image/mae", data, out, "--schedule", "linear"))
    assert "--schedule cosine, and this command says linear" in said
    pretrain("image/mae", data, out)


def test_another_recipes_run_is_refused(data: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, *options("image/simclr", data, finished))
    assert "image/mae" in said
    assert "image/simclr" in said
    assert "choose another --out" in said


def test_another_setting_is_refused(data: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, *options("image/mae", data, finished, "--encoder.width", "64"))
    assert "--encoder.width 32" in said
    assert "64" in said
    pretrain("image/mae", data, finished, "--save-every", "3", "--log-every", "5", "--keep", "3")  # these may differ


def test_read_only_out(data: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("/var/tmp") / f"mmssl-locked-{os.getpid()}"
    folder.mkdir(mode=0o555)
    user = os.geteuid()
    try:
        os.seteuid(65534 if user == 0 else user)  # root may write anywhere
        said = refused(capsys, *options("image/mae", data, folder / "run"))
        existing = refused(capsys, *options("image/mae", data, folder))
    finally:
        os.seteuid(user)
        folder.rmdir()
    for sentence in (said, existing):
        assert str(folder) in sentence
        assert "permission is denied: choose another --out" in sentence


def test_out_inside_a_file(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    said = refused(capsys, *options("image/mae", data, tmp_path / "file" / "run"))
    assert "choose another --out" in said


def test_full_disk_keeps_earlier_checkpoints(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    process = start("image/mae", data, out, "--save-every", "2", "--steps", "40", "--batch-size", "2")
    end_at(process, out, 5, signal.SIGKILL)
    process.wait()
    before = sorted(path.name for path in (out / "checkpoints").glob("step-*"))
    assert before
    # Larger than a line of metrics, smaller than the weights.
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, limit[1]))
    try:
        said = refused(
            capsys, *options("image/mae", data, out, "--save-every", "2", "--steps", "40", "--batch-size", "2")
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "could not be written" in said
    assert "give the same command again" in said
    assert sorted(path.name for path in (out / "checkpoints").iterdir() if path.name.startswith("step-")) == before
    assert not list((out / "checkpoints").glob(".*"))  # nothing half written takes up room
    assert all(problem_of(out / "checkpoints" / name) is None for name in before)


def test_full_device() -> None:
    with pytest.raises(UserError, match="the disk is full: free some space"), writing(Path("/dev/full")):
        Path("/dev/full").write_text("x")
    log = JsonLines(Path("/dev/full"))
    with pytest.raises(UserError, match="the disk is full"):
        log.append({"step": 1})


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


# --------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "no state"])
def test_broken_newest_checkpoint(
    damage: str, data: Path, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    newest = out / "checkpoints" / "step-00000006"
    weights = newest / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "changed":
        content = bytearray(weights.read_bytes())
        content[-100] ^= 1
        weights.write_bytes(content)
    elif damage == "missing":
        weights.unlink()
    else:
        (newest / "state.json").write_text("{")
    pretrain("image/mae", data, out, "--save-every", "2", "--keep", "3")
    assert "step-00000006" in caplog.text
    assert "falling back" in caplog.text
    assert problem_of(newest) is None
    assert [line["step"] for line in metrics(out)] == [1, 2, 3, 4, 5, 6]
    assert trace(out)[4:] == trace(finished)[4:]


def test_all_checkpoints_broken(data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Starting afresh would overwrite what might still be saved by hand."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    for weights in out.glob("checkpoints/*/model.safetensors"):
        weights.write_bytes(b"")
    said = refused(capsys, *options("image/mae", data, out, "--save-every", "2", "--keep", "3"))
    assert "No checkpoint" in said
    assert "remove that folder" in said


def test_changed_data_is_refused(
    data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = tmp_path / "data"
    shutil.copytree(data, more)
    pretrain("image/mae", more, tmp_path / "run", "--steps", "2")
    for file in list(more.rglob("*.png"))[:2]:
        file.unlink()
    said = refused(capsys, *options("image/mae", more, tmp_path / "run", "--steps", "2"))
    assert "12" in said
    assert "10" in said


# --------------------------------------------------------------------------------------------- bad batches, bad files


def test_nan_batch_is_skipped_and_counted(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmssl.objectives.masked_autoencoder import MaskedAutoencoder

    plain, calls = MaskedAutoencoder.loss, []

    def spoilt(self: MaskedAutoencoder, batch):  # type: ignore[no-untyped-def]
        output = plain(self, batch)
        calls.append(1)
        return type(output)(output.loss * (float("nan") if len(calls) == 3 else 1.0), output.count, output.metrics)

    monkeypatch.setattr(MaskedAutoencoder, "loss", spoilt)
    pretrain("image/mae", data, tmp_path / "run", "--encoder.drop-path", "0")
    lines = metrics(tmp_path / "run")
    assert [line["skipped_steps"] for line in lines] == [0, 0, 1, 1, 1, 1]
    assert lines[2]["loss"] is None  # JSON has no NaN
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in lines[3:])


def test_endless_nan_stops(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmssl.objectives.masked_autoencoder import MaskedAutoencoder

    plain = MaskedAutoencoder.loss

    def spoilt(self: MaskedAutoencoder, batch):  # type: ignore[no-untyped-def]
        output = plain(self, batch)
        return type(output)(output.loss * float("inf"), output.count, output.metrics)

    monkeypatch.setattr(MaskedAutoencoder, "loss", spoilt)
    said = refused(capsys, *options("image/mae", data, tmp_path / "run", "--steps", "90", "--batch-size", "2"))
    assert "not finite" in said
    assert "--base-lr" in said
    assert metrics(tmp_path / "run")[-1]["step"] == 50


def test_bad_files_are_listed_and_above_the_share_the_run_stops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_media(tmp_path / "data", "image")
    (folder / "class0" / "broken.png").write_bytes(b"no picture")
    (folder / "class0" / "empty.png").write_bytes(b"")
    said = refused(capsys, *options("image/mae", folder, tmp_path / "run"))
    assert "broken.png" in said
    assert "--max-bad-share" in said
    pretrain("image/mae", folder, tmp_path / "run", "--max-bad-share", "0.5", "--steps", "1")
    listed = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert {Path(entry["file"]).name for entry in listed} == {"broken.png", "empty.png"}
    assert all(entry["reason"] for entry in listed)


def test_file_that_breaks_during_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_media(tmp_path / "data", "image")
    pretrain("image/mae", folder, tmp_path / "run", "--steps", "1", "--batch-size", "12")
    assert metrics(tmp_path / "run")[0]["skipped_files"] == 0
    assert not (tmp_path / "run" / "skipped.jsonl").exists()
    from mmssl.training import loop

    opened = loop.open_source

    def broken_afterwards(*arguments, **keywords):  # type: ignore[no-untyped-def]
        source = opened(*arguments, **keywords)
        (folder / "class0" / "0.png").write_bytes(b"")
        return source

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "open_source", broken_afterwards)
        pretrain(
            "image/mae", folder, tmp_path / "other", "--steps", "2", "--batch-size", "12", "--max-bad-share", "0.1"
        )
    listed = [json.loads(line) for line in (tmp_path / "other" / "skipped.jsonl").read_text().splitlines()]
    assert [(entry["step"], Path(entry["file"]).name) for entry in listed] == [(1, "0.png"), (2, "0.png")]
    assert metrics(tmp_path / "other")[-1]["skipped_files"] == 2


def test_dry_run_leaves_no_run(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain("image/mae", data, tmp_path / "run", "--dry-run")
    said = capsys.readouterr().out
    assert "view view uint8 [8, 3, 32, 32]" in said
    for word in ("parameters", "expected time", "peak memory", '"batch_size": 8'):
        assert word in said
    assert list((tmp_path / "run" / "dry-run" / "pictures").glob("*.png"))
    assert not (tmp_path / "run" / "recipe.json").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()
