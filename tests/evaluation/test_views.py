"""Claims, on a video whose every frame tells its number: speed clips step 1, 2 and 4 strides around one middle, spaced
clips lie evenly, and moments are fixed by the generator."""

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from mmssl.adapters.specs import AudioSpec, ImageSpec, VideoSpec
from mmssl.data.media import Media, Record, UnreadableMedia
from mmssl.errors import UserError
from mmssl.evaluation.views import SpeedViews, evaluation_views

FRAMES = 120


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Media:
    """120 frames without loss, grey 2 n in frame n."""
    root: Path = tmp_path_factory.mktemp("video")
    with av.open(str(root / "counter.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25, options={"level": "3"})
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = 32
        stream.pix_fmt = "bgr0"
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 2 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return Media(Record(id="counter.mkv", kind="video", path="counter.mkv"), root=root)


def numbers(view: torch.Tensor) -> list[int]:
    """Frame numbers of a clip [T,3,H,W]."""
    assert view.dtype == torch.uint8
    return (view[:, 0, 5, 5] // 2).tolist()


def test_speed_clips_step_one_two_and_four_strides_around_one_middle(video):
    samples = SpeedViews(size=16, frames=5, stride=2, moments=3)(video, np.random.default_rng(0))
    assert [int(sample.targets["class"]) for sample in samples] == [0, 1, 2] * 3
    middles = []
    for sample, stride in zip(samples, [2, 4, 8] * 3, strict=True):
        shown = numbers(sample.views["view"])
        assert np.diff(shown).tolist() == [stride] * 4
        middles.append(shown[2])
    assert middles[0] == middles[1] == middles[2]
    # One moment in each third of the places where the 4x clip (33 frames) fits.
    thirds = [(middle - 16) / (FRAMES - 33) * 3 for middle in middles[::3]]
    assert [int(third) for third in thirds] == [0, 1, 2]


def test_moments_are_fixed_by_the_generator(video):
    views = SpeedViews(size=16, frames=5, stride=2)
    first, again, other = (
        [numbers(s.views["view"]) for s in views(video, np.random.default_rng(i))] for i in (1, 1, 2)
    )
    assert first == again != other


def test_a_file_shorter_than_the_fastest_clip_is_unreadable_not_stretched(video):
    with pytest.raises(UnreadableMedia, match="120 frames and the 4x clip needs 121"):
        SpeedViews(size=16, frames=11, stride=3)(video, np.random.default_rng(0))


def test_spaced_clips_are_even_and_one_clip_is_the_middle(video):
    spec = VideoSpec(size=16, frames=4, stride=3, patch=16)
    (middle,) = evaluation_views(spec)(video, np.random.default_rng(0))
    assert numbers(middle.views["view"]) == [55, 58, 61, 64]
    clips = evaluation_views(spec, clips=5)(video, np.random.default_rng(0))
    assert [numbers(clip.views["view"])[0] for clip in clips] == [11, 33, 55, 77, 99]


def test_spaced_segments_of_a_recording(tmp_path):
    ramp = np.linspace(0, 0.5, 32000, dtype=np.float32)
    soundfile.write(tmp_path / "ramp.wav", ramp, 16000, subtype="FLOAT")
    media = Media(Record(id="ramp", kind="audio", path="ramp.wav", frames=32000, rate=16000.0), root=tmp_path)
    spec = AudioSpec(frames=48)
    segments = evaluation_views(spec, clips=4)(media, np.random.default_rng(0))
    assert [segment.views["view"].shape for segment in segments] == [(spec.samples,)] * 4
    starts = [float(segment.views["view"][0]) / 0.5 * 31999 for segment in segments]
    free = 32000 - spec.samples
    np.testing.assert_allclose(starts, [free / 8, 3 * free / 8, 5 * free / 8, 7 * free / 8], atol=2)


def test_an_image_has_one_view():
    with pytest.raises(UserError, match="1 for images"):
        evaluation_views(ImageSpec(), clips=2)
