"""A fine-tuned model on disk: as the transformers class for classification that expresses it, and our reading of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mmssl.adaptation.adapt import VIDEOMAE_EPS, on_meta
from mmssl.adaptation.classification import Head
from mmssl.encoders.base import Encoder
from mmssl.encoders.card import input_note
from mmssl.encoders.configs import config_of, from_facts
from mmssl.encoders.layouts import (
    AST,
    EFFICIENTNET,
    HUBERT,
    IJEPA,
    RESNET_MODEL,
    VIDEOMAE,
    VIT,
    VIVIT,
    WAVLM,
    Layout,
    layout_of,
)
from mmssl.encoders.processors import processor_config
from mmssl.encoders.vit import ViT
from mmssl.encoders.weights import State, canonical, from_hub, to_hub
from mmssl.errors import UserError
from mmssl.files import save_tensors, write_json, writing

BEIT = Layout("beit", "BeitModel", "beit.")
"""BEiT's class has what MAE fine-tunes: a mean over patches, and a norm after it. It has no bias on keys, which changes
no attention: it adds the same to every logit of a query."""

SPEECH = (HUBERT, WAVLM)


@dataclass(frozen=True)
class Form:
    """How a classifier is written."""

    architecture: str
    """Class of transformers; ours where `reason` is given."""
    layout: Layout
    """Of the encoder inside it."""
    linear: str = "classifier"
    norm: str | None = None
    """Names of the head's parts in the file."""
    reason: str | None = None
    """Why no class of transformers expresses it; None if one does."""


FORMS = (
    Form("ViTForImageClassification", VIT),
    Form("BeitForImageClassification", BEIT, norm="beit.pooler.layernorm"),
    Form("IJepaForImageClassification", IJEPA),
    Form("VideoMAEForVideoClassification", VIDEOMAE, norm="fc_norm"),
    Form("VivitForVideoClassification", VIVIT),
    Form("ASTForAudioClassification", AST, linear="classifier.dense", norm="classifier.layernorm"),
    Form("HubertForSequenceClassification", HUBERT),
    Form("WavLMForSequenceClassification", WAVLM),
    Form("ResNetForImageClassification", RESNET_MODEL, linear="classifier.1"),
    Form("EfficientNetForImageClassification", EFFICIENTNET),
)


class Classifier(nn.Module):
    """A fine-tuned encoder and its head: views of raw media -> logits [B,classes]."""

    def __init__(self, encoder: Encoder, head: Head, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.encoder, self.head, self.classes = encoder, head, classes

    def forward(self, view: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(view, lengths=lengths).pooled)

    def save_pretrained(self, folder: str | Path, facts: Mapping[str, Any] | None = None) -> Form:
        """Write config.json, model.safetensors, preprocessor_config.json and README.md (with `facts`)."""
        folder = Path(folder)
        form = form_of(self.encoder, self.head)
        config = config_of(self.encoder, form.layout) | _label_maps(self.classes)
        config["architectures"] = [form.architecture]
        config["mmssl"] |= {"classes": list(self.classes), "head": {"norm": getattr(self.head.norm, "eps", None)}}
        if form.layout is BEIT:
            config |= {"use_absolute_position_embeddings": True, "use_mean_pooling": True}
            config |= {"layer_scale_init_value": 0.0, "drop_path_rate": 0.0}
        if form.layout in SPEECH:
            config["classifier_proj_size"] = self.encoder.width
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "config.json", config)
            write_json(folder / "preprocessor_config.json", processor_config(self.encoder.spec, form.layout))
            (folder / "README.md").write_text(_card(self, form, facts or {}), encoding="utf-8")
            save_tensors(_to_file(self, form), folder / "model.safetensors", metadata={"format": "pt"})
        return form

    @staticmethod
    def from_pretrained(folder: str | Path) -> Classifier:
        """A classifier that `save_pretrained` wrote, in evaluation mode and fp32.

        Raises UserError where the folder holds none.
        """
        folder = Path(folder)
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            facts, weights = config["mmssl"], load_file(folder / "model.safetensors")
            classes, norm = tuple(facts["classes"]), facts["head"]["norm"]
            (architecture,) = config["architectures"]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise UserError(
                f"{folder} holds no classifier of mmssl ({type(error).__name__}: {error}): name the folder `model` that"
                " mmssl evaluate finetune wrote."
            ) from error
        encoder = from_facts(facts, folder)
        head = Head(encoder.width, len(classes), norm=norm)
        form = next((form for form in FORMS if form.architecture == architecture), None)
        _from_file(encoder, head, form, weights)
        return Classifier(encoder, head, classes).eval()


def form_of(encoder: Encoder, head: Head) -> Form:
    """The class that expresses an encoder with its head."""
    layout, normed = layout_of(encoder), isinstance(head.norm, nn.LayerNorm)
    if isinstance(encoder, ViT) and encoder.spec.modality == "image" and not encoder.settings.final_norm:
        whole = layout_of(on_meta(encoder, final_norm=True))  # what else may differ from a ViT
        if whole is VIT and encoder.settings.qkv_bias == "full":
            layout = BEIT
    wanted = {VIT: ("cls", False), BEIT: ("mean", True), IJEPA: ("mean", False), VIDEOMAE: ("mean", True)}
    wanted |= {VIVIT: ("cls", False), AST: ("prefix", True), RESNET_MODEL: ("mean", False)}
    wanted[EFFICIENTNET] = (encoder.pooling, False)  # its class has a maximum, too
    wanted |= dict.fromkeys(SPEECH, ("mean", False))
    fits = wanted.get(layout) == (encoder.pooling, normed)
    if layout is VIDEOMAE:
        assert isinstance(encoder, ViT)
        fits = fits and not encoder.settings.final_norm and getattr(head.norm, "eps", None) == VIDEOMAE_EPS
    if fits:
        return next(form for form in FORMS if form.layout is layout)
    reason = layout.reason or (
        f"no class for classification puts a head {'with' if normed else 'without'} a norm on the "
        f"'{encoder.pooling}' features of {layout.architecture}"
    )
    ours = Layout("mmssl", type(encoder).__name__, reason=reason)
    return Form("mmssl.Classifier", ours, "classifier.linear", "classifier.norm", reason)


def _to_file(model: Classifier, form: Form) -> State:
    """All weights under the names of the class."""
    encoder = model.encoder
    weights = {name: tensor.detach().cpu() for name, tensor in encoder.state_dict().items()}
    hub = {name: tensor for name, tensor in to_hub(encoder, form.layout, weights).items() if "pooler." not in name}
    if form.layout is BEIT:
        hub = {name: tensor for name, tensor in hub.items() if not name.endswith(KEY_BIAS)}
    hub = {form.layout.prefix + name: tensor for name, tensor in hub.items()}
    if form.layout in SPEECH:  # a projection of every frame before the mean, which changes nothing here
        hub |= {"projector.weight": torch.eye(encoder.width), "projector.bias": torch.zeros(encoder.width)}
    for ours, theirs in (("linear", form.linear), ("norm", form.norm)):
        for name, tensor in getattr(model.head, ours).state_dict().items():
            hub[f"{theirs}.{name}"] = tensor.detach().cpu()
    return {name: tensor.contiguous() for name, tensor in hub.items()}


KEY_BIAS = "attention.attention.key.bias"


def _from_file(encoder: Encoder, head: Head, form: Form | None, weights: State) -> None:
    """Put the weights of a file into encoder and head; `form` is None for our own."""
    linear, norm = ("classifier.linear", "classifier.norm") if form is None else (form.linear, form.norm)
    for part, name in ((head.linear, linear), (head.norm, norm)):
        part.load_state_dict({key: weights.pop(f"{name}.{key}") for key in part.state_dict()})
    if form is None:
        encoder.load_state_dict(weights)
        return
    hub = canonical(form.layout, weights)
    if form.layout is BEIT:
        for name in [name for name in hub if name.endswith("attention.attention.query.bias")]:
            hub[name.replace("query", "key")] = torch.zeros_like(hub[name])
    encoder.load_state_dict(from_hub(encoder, VIT if form.layout is BEIT else form.layout, hub))


def _label_maps(classes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "id2label": {str(number): name for number, name in enumerate(classes)},
        "label2id": {name: number for number, name in enumerate(classes)},
    }


def _card(model: Classifier, form: Form, facts: Mapping[str, Any]) -> str:
    """README.md: what the classifier tells apart, how to load it, and the facts of its training."""
    modality = model.encoder.spec.modality
    task = form.architecture.partition("For")[2].replace("Sequence", "Audio")  # an EfficientNet's are pictures of sound
    auto = f"AutoModelFor{task}"
    load = f"from transformers import {auto}\n\nmodel = {auto}.from_pretrained(folder)"
    if form.reason is not None:
        load = "from mmssl.adaptation.classifier import Classifier\n\nmodel = Classifier.from_pretrained(folder)"
    lines = [
        "---",
        f"library_name: {'transformers' if form.reason is None else 'mmssl'}",
        f"tags: [mmssl, {modality}-classification]",
        "---",
        f"# A fine-tuned {modality} classifier",
        "",
        f"- Model: {form.architecture}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters",
        f"- Classes: {len(model.classes)} ({', '.join(model.classes[:10])}{', ...' * (len(model.classes) > 10)})",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        "```python",
        load,
        "```",
    ]
    if form.reason is not None:
        lines += ["", f"transformers cannot load it: {form.reason}."]
    lines += input_note(model.encoder.spec)
    return "\n".join(lines) + "\n"
