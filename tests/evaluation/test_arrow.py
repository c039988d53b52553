"""Claims about the arrow of time: both clips of a moment hold the same frames in opposite order; a video that stands
still is told apart no better than by chance, whatever the encoder; one in which everything moves the same way is."""

import av
import numpy as np
import pytest
import torch
from torch import nn

from mmssl.adapters.specs import VideoSpec
from mmssl.adapters.video import VideoTubelets
from mmssl.data.media import Media, Record
from mmssl.data.sources import open_source
from mmssl.encoders.base import Encoder
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.evaluation.features import extract
from mmssl.evaluation.labels import footage_labels
from mmssl.evaluation.probes.knn import KnnSettings, knn_predict
from mmssl.evaluation.probes.linear import LinearSettings
from mmssl.evaluation.views import ArrowViews
from mmssl.types import Encoded

SPEC = VideoSpec(size=32, frames=4, stride=2, patch=8)


def write_videos(root, moving: bool, files: int = 10, frames: int = 20):
    """Lossless videos of a bright bar over noise that goes to the right, or stands still."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(files):
        ground = rng.integers(0, 60, (32, 32, 3)).astype(np.uint8)
        with av.open(str(root / f"{number:02d}.mkv"), "w") as container:
            stream = container.add_stream("ffv1", rate=25, options={"level": "3"})
            assert isinstance(stream, av.VideoStream)
            stream.width = stream.height = 32
            stream.pix_fmt = "bgr0"
            start = int(rng.integers(32))
            for time in range(frames):
                picture = ground.copy()
                columns = (start + 2 * time * moving + np.arange(5)) % 32
                picture[:, columns] = 255
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    return root


def test_the_reversed_clip_is_the_forward_one_backwards(tmp_path):
    root = write_videos(tmp_path / "v", moving=True, files=1, frames=30)
    media = Media(Record(id="00.mkv", kind="video", path="00.mkv"), root=root)
    views = ArrowViews(size=32, frames=4, stride=3, moments=5)
    samples = views(media, np.random.default_rng(0))
    assert len(samples) == views.per_file == 10
    assert [int(sample.targets["class"]) for sample in samples] == [0, 1] * 5
    for forward, backward in zip(samples[::2], samples[1::2], strict=True):
        a, b = forward.views["view"], backward.views["view"]
        torch.testing.assert_close(b, a[[3, 2, 1, 0]], rtol=0, atol=0)
        assert not torch.equal(a, b)
        bars = [int((frame[0].float().mean(0) > 200).float().argmax()) for frame in a]
        steps = np.diff(bars) % 32  # 3 frames of 2 pixels; at the seam the first bright column is column 0
        assert 6 in steps


class Direction(Encoder):
    """Sees only whether the picture fits the one before it better when moved to the right or to the left."""

    pooling = "mean"

    def __init__(self) -> None:
        super().__init__()
        self.width, self.spec, self.unused = 2, SPEC, nn.Parameter(torch.zeros(1))

    def forward(self, view, *, lengths=None, hidden=False) -> Encoded:
        rows = view.float().mean((2, 3))  # [B,T,W]
        fits = [(rows[:, :-1].roll(shift, -1) * rows[:, 1:]).mean((1, 2)) for shift in (4, -4)]
        return Encoded(pooled=torch.stack([fits[0] > fits[1], fits[1] > fits[0]], 1).float() + 0.1)


def test_what_moves_one_way_only_is_told_apart(tmp_path):
    source = open_source(write_videos(tmp_path / "v", moving=True), "video")
    task, views = footage_labels(source, SPEC, "arrow", seed=0)
    rows = np.concatenate([task.train, task.test])
    features = extract(Direction(), source, rows, views=views, classes=task.classes)
    train, test = features.at(task.train), features.at(task.test)
    labels = torch.tensor([task.classes.index(name) for name in train.labels])
    found = knn_predict(torch.from_numpy(train.x), labels, torch.from_numpy(test.x), classes=2, neighbours=(5,))[5]
    assert [task.classes[number] for number in found] == list(test.labels)
    assert not set(train.ids) & set(test.ids)


@pytest.mark.parametrize("settings", [KnnSettings, LinearSettings])
def test_a_still_video_is_at_chance(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    vit = ViTSettings(width=32, depth=1, heads=2, prefix=0, positions="sincos1d", qkv_bias="qv")
    ViT(VideoTubelets(SPEC, 32), vit).save_pretrained(tmp_path / "encoder")
    write_videos(tmp_path / "still", moving=False)
    more = {"k": 3} if settings is KnnSettings else {"epochs": 1}
    given = {"encoder": str(tmp_path / "encoder"), "data": str(tmp_path / "still"), "out": tmp_path / "out.json"}
    result = settings(**given, labels="arrow", workers=0, **more).run()
    assert result["chance"]["uniform"] == 0.5
    assert result["data"]["classes"] == ["forward", "reversed"]
    assert result["data"]["examples"] == {"train": 64, "test": 16}
    assert result["trained"]["top1"] == 0.5
