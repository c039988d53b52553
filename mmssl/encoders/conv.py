"""Convolutional encoders for pooled objectives: torchvision's ResNet without its classifier (He et al. 2016)."""

from __future__ import annotations

from typing import Literal

import torchvision
from torch import Tensor, nn

from mmssl.adapters.base import Front
from mmssl.adapters.specs import VideoSpec
from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.types import Encoded

BLOCKS = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
}
"""Kind and number of blocks in each stage (He et al. 2016, table 1)."""
OWN_STRIDE = {"imagenet": 32, "cifar": 8}
"""Pixels a cell of the last map, by stem."""
WIDTHS = {"basic": (64, 128, 256, 512), "bottleneck": (256, 512, 1024, 2048)}


class ConvEncoder(Encoder):
    """A ResNet over images [B,3,H,W], clips [B,T,3,H,W] stacked into one picture, or log-mel spectrograms of waveforms
    [B,S].

    Args:
        front: ImagePixels, StackedFrames or LogMel; decides the modality and the input channels.
        arch: a ResNet of torchvision.
        stem: 'imagenet' (7x7 stride 2, max pooling) or 'cifar' (3x3 stride 1, no pooling; SimCLR, appendix B.9) for
            images of about 32 pixels.
        output_stride: pixels from one cell of the last map to the next: 32 (with the 'cifar' stem 8) or what dividing
            it by 2, 4 or 8 gives; the last stages then have stride 1 (without dilation), their weights fit as ever.
            None for the architecture's own.

    Raises:
        UserError: an unknown architecture or stem, a stride that it cannot have, or a front for unstacked clips.
    """

    pooling = "mean"

    def __init__(
        self,
        front: Front,
        arch: str = "resnet18",
        stem: Literal["imagenet", "cifar"] = "imagenet",
        output_stride: int | None = None,
    ) -> None:
        super().__init__()
        if arch not in BLOCKS:
            raise UserError(f"There is no architecture '{arch}': choose one of {', '.join(BLOCKS)}.")
        if stem not in ("imagenet", "cifar"):
            raise UserError(f"There is no stem '{stem}': choose 'imagenet' or 'cifar'.")
        if isinstance(front.spec, VideoSpec) and front.spec.stack == "none":
            raise UserError(
                "ConvEncoder has 2-D convolutions and takes images, audio or stacked clips: choose a ViT for clips, or "
                "a stack of their frames or differences."
            )
        own = OWN_STRIDE[stem]
        if output_stride not in (None, own, own // 2, own // 4, own // 8):
            raise UserError(
                f"A ResNet with the '{stem}' stem has no output stride of {output_stride}: choose "
                f"{own}, {own // 2}, {own // 4} or {own // 8}."
            )
        self.front = front
        self.spec = front.spec
        self.arch = arch
        self.stem = stem
        self.output_stride = output_stride or own
        net = torchvision.models.get_model(arch, weights=None)
        if stem == "cifar":
            net.conv1 = nn.Conv2d(front.channels, 64, 3, stride=1, padding=1, bias=False)
            net.maxpool = nn.Identity()
        elif front.channels != 3:
            net.conv1 = nn.Conv2d(front.channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.width = net.fc.in_features
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        flattened = (own // self.output_stride).bit_length() - 1  # stages that would have halved the map
        for stage in (self.layer4, self.layer3, self.layer2)[:flattened]:
            for convolution in stage[0].modules():
                if isinstance(convolution, nn.Conv2d):
                    convolution.stride = (1, 1)

    def forward(self, view: Tensor, *, lengths: Tensor | None = None, hidden: bool = False) -> Encoded:
        pixels = self.front(view, lengths).squeeze(2)
        x = self.maxpool(self.relu(self.bn1(self.conv1(pixels.to(self.conv1.weight.dtype)))))
        states = [x]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            states.append(x)
        return Encoded(pooled=x.mean((2, 3)), feature_map=x, hidden=tuple(states) if hidden else None)
