"""From video file to clip: one decode for 1, 2 and 4 clips, beside VideoMAE's way (a reader a clip, PIL a frame).

The file is a real clip of the samples, enlarged to 340 x 256 and repeated to 10 s at 30 frames/s, h264 with a key frame
every 250 frames. Clips are 16 frames, stride 4, multi-scale crops at 224.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from timing import alternate, table, timings

from mmssl.data.crops import multiscale_box
from mmssl.data.index import Index
from mmssl.data.sources import open_source
from mmssl.data.views import VideoViews

SIZE, FRAMES, STRIDE = 224, 16, 4


def make_video(path: Path) -> None:
    """Encode the longest sample clip to the size, length and key-frame distance named above."""
    clips = sorted(Path("datasets/samples/video").rglob("*.mp4"), key=lambda clip: (-clip.stat().st_size, clip.name))
    with av.open(str(clips[0])) as source:
        frames = [frame.reformat(340, 256, "yuv420p") for frame in source.decode(video=0)]
    there_and_back = frames + frames[-2:0:-1]
    with av.open(str(path), "w") as target:
        stream = target.add_stream("libx264", rate=30, options={"g": "250", "keyint_min": "250", "sc_threshold": "0"})
        stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
        for number in range(300):
            picture = there_and_back[number % len(there_and_back)].to_ndarray(format="yuv420p")
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
            frame.pts = number
            target.mux(stream.encode(frame))
        target.mux(stream.encode())


def videomae_way(path: Path) -> Callable[[], object]:
    """One clip: open, decode 16 frames, crop and resize each with PIL, to float, normalise."""
    import decord

    rng = np.random.default_rng(0)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def clip() -> torch.Tensor:
        reader = decord.VideoReader(str(path), num_threads=1)
        start = int(rng.integers(len(reader) - (FRAMES - 1) * STRIDE))
        frames = reader.get_batch(range(start, start + FRAMES * STRIDE, STRIDE)).asnumpy()
        top, left, height, width = multiscale_box(frames.shape[1], frames.shape[2], rng, SIZE)
        pictures = [
            Image.fromarray(frame)
            .crop((left, top, left + width, top + height))
            .resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            for frame in frames
        ]
        tensors = [torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255 for picture in pictures]
        return torch.stack([(tensor - mean) / std for tensor in tensors], 1)

    return clip


def our_way(folder: Path, clips: int) -> Callable[[], object]:
    """`clips` clips from one decode, as a worker makes them: uint8 at crop size."""
    source = open_source(str(folder), "video")
    views = VideoViews(SIZE, FRAMES, STRIDE, per_file=clips)
    rng = np.random.default_rng(0)
    return lambda: views(source.media(0), rng)


def run(rounds: int = 15) -> str:
    """The table as Markdown, per clip."""
    torch.set_num_threads(1)  # as in a worker
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        make_video(path)
        Index.build(Path(folder), "video")
        ways = {f"mmssl, {n} clip(s) a decode": (our_way(Path(folder), n), n) for n in (1, 2, 4)}
        ways["decord reader and PIL a clip"] = (videomae_way(path), 1)
        seconds = alternate({name: call for name, (call, _) in ways.items()}, rounds)
    per_clip = {name: [second / ways[name][1] for second in taken] for name, taken in seconds.items()}
    return "### Video input, 340 x 256, key frame every 250, one thread\n\n" + table(timings(per_clip), "clip")


if __name__ == "__main__":
    print(run())
