"""Claims: report.html stands alone (no reference leaves the page, every data URI decodes), shows the very figures of
the run's files, escapes what files say, stays small and quick, and tolerates what a killed or unfinished run leaves."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmssl.adapters.specs import ImageSpec
from mmssl.cli import main
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.report.build import Album, collapse_verdict, write_report, write_summary
from mmssl.report.reading import read_evaluations, read_metrics, read_skipped
from tests.media import make_image_tree
from tests.report.runs import LOSSES, write_evaluation, write_run

VOID = {"meta", "img", "br", "circle", "line", "path", "polyline", "polygon"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; raises on tags that are not closed in order."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append(" ".join(data.split()))

    @property
    def images(self) -> list[str]:
        return [str(attributes["src"]) for tag, attributes in self.tags if tag == "img"]

    def points(self, chart: str) -> list[list[float]]:
        """The x,y pairs of the first curve of a chart."""
        figure = self.source.split(f"<figcaption>{chart}</figcaption>")[1].split("</figure>")[0]
        curve = re.search(r'<polyline[^>]*points="([^"]*)"', figure)
        assert curve is not None
        return [[float(number) for number in point.split(",")] for point in curve[1].split()]


def assert_stands_alone(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base"), tag
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href", "background"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:"), (tag, name, value)
    assert "url(" not in page.source
    assert "@import" not in page.source
    assert "http" not in page.source
    assert page.images
    for uri in page.images:
        head, content = uri.split(",", 1)
        image = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
        image.load()
        assert head == f"data:image/{(image.format or '').lower()};base64"


def test_the_page_stands_alone_and_shows_the_figures_of_the_files(tmp_path: Path) -> None:
    out = write_run(tmp_path / "run")
    page = Page(write_report(out))
    assert_stands_alone(page)
    assert repr(LOSSES[-1]) in page.text  # the last whole line, in full precision
    assert "0.5772" in page.text
    assert "from 2.718, lowest 0.5772" in page.text
    seconds = [10 / (100 + i) for i in range(4)]
    waiting = sum(0.125 * i * second for i, second in enumerate(seconds)) / sum(seconds)
    assert f"{100 * waiting:.1f} %" in page.text
    assert "61.5 %" in page.text  # trained
    assert "41.0 %" in page.text  # mean of two untrained encoders
    assert "43.8 %" in page.text  # majority
    assert "50.0 %" in page.text  # balanced accuracy of guessing among two classes
    assert "+5.0 to +20.0" in page.text  # hull over both untrained encoders
    assert "better than untrained" in page.text
    assert "no measurable difference" in page.text  # balanced: interval holds zero
    assert f"mmssl pretrain image/mae --data photos --out {out}" in page.text
    assert "encoder.width" in page.text
    assert page.source.count("</script>") == 0
    assert "a/<script>.png" in page.text  # escaped, so it is text
    assert "3 file(s) could not be used:" in page.text
    assert "2.14.1" in page.text


def test_the_loss_curve_is_that_of_metrics_jsonl(tmp_path: Path) -> None:
    points = Page(write_report(write_run(tmp_path / "run"))).points("loss")
    assert len(points) == len(LOSSES)
    x, y = zip(*points, strict=True)
    for i in range(3):
        assert x[i + 1] - x[i] == pytest.approx((x[3] - x[0]) / 3, abs=0.15)
        drawn = (y[i] - y[3]) / (y[0] - y[3])  # affine in the loss, whatever the axis
        assert drawn == pytest.approx((LOSSES[i] - LOSSES[3]) / (LOSSES[0] - LOSSES[3]), abs=0.003)


def test_latest_and_first_pictures(tmp_path: Path) -> None:
    page = Page(write_report(write_run(tmp_path / "run")))
    captions = [text for text in page.text if text.startswith("step ")]
    assert captions[0] == "step 40 · left to right: original, masked"
    assert captions[1] == "step 10 · left to right: original, masked"
    assert len(page.images) == 6


def test_a_summary_holds_every_run(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", "video/videomae"),
        write_run(tmp_path / "c", "audio/mae"),
    ]
    write_evaluation(runs[1] / "linear.json", "linear", gain=(-0.3, -0.1))
    (runs[2] / "linear.json").unlink()
    page = Page(write_summary(runs, tmp_path / "report.html"))
    assert_stands_alone(page)
    table = page.text[: page.text.index("The runs")]
    assert [table.index(word) for word in ("image", "video", "audio")] == sorted(
        table.index(word) for word in ("image", "video", "audio")
    )
    assert "videomae" in table
    assert "worse than untrained" in table
    assert "not evaluated" in table
    assert len([tag for tag, attributes in page.tags if attributes.get("class") == "run"]) == 3


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with pytest.raises(FileNotFoundError, match="holds no run"):
        write_report(out)
    (out / "recipe.json").write_text(json.dumps({"recipe": "image/simclr", "settings": {}, "versions": {}}))
    page = Page(write_report(out))
    assert "Training" not in page.text
    assert "Skipped files" not in page.text
    (out / "metrics.jsonl").write_text('{"step": 1, "loss": null}\n')
    (out / "linear.json").write_text('{"trained": {"top1"')
    (out / "pictures").mkdir()
    (out / "pictures" / "step-000001-views.json").write_text("{")
    (out / "neighbours.json").write_text('{"problem": "The encoder gives features that are not finite."}')
    page = Page(write_report(out))
    assert "None: The encoder gives features that are not finite." in page.text


def test_metrics_of_a_run_that_went_back(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "loss": 3.0}\n'
        '{"step": 2, "loss": 20.0, "extra": 7}\nrubbish\n\n{"step": 4, "loss": null}\n{"step": 5'
    )
    metrics = read_metrics(file)
    assert metrics.step.tolist() == [1, 2, 3, 4]
    assert metrics.columns["loss"][:3].tolist() == [1, 20, 3]
    assert metrics.values("extra").tolist() == [7]
    assert metrics.last == {"step": 4, "loss": None}
    assert metrics.unreadable == 2


def test_a_long_run_is_drawn_quickly_and_keeps_its_spikes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with (out / "metrics.jsonl").open("w") as file:
        for step in range(100_000):
            loss = 500.0 if step == 65_432 else 100.0 + step % 7
            file.write(f'{{"step": {step}, "loss": {loss}, "lr": 0.001, "grad_norm": 1.0, "samples_per_s": 9.0}}\n')
    started = time.process_time()
    report = write_report(out)
    assert time.process_time() - started < 6  # a tenth of a million lines: a minute for a million at the very most
    assert report.stat().st_size < 100_000
    assert "lowest 100" in report.read_text()
    figure = report.read_text().split("<figcaption>loss</figcaption>")[1].split("</figure>")[0]
    band = re.search(r'<polygon[^>]*points="([^"]*)"', figure)
    assert band is not None
    heights = [float(point.split(",")[1]) for point in band[1].split()]
    assert min(heights) < 40 < 150 < max(heights)  # the one spike reaches the top of the chart, the rest stays low


def test_the_page_stays_small(tmp_path: Path) -> None:
    out = write_run(tmp_path / "run")
    cells = []
    for i in range(56):
        (out / f"{i}.webp").write_bytes(b"0" * 200_000)
        cells.append({"id": str(i), "label": None, "similarity": 0.5, "file": f"{i}.webp"})
    rows = [cells[i : i + 7] for i in range(0, 56, 7)]
    (out / "neighbours.json").write_text(json.dumps({"samples": 56, "rows": rows, "agreement": None, "map": {}}))
    report = write_report(out)
    assert 5_000_000 < report.stat().st_size < 10_000_000
    assert "picture file(s) left out to keep this page small" in report.read_text()


def test_pictures_beyond_the_budget_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.webp").write_bytes(b"x" * 60)
    album = Album(left=100)
    assert album.embed(tmp_path / "a.webp")
    assert album.embed(tmp_path / "a.webp") is None
    assert album.embed(tmp_path / "missing.webp") is None
    assert album.omitted == 1


def test_evaluations_and_verdicts(tmp_path: Path) -> None:
    for name, gain in {"up": (0.01, 0.2), "even": (-0.02, 0.2), "down": (-0.2, -0.02)}.items():
        write_evaluation(tmp_path / f"{name}.json", "knn", gain=gain)
    verdicts = {evaluation.file: evaluation.results[0].verdict for evaluation in read_evaluations(tmp_path)}
    assert verdicts == {
        "up.json": "better than untrained",
        "even.json": "no measurable difference",
        "down.json": "worse than untrained",
    }


def test_skipped_files_are_counted_once(tmp_path: Path) -> None:
    (tmp_path / "skipped.jsonl").write_text('{"file": "a", "reason": "x"}\n{"file": "a", "reason": "x"}\n{"file": "b"')
    skipped = read_skipped(tmp_path / "skipped.jsonl")
    assert skipped.files == [("a", "x")]
    assert skipped.reasons == [("x", 1)]


@pytest.mark.parametrize(("std", "rank", "said"), [(0.001, 1.1, "Collapsed"), (0.3, 1.2, "Close"), (0.4, 30, "No")])
def test_collapse_in_plain_words(tmp_path: Path, std: float, rank: float, said: str) -> None:
    line = {"step": 1, "probe/feature_std": std, "probe/effective_rank": rank}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    verdict = collapse_verdict(read_metrics(tmp_path / "metrics.jsonl"))
    assert verdict is not None
    assert verdict.startswith(said)


def test_what_evaluate_writes_is_what_the_report_reads(tmp_path: Path) -> None:
    """Both probes on a real encoder and real files; what they write into the folder of a run stands in its report at
    once."""
    torch.manual_seed(0)
    make_image_tree(tmp_path / "data", each=6)
    tiny = EncoderSettings(width=16, depth=1, heads=1)
    build_encoder(ImageSpec(size=16, patch=8), tiny, None).save_pretrained(tmp_path / "encoder")
    (tmp_path / "recipe.json").write_text('{"recipe": "image/mae"}')
    for probe in ("knn", "linear"):
        files = f"--encoder {tmp_path / 'encoder'} --data {tmp_path / 'data'} --out {tmp_path / probe}.json"
        main(["evaluate", probe, *files.split(), "--workers", "0"])
    written = {probe: json.loads((tmp_path / f"{probe}.json").read_text()) for probe in ("knn", "linear")}
    found = read_evaluations(tmp_path)
    assert [evaluation.results[0].evaluation for evaluation in found] == ["knn", "linear"]
    for evaluation in found:
        content, result = written[evaluation.results[0].evaluation], evaluation.results[0]
        assert (result.trained, result.untrained) == (content["trained"]["top1"], content["untrained"]["top1"])
        assert result.gain_interval == tuple(content["difference"]["top1_interval"])
        assert result.chance == content["chance"]["majority"]
    page = Page(tmp_path / "report.html")
    for content in written.values():
        assert content["evaluation"] in page.text
        assert f"{100 * content['trained']['top1']:.1f} %" in page.text


def test_the_command_writes_pages_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run that was killed, and of two runs on one page; what is no run is named."""
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", "image/simclr")
    main(["report", str(one)])
    assert "image/mae" in (one / "report.html").read_text()
    assert str(one / "report.html") in capsys.readouterr().out
    main(["report", str(one), str(two), "--out", str(tmp_path / "both.html")])
    page = (tmp_path / "both.html").read_text()
    assert "image/mae" in page
    assert "image/simclr" in page
    for arguments, words in [
        ((str(one), str(two)), "--out FILE.html"),
        ((), "takes the folder of one run"),
        ((str(tmp_path),), f"{tmp_path} holds no run"),
        ((str(one), "--out", str(one / "metrics.jsonl" / "x.html")), "a file of that name is in the way"),
    ]:
        with pytest.raises(SystemExit) as caught:
            main(["report", *arguments])
        assert caught.value.code == 2
        assert words in " ".join(capsys.readouterr().err.split())
