"""Which Hugging Face class each encoder is written as."""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.adapters.specs import AudioSpec, SoundSpec, VideoSpec
from mmssl.encoders.base import Encoder
from mmssl.encoders.conv import OWN_STRIDE, ConvEncoder
from mmssl.encoders.dense import DenseEncoder
from mmssl.encoders.efficientnet import EfficientNet
from mmssl.encoders.headed import HeadedEncoder
from mmssl.encoders.speech import SpeechEncoder
from mmssl.encoders.vit import ViT


@dataclass(frozen=True)
class Layout:
    """How an encoder is written."""

    model_type: str
    """As in config.json; 'mmssl' where no class of transformers expresses the encoder."""
    architecture: str
    """The transformers class, or ours."""
    prefix: str = ""
    """What Hub files of classes with a head put before every name, such as 'vit.'."""
    reason: str | None = None
    """Why no class of transformers expresses it; None if one does."""


VIT = Layout("vit", "ViTModel", "vit.")
VIT_MAE = Layout("vit_mae", "ViTMAEModel", "vit.")
IJEPA = Layout("ijepa", "IJepaModel", "ijepa.")
VIDEOMAE = Layout("videomae", "VideoMAEModel", "videomae.")
VIVIT = Layout("vivit", "VivitModel", "vivit.")
VJEPA2 = Layout("vjepa2", "VJEPA2Model", "vjepa2.")
AST = Layout("audio-spectrogram-transformer", "ASTModel", "audio_spectrogram_transformer.")
HUBERT = Layout("hubert", "HubertModel", "hubert.")
WAVLM = Layout("wavlm", "WavLMModel", "wavlm.")
RESNET_MODEL = Layout("resnet", "ResNetModel", "resnet.")
EFFICIENTNET = Layout("efficientnet", "EfficientNetModel", "efficientnet.")
READABLE = {
    layout.model_type: layout
    for layout in (VIT, VIT_MAE, IJEPA, VIDEOMAE, VIVIT, VJEPA2, AST, HUBERT, WAVLM, RESNET_MODEL, EFFICIENTNET)
}
"""Never written: vit_mae, which shuffles tokens even when nothing is masked."""


def layout_of(encoder: Encoder) -> Layout:
    """The layout that an encoder is written in."""
    spec = encoder.spec
    if isinstance(encoder, DenseEncoder):
        return _ours(encoder, "transformers has no encoder with one embedding a place of every frame")
    if isinstance(encoder, HeadedEncoder):
        return _ours(encoder, "transformers has no encoder with the head of an embedding")
    if not isinstance(spec, SoundSpec) and spec.colour != "rgb":
        return _ours(encoder, f"transformers' processors make no {spec.colour}, which this encoder is shown")
    if isinstance(encoder, SpeechEncoder):
        if encoder.settings.arch == "wavlm" and not encoder.settings.projection_norm:
            return _ours(encoder, "transformers' WavLMModel has a norm before the projection of features")
        return WAVLM if encoder.settings.arch == "wavlm" else HUBERT
    if isinstance(encoder, ConvEncoder):
        if encoder.stem != "imagenet":
            return _ours(encoder, f"transformers' ResNetModel has no '{encoder.stem}' stem")
        if spec.modality != "image":
            return _ours(encoder, f"transformers' ResNetModel takes images, and this encoder {spec.modality}")
        if encoder.output_stride != OWN_STRIDE["imagenet"]:
            return _ours(
                encoder,
                f"transformers' ResNetModel has an output stride of {OWN_STRIDE['imagenet']}, and this encoder of "
                f"{encoder.output_stride}",
            )
        return RESNET_MODEL
    if isinstance(encoder, EfficientNet):
        return EFFICIENTNET
    assert isinstance(encoder, ViT)
    if isinstance(spec, VideoSpec) and spec.stack != "none":
        return _ours(encoder, f"transformers has no model over clips as a stack of {spec.stack}")
    settings, modality = encoder.settings, spec.modality
    if settings.positions == "rope3d" and modality != "video":
        return _ours(encoder, "VJEPA2Model, the one class with positions='rope3d', takes clips")
    if modality == "video":
        whole = settings.final_norm and settings.qkv_bias != "qv"
        if settings.positions == "rope3d":
            return VJEPA2 if whole else _ours(encoder, "VJEPA2Model has a final norm and qkv_bias='full' or 'none'")
        if settings.prefix == 1 and whole:
            return VIVIT
        if settings.prefix or settings.positions != "sincos1d" or settings.qkv_bias == "full":
            return _ours(
                encoder,
                "VideoMAEModel has prefix=0, positions='sincos1d' and qkv_bias='qv' or 'none', VivitModel prefix=1, a "
                "final norm and qkv_bias='full' or 'none'; this encoder differs",
            )
        return VIDEOMAE
    if not settings.final_norm or settings.qkv_bias == "qv":
        return _ours(
            encoder,
            "ViTModel, IJepaModel and ASTModel have a final norm and biases on queries, keys and values or on none",
        )
    if isinstance(spec, AudioSpec) and spec.front != "kaldi":
        return _ours(encoder, f"ASTFeatureExtractor makes no log-mel values as '{spec.front}' does")
    if modality == "audio":
        return (
            AST
            if settings.prefix == 2
            else _ours(encoder, f"ASTModel has 2 prefix tokens and this encoder has {settings.prefix}")
        )
    if settings.prefix == 2:
        return _ours(encoder, "ViTModel has 1 prefix token, IJepaModel none, and this encoder has 2")
    return VIT if settings.prefix else IJEPA


def _ours(encoder: Encoder, reason: str) -> Layout:
    return Layout("mmssl", type(encoder).__name__, reason=reason)
