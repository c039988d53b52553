"""One training step (forward, backward, AdamW) against transformers and lightly, on identical work.

Same shapes, same sizes, same number of masked tokens, fused AdamW on both sides. Our side starts from uint8 media, as
in training; theirs is given normalised floats, so that the comparison leans towards them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from timing import compare, table
from torch import Tensor, nn

from mmssl.adapters.image import ImagePatches
from mmssl.adapters.specs import ImageSpec, VideoSpec
from mmssl.adapters.video import VideoTubelets
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.objectives.base import Objective
from mmssl.objectives.contrastive import Contrastive
from mmssl.objectives.masked_autoencoder import MaskedAutoencoder
from mmssl.objectives.masks import RandomMask, RunningCellMask, TubeMask
from mmssl.training.start import compile_blocks
from mmssl.types import Batch

Step = Callable[[], object]


def stepper(model: nn.Module, loss: Callable[[], Tensor]) -> Step:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


def ours(objective: Objective, views: dict[str, Tensor], compiled: bool = False) -> Step:
    if compiled:
        compile_blocks(objective, torch.device("cpu"))
    rows = len(next(iter(views.values())))
    noise = {name: torch.rand(rows, k) for name, k in objective.noise.items()}
    batch = Batch(views=views, index=torch.arange(rows), noise=noise)
    return stepper(objective.train(), lambda: objective(batch).loss)


def theirs(model: nn.Module, layer: type[nn.Module], compiled: bool, **inputs: Tensor) -> Step:
    for module in model.modules():
        if compiled and isinstance(module, layer):
            module.compile(dynamic=False)
    return stepper(model.train(), lambda: model(**inputs).loss)


def pictures(batch: int) -> Tensor:
    return torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8)


def clips(batch: int) -> Tensor:
    return torch.randint(0, 256, (batch, 16, 3, 224, 224), dtype=torch.uint8)


def our_mae(batch: int = 8, *, compiled: bool = False) -> Step:
    encoder = ViT(ImagePatches(ImageSpec(), 384), ViTSettings(384, 12, 6))
    mae = MaskedAutoencoder(encoder, mask=RandomMask(0.75), decoder_width=512, decoder_depth=8, decoder_heads=16)
    return ours(mae, {"view": pictures(batch)}, compiled)


def their_mae(batch: int = 8, *, compiled: bool = False) -> Step:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining
    from transformers.models.vit_mae.modeling_vit_mae import ViTMAELayer

    config = ViTMAEConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536, norm_pix_loss=True
    )
    pixels = torch.randn(batch, 3, 224, 224)
    return theirs(ViTMAEForPreTraining(config), ViTMAELayer, compiled, pixel_values=pixels)


def our_videomae(batch: int = 2, *, dual: bool = False, compiled: bool = False) -> Step:
    settings = ViTSettings(384, 12, 6, prefix=0, positions="sincos1d", qkv_bias="qv")
    encoder = ViT(VideoTubelets(VideoSpec(), 384), settings)
    objective = MaskedAutoencoder(
        encoder,
        mask=TubeMask(0.9),
        decoder_width=192,
        decoder_depth=4,
        decoder_heads=3,
        decoder_bias="qv",
        projection_bias=False,
        target="patch_norm_channel",
        view="clip",
        decoder_mask=RunningCellMask(0.5) if dual else None,
    )
    return ours(objective, {"clip": clips(batch)}, compiled)


def their_videomae(batch: int = 2, *, compiled: bool = False) -> Step:
    from transformers import VideoMAEConfig, VideoMAEForPreTraining
    from transformers.models.videomae.modeling_videomae import VideoMAELayer

    config = VideoMAEConfig(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        intermediate_size=1536,
        decoder_hidden_size=192,
        decoder_num_hidden_layers=4,
        decoder_num_attention_heads=3,
        decoder_intermediate_size=768,
        use_mean_pooling=False,
    )
    pixels = torch.randn(batch, 16, 3, 224, 224)
    tube = torch.zeros(196, dtype=torch.bool)
    tube[torch.randperm(196)[:176]] = True
    mask = tube.repeat(8).expand(batch, -1)
    model = VideoMAEForPreTraining(config)
    return theirs(model, VideoMAELayer, compiled, pixel_values=pixels, bool_masked_pos=mask)


def our_simclr(batch: int = 32) -> Step:
    encoder = ViT(ImagePatches(ImageSpec(size=64, patch=8), 192), ViTSettings(192, 6, 3))
    objective = Contrastive(encoder, hidden=512, out=128, temperature=0.5)
    views = {name: torch.randint(0, 256, (batch, 3, 64, 64), dtype=torch.uint8) for name in ("a", "b")}
    return ours(objective, views)


def their_simclr(batch: int = 32) -> Step:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    # The same trunk and normalised input on both sides: what differs is the projector, the loss and how two views run.
    encoder = ViT(ImagePatches(ImageSpec(size=64, patch=8), 192), ViTSettings(192, 6, 3))
    head, criterion = SimCLRProjectionHead(192, 512, 128), NTXentLoss(temperature=0.5)
    views = [torch.rand(batch, 3, 64, 64) for _ in range(2)]
    model = nn.ModuleList([encoder, head]).train()
    return stepper(model, lambda: criterion(*[head(encoder(view).pooled) for view in views]))


def run(rounds: int = 5) -> str:
    """The three tables as Markdown."""
    mae = compare(
        {
            "mmssl image/mae": our_mae,
            "mmssl image/mae, compiled": partial(our_mae, compiled=True),
            "transformers ViTMAEForPreTraining, compiled": partial(their_mae, compiled=True),
            "transformers ViTMAEForPreTraining": their_mae,
        },
        rounds,
    )
    videomae = compare(
        {
            "mmssl video/videomae": our_videomae,
            "mmssl video/videomae, compiled": partial(our_videomae, compiled=True),
            "mmssl video/videomae, decoder mask 0.5 (V2)": partial(our_videomae, dual=True),
            "transformers VideoMAEForPreTraining, compiled": partial(their_videomae, compiled=True),
            "transformers VideoMAEForPreTraining": their_videomae,
        },
        rounds,
    )
    simclr = compare({"mmssl image/simclr": our_simclr, "lightly NTXentLoss": their_simclr}, 2 * rounds)
    return "\n\n".join(
        [
            "### Masked autoencoder, ViT-S/16 at 224, decoder 512 x 8, batch 8, fp32\n\n" + table(mae),
            "### VideoMAE, ViT-S/16, 16 x 224 x 224, decoder 192 x 4, mask 0.9, batch 2, fp32\n\n" + table(videomae),
            "### SimCLR, ViT 192 x 6 on 64 x 64, batch 32, fp32\n\n" + table(simclr),
        ]
    )


if __name__ == "__main__":
    print(run())
