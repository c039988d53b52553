"""Claims: stacks of frames and differences hold what NumPy says, in the channels that a 2-D net expects; signed
differences would say nothing of what lies between; encoders over them are written, read and built anew as they were.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mmssl.adapters.base import Front
from mmssl.adapters.specs import VideoSpec
from mmssl.adapters.stack import StackedFrames
from mmssl.encoders.base import Encoder
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.encoders.layouts import layout_of
from mmssl.errors import UserError
from mmssl.evaluation.subject import untrained

T, SIDE = 4, 16


def clip() -> torch.Tensor:
    return torch.randint(0, 256, (2, T, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def front(stack: str) -> Front:
    return StackedFrames(VideoSpec(size=SIDE, frames=T, patch=8, stack=stack))  # type: ignore[arg-type]


def expected(stack: str) -> np.ndarray:
    """[B,C,H,W] in float64."""
    spec, pixels = VideoSpec(), clip().numpy().astype(np.float64) / 255
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (spec.mean, spec.std))
    if stack == "frames":
        return ((pixels - mean) / std).reshape(2, -1, SIDE, SIDE)
    steps = np.stack([pixels[:, t + 1] - pixels[:, t] for t in range(T - 1)], axis=1) / std
    return steps.reshape(2, -1, SIDE, SIDE) if stack == "differences" else np.abs(steps).sum(1)


@pytest.mark.parametrize(("stack", "channels"), [("frames", 3 * T), ("differences", 3 * (T - 1)), ("sum", 3)])
def test_stacks_hold_frames_and_differences(stack: str, channels: int) -> None:
    for view in (clip(), clip().float() / 255):
        pixels = front(stack)(view)
        assert pixels.shape == (2, channels, 1, SIDE, SIDE)
        np.testing.assert_allclose(pixels[:, :, 0].numpy(), expected(stack), rtol=1e-4, atol=1e-5)
    shown = front(stack).denormalise(front(stack)(clip()))
    assert shown.shape == (2, 3, channels // 3, SIDE, SIDE)
    if stack == "frames":
        torch.testing.assert_close(shown.transpose(1, 2), clip().float() / 255)


def test_the_sum_tells_an_order_that_signed_differences_do_not() -> None:
    shuffled = clip()[:, [0, 2, 1, 3]]  # same first and last frame
    steps = front("differences")(torch.stack([clip(), shuffled]).flatten(0, 1))[:, :, 0].unflatten(1, (T - 1, 3)).sum(1)
    torch.testing.assert_close(steps[:2], steps[2:])
    total = front("sum")(torch.stack([clip(), shuffled]).flatten(0, 1))
    assert (total[:2] - total[2:]).abs().mean() > 0.1


@pytest.mark.parametrize("arch", ["vit", "resnet18"])
@pytest.mark.parametrize("stack", ["frames", "differences", "sum"])
def test_encoders_over_stacks_are_written_and_read(arch: str, stack: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = VideoSpec(size=SIDE, frames=T, patch=8, stack=stack)  # type: ignore[arg-type]
    settings = EncoderSettings(arch=arch, stem="cifar", width=32, depth=1, heads=2)  # type: ignore[arg-type]
    encoder = build_encoder(spec, settings).eval()
    assert layout_of(encoder).model_type == "mmssl"
    encoder.save_pretrained(tmp_path)
    again = Encoder.from_pretrained(tmp_path)
    assert again.spec == spec
    torch.testing.assert_close(again(clip()).pooled, encoder(clip()).pooled)
    twin = untrained(encoder, seed=1)
    assert twin(clip()).pooled.shape == encoder(clip()).pooled.shape


def test_what_cannot_be_stacked_is_refused() -> None:
    with pytest.raises(UserError, match="There is no stack 'flow'"):
        front("flow")
    with pytest.raises(UserError, match="of 1 frame shows no motion"):
        StackedFrames(VideoSpec(frames=1, stack="differences"))
    with pytest.raises(UserError, match="A clip of 3 frames came where 4 are stacked"):
        front("sum")(clip()[:, :3])
    with pytest.raises(UserError, match="takes images, audio or stacked clips"):
        build_encoder(VideoSpec(), EncoderSettings(arch="resnet18"))
