"""What `mmssl doctor` runs in child processes: `python -P doctor_probes.py NAME` prints one JSON object in a line.

Run by path, not as a module, and importing only what is probed: a broken library then breaks one probe, not the doctor.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def torch() -> dict[str, Any]:
    """Imports torch and multiplies on every device it offers."""
    import torch

    found: dict[str, Any] = {"version": torch.__version__, "cuda": torch.version.cuda, "devices": []}
    for i in range(torch.cuda.device_count()):
        x = torch.ones(64, 64, device=f"cuda:{i}")
        assert float((x @ x)[0, 0]) == 64
        properties = torch.cuda.get_device_properties(i)
        bf16 = properties.major >= 8
        found["devices"].append({"name": properties.name, "gib": properties.total_memory / 2**30, "bf16": bf16})
    found["gpu_present"] = Path("/dev/nvidia0").exists()
    found["mps"] = torch.backends.mps.is_available()
    if found["mps"]:
        x = torch.ones(64, 64, device="mps")
        assert float((x @ x)[0, 0]) == 64
    found["threads"] = torch.get_num_threads()
    found["gloo"] = torch.distributed.is_available() and torch.distributed.is_gloo_available()
    found["nccl"] = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    return found


def torchvision() -> dict[str, Any]:
    """Imports torchvision and runs one of its compiled operators."""
    import torch
    import torchvision

    kept = torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    return {"version": torchvision.__version__, "kept": int(kept[0])}


def torchaudio() -> dict[str, Any]:
    """Imports torchaudio and computes the filter bank that audio encoders read."""
    import torch
    import torchaudio.compliance.kaldi

    mels = torchaudio.compliance.kaldi.fbank(torch.randn(1, 16000), num_mel_bins=128)
    return {"version": torchaudio.__version__, "shape": list(mels.shape)}


def transformers() -> dict[str, Any]:
    """Imports the model classes that runs are written as."""
    from transformers import ASTModel, AutoModel, VideoMAEModel, ViTModel

    return {"classes": [c.__name__ for c in (AutoModel, ViTModel, VideoMAEModel, ASTModel)]}


def _clip(file: Path) -> None:
    """48 frames of 64 x 64 H.264, frame i of brightness 5 i, a key frame every 12."""
    import av
    import numpy as np

    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"g": "12", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for i in range(48):
            image = np.full((64, 64, 3), 5 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def av() -> dict[str, Any]:
    """Encodes a clip and an AAC sound with PyAV and decodes them again."""
    import av
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        clip, sound = Path(folder) / "clip.mp4", Path(folder) / "sound.m4a"
        _clip(clip)
        with av.open(str(clip)) as container:
            levels = [float(frame.to_ndarray(format="rgb24").mean()) for frame in container.decode(video=0)]
        with av.open(str(sound), "w") as container:
            stream = container.add_stream("aac", rate=16000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        with av.open(str(sound)) as container:
            samples = sum(frame.samples for frame in container.decode(audio=0))
    return {"frames": len(levels), "error": _error(levels), "samples": samples}


def decord() -> dict[str, Any]:
    """Decodes a generated clip with decord, out of order."""
    from decord import VideoReader, cpu

    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        _clip(clip)
        reader = VideoReader(str(clip), ctx=cpu(0), num_threads=1)
        order = [40, 3, 17, *range(48)]
        frames = reader.get_batch(order).asnumpy()
        levels = [float(frame.mean()) for frame in frames]
        return {"frames": len(reader), "error": max(abs(level - 5 * i) for level, i in zip(levels, order, strict=True))}


def _error(levels: list[float]) -> float:
    return max((abs(level - 5 * i) for i, level in enumerate(levels)), default=255.0)


def soundfile() -> dict[str, Any]:
    """Writes and reads back half a second of a tone in each format."""
    import numpy as np
    import soundfile

    tone = np.sin(np.arange(8000) * 2 * np.pi * 440 / 16000).astype(np.float32) / 2
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for ending in ("wav", "flac", "ogg", "mp3"):
            file = Path(folder) / f"tone.{ending}"
            try:
                soundfile.write(file, tone, 16000)
                wave, rate = soundfile.read(file, dtype="float32")
                found[ending] = bool(rate == 16000 and abs(float(np.sqrt(np.mean(wave**2))) - 0.3536) < 0.03)
            except (soundfile.SoundFileError, TypeError, ValueError):
                found[ending] = False
    return {"formats": found, "library": soundfile.__libsndfile_version__}


def images() -> dict[str, Any]:
    """Writes and reads back a small image in each format with Pillow."""
    import io

    from PIL import Image

    found = {}
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        try:
            buffer = io.BytesIO()
            Image.new("RGB", (16, 16), (200, 40, 40)).save(buffer, name)
            pixel = Image.open(io.BytesIO(buffer.getvalue())).convert("RGB").getpixel((8, 8))
            found[name] = isinstance(pixel, tuple) and abs(pixel[0] - 200) < 12
        except (OSError, KeyError):
            found[name] = False
    return {"formats": found}


def distributed() -> dict[str, Any]:
    """Two processes add their ranks by gloo. The parent starts itself twice; RANK tells the children apart."""
    import subprocess

    rank = os.environ.get("DOCTOR_RANK")
    if rank is None:
        with tempfile.TemporaryDirectory() as folder:
            children = [
                subprocess.Popen(
                    [sys.executable, "-P", __file__, "distributed"],
                    env={**os.environ, "DOCTOR_RANK": str(i), "DOCTOR_STORE": f"{folder}/store"},
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for i in range(2)
            ]
            outputs = [child.communicate()[0] for child in children]
        if any(child.returncode for child in children):
            raise RuntimeError("one of the two processes failed")
        return {"sums": [json.loads(output.splitlines()[-1])["sum"] for output in outputs]}
    import torch
    import torch.distributed as dist

    store = f"file://{os.environ['DOCTOR_STORE']}"
    dist.init_process_group("gloo", init_method=store, rank=int(rank), world_size=2)
    value = torch.tensor([1.0 + int(rank)])
    dist.all_reduce(value)
    dist.destroy_process_group()
    return {"sum": float(value)}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
