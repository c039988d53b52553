"""Decode one image to RGB."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mmssl.data.media import Media, UnreadableMedia


def decode_image(media: Media) -> Tensor:
    """Upright RGB, uint8 [3,H,W]: EXIF orientation applied, transparency laid on white, 16 bits scaled to 8.

    Of an animation, the first frame. Raises UnreadableMedia naming the file.
    """
    try:
        with media.open() as file, Image.open(file) as image:
            pixels = np.array(_rgb(ImageOps.exif_transpose(image)))
    except UnreadableMedia:
        raise
    except Exception as error:  # Pillow's plugins raise whatever their format's parser raises
        raise UnreadableMedia(f"{media.name}: Pillow cannot decode it ({error})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Grey of 16 or 32 bits or float -> uint8. Pillow's own convert() clips at 255, which turns such images white.

    The range is that of the type (16 bits), or for types without one that of the values: [0,1], [0,255] or [0,65535].
    """
    if values.dtype == np.uint16:
        scale = 65535.0
    else:
        whole = values.dtype.kind != "f"
        values = np.nan_to_num(values.astype(np.float64))
        peak = values.max(initial=0.0)
        scale = 1.0 if peak <= 1 and not whole else 255.0 if peak <= 255 else max(65535.0, peak)
    return np.clip(np.rint(values * (255.0 / scale)), 0, 255).astype(np.uint8)
