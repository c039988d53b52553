"""Claims: the batched heads are PyTorch's multi-head attention, layer norm and linear layers, and AdamW is PyTorch's,
for every head by itself; a head that diverges leaves the others alone; tokens kept on disk and computed anew give the
same probe; the probe reads what one token carries and a mean cannot tell; figures have the form of every evaluation."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from mmssl.adapters.image import ImagePatches, ImagePixels
from mmssl.adapters.specs import ImageSpec
from mmssl.data.sources import open_source
from mmssl.encoders.base import Encoder
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.errors import UserError
from mmssl.evaluation.frame import with_twins
from mmssl.evaluation.labels import file_labels
from mmssl.evaluation.probes import tokens as tokens_module
from mmssl.evaluation.probes.attentive import AttentiveProbe, AttentiveSettings, attentive
from mmssl.evaluation.probes.attentive_heads import gradients_of, logits_of, new_heads, train_heads
from mmssl.evaluation.probes.linear import linear_probe
from mmssl.evaluation.probes.tokens import collect_tokens, tokens_of
from mmssl.evaluation.reading import Files
from mmssl.evaluation.views import evaluation_views
from mmssl.report.reading import read_evaluations
from mmssl.types import Encoded
from tests.evaluation.standins import write_stripes

D, H, C = 12, 3, 4


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))


class Pooler(nn.Module):
    """One head, from PyTorch's own modules."""

    def __init__(self, heads: dict[str, torch.Tensor], number: int) -> None:
        super().__init__()
        one = {name: tensor[number].detach().clone() for name, tensor in heads.items()}
        self.query = nn.Parameter(one["query"])
        self.attention = nn.MultiheadAttention(D, H, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.fc1, self.fc2, self.linear = nn.Linear(D, 4 * D), nn.Linear(4 * D, D), nn.Linear(D, C)
        with torch.no_grad():
            self.attention.in_proj_weight.copy_(torch.cat([one[f"{n}.weight"].T for n in "qkv"]))
            self.attention.in_proj_bias.copy_(torch.cat([one["q.bias"], torch.zeros(D), one["v.bias"]]))
            self.attention.out_proj.weight.copy_(one["out.weight"].T)
            self.attention.out_proj.bias.copy_(one["out.bias"])
            for name in ("fc1", "fc2", "linear"):
                getattr(self, name).weight.copy_(one[f"{name}.weight"].T)
                getattr(self, name).bias.copy_(one[f"{name}.bias"])
            for name in ("norm1", "norm2"):
                getattr(self, name).weight.copy_(one[f"{name}.scale"])
                getattr(self, name).bias.copy_(one[f"{name}.shift"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query = self.query.expand(len(x), 1, D)
        keys = self.norm1(x)
        y = query + self.attention(query, keys, keys)[0]
        y = y + self.fc2(F.gelu(self.fc1(self.norm2(y))))
        return self.linear(y[:, 0])


def random_heads(count: int) -> dict[str, torch.Tensor]:
    heads = new_heads(D, C, count, seed=0)
    return {name: tensor + 0.2 * torch.randn_like(tensor) for name, tensor in heads.items()}


def test_heads_are_pytorchs_modules():
    torch.manual_seed(0)
    heads = random_heads(3)
    x = F.layer_norm(torch.randn(5, 7, D), (D,), eps=1e-12)
    found = logits_of(heads, x, H)
    for number in range(3):
        torch.testing.assert_close(found[:, number], Pooler(heads, number)(x), rtol=1e-4, atol=1e-5)


def test_training_is_adamw_for_every_head_by_itself():
    torch.manual_seed(1)
    heads = random_heads(3)
    heads["linear.weight"][1] = float("nan")  # one that has diverged
    start = {name: tensor.clone() for name, tensor in heads.items()}
    x, y = F.layer_norm(torch.randn(6, 7, D), (D,), eps=1e-12), torch.tensor([0, 1, 2, 3, 0, 1])
    rates, decays = torch.tensor([1e-2, 1e-2, 3e-3]), torch.tensor([0.1, 0.1, 0.8])
    halves = [(x[:3], torch.arange(3)), (x[3:], torch.arange(3, 6))]
    train_heads(heads, lambda epoch: iter(halves), y, attention=H, rates=rates, decays=decays, steps=5)
    assert heads["query"][1].isnan().all()
    for number in (0, 2):
        pooler = Pooler(start, number)
        plain = [p for name, p in pooler.named_parameters() if p.ndim == 1]
        matrices = [p for name, p in pooler.named_parameters() if p.ndim > 1]
        groups = [{"params": matrices, "weight_decay": float(decays[number])}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=1.0)
        for step in range(5):
            part, numbers = halves[step % 2]
            F.cross_entropy(pooler(part), y[numbers]).backward()
            assert pooler.attention.in_proj_bias.grad is not None
            pooler.attention.in_proj_bias.grad[D : 2 * D] = 0  # keys have no bias here
            for group in optimizer.param_groups:
                group["lr"] = float(rates[number]) * 0.5 * (1 + np.cos(np.pi * step / 5))
            optimizer.step()
            optimizer.zero_grad()
        torch.testing.assert_close(heads["query"][number], pooler.query.data, rtol=1e-3, atol=2e-4)
        torch.testing.assert_close(heads["fc1.weight"][number].T, pooler.fc1.weight.data, rtol=1e-3, atol=2e-4)
        torch.testing.assert_close(logits_of(heads, x, H)[:, number], pooler(x), rtol=1e-2, atol=5e-3)


def test_gradients_do_not_depend_on_how_many_samples_are_taken_at_once(monkeypatch):
    torch.manual_seed(2)
    heads, x, y = random_heads(2), torch.randn(6, 7, D), torch.tensor([0, 1, 2, 3, 0, 1])
    whole = gradients_of(heads, x, y, H)
    monkeypatch.setattr("mmssl.evaluation.probes.attentive_heads.PLACES", 2 * H * 7 * 2)
    for name, gradient in gradients_of(heads, x, y, H).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-6)


class Patches(Encoder):
    """Tokens are the colours of an image's patches, turned at random into 32 dimensions; pooled is their mean."""

    pooling = "mean"

    def __init__(self) -> None:
        super().__init__()
        self.width, self.spec = 32, ImageSpec(size=32, patch=8)
        self.turn = nn.Parameter(torch.randn(4, 32, generator=torch.Generator().manual_seed(0)))

    def forward(self, view, *, lengths=None, hidden=False) -> Encoded:
        colours = F.avg_pool2d(view.float() / 255, 8).flatten(2).transpose(1, 2)  # [B,16,3]
        tokens = torch.cat([colours, torch.ones_like(colours[..., :1])], 2) @ self.turn
        return Encoded(pooled=tokens.mean(1), tokens=tokens, grid=(1, 4, 4))


def write_needles(root, per_class: int = 20):
    """Pictures of grey noise whose class is the order of colour values in one patch of 16; all others cancel it."""
    rng = np.random.default_rng(0)
    for label in range(2):
        (root / str(label)).mkdir(parents=True)
        for number in range(per_class):
            cells = np.full((16, 3), 128.0)
            cells[:, 1] += rng.normal(0, 20, 16)
            needle = int(rng.integers(16))
            value = 105 if label else -105
            cells[:, 0] += rng.integers(-8, 9)  # of the whole picture
            cells[:, 0] -= value / 15
            cells[needle, 0] += value / 15 + value  # the mean over patches is the same in both classes
            picture = cells.reshape(4, 4, 3).repeat(8, 0).repeat(8, 1).round().clip(0, 255).astype(np.uint8)
            Image.fromarray(picture).save(root / str(label) / f"{number}.png")
    return root


def settings(tmp_path, **more) -> AttentiveSettings:
    given = {"encoder": str(tmp_path / "encoder"), "data": str(tmp_path / "data"), "out": tmp_path / "a.json"}
    return AttentiveSettings(**(given | {"workers": 0, "rates": (1e-3, 3e-3), "decays": (0.01, 0.1)} | more))


def test_one_token_carries_the_class_and_a_mean_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr("mmssl.evaluation.probes.attentive.LEAST_STEPS", 1200)
    source = open_source(write_needles(tmp_path / "data", per_class=40), "image")
    task = file_labels(source, 0)
    rows = np.concatenate([task.train, task.test])
    files = Files(source, evaluation_views(Patches().spec), rows, 0)
    (found,) = collect_tokens(
        [Patches()], files, batch_size=8, workers=0, device=torch.device("cpu"), cache=None, limit=1e9
    )
    assert found.stored is not None
    assert found.shape == (16, 32)
    given = settings(tmp_path, rates=(1e-3, 5e-3), epochs=1)
    probe = AttentiveProbe(task, given, source, found)
    answer = probe(found)
    assert (answer.predicted == probe.examples.truth).mean() == 1.0
    assert answer.details["heads"] == 16
    assert {(trial["rate"], trial["decay"]) for trial in answer.details["validation"]} == {
        (rate, decay) for rate in (1e-3, 5e-3) for decay in (0.01, 0.1)
    }
    # The mean over patches, by a linear probe.
    pooled = torch.stack([Patches()(source_view(files, i)[None]).pooled[0].detach() for i in range(len(rows))])
    at = {int(row): i for i, row in enumerate(rows)}
    train, test = ([at[int(row)] for row in side] for side in (task.train, task.test))
    labels = torch.tensor([int(source.label(int(row)) or 0) for row in rows])
    linear = linear_probe(pooled[train], labels[train], classes=2, groups=np.asarray(train), epochs=1)
    assert (linear.predict(pooled[test]) == labels[test]).float().mean() < 0.8


def source_view(files: Files, number: int) -> torch.Tensor:
    _, views, _ = files[number]
    assert not isinstance(views, str)
    return views[0][0]


@pytest.mark.parametrize("kind", ["vit", "conv"])
def test_kept_and_fresh_tokens_give_one_result(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mmssl.evaluation.probes.attentive.LEAST_STEPS", 4)
    write_stripes(tmp_path / "data", per_class=10)
    torch.manual_seed(0)
    if kind == "vit":
        encoder: Encoder = ViT(ImagePatches(ImageSpec(size=16, patch=8), 16), ViTSettings(width=16, depth=1, heads=2))
    else:
        encoder = ConvEncoder(ImagePixels(ImageSpec(size=16)), "resnet18", "cifar")
    encoder.save_pretrained(tmp_path / "encoder")
    grid = {"epochs": 1, "rates": (1e-3,), "decays": (0.1,), "batch_size": 5}
    first = settings(tmp_path, **grid, shuffle_labels=kind == "vit").run()
    assert first["data"]["tokens"] == ([5, 16] if kind == "vit" else [4, 512])
    assert first["data"]["tokens_kept"]
    with monkeypatch.context() as patch:
        patch.setattr(tokens_module, "_compute", lambda *_: pytest.fail("tokens were kept and computed again"))
        again = settings(tmp_path, **grid).run()
    fresh = settings(tmp_path, **grid, cache=False, token_gib=0.0).run()
    assert not fresh["data"]["tokens_kept"]
    for other in (again, fresh):
        assert other["trained"]["per_class"] == first["trained"]["per_class"]
        kept, anew = (found["trained"]["validation"][0]["validation_loss"] for found in (first, other))
        assert anew == pytest.approx(kept, abs=1e-6)
        assert other["untrained"] == first["untrained"]
    assert first["trained"]["heads"] == 16
    assert first["chance"]["majority"] == 0.5
    assert "attentive on" in capsys.readouterr().out
    (read,) = read_evaluations(tmp_path)
    assert [one.measure for one in read.results] == ["top-1", "balanced accuracy"]
    assert json.loads((tmp_path / "a.json").read_text())["settings"]["rates"] == [1e-3]


@pytest.mark.parametrize("kept", [True, False])
def test_files_that_went_bad_are_left_out_and_named(kept, tmp_path, monkeypatch):
    monkeypatch.setattr("mmssl.evaluation.probes.attentive.LEAST_STEPS", 5)
    source = open_source(write_stripes(tmp_path / "data", per_class=10), "image")
    task = file_labels(source, 0)
    gone = [source.id(int(side[0])) for side in (task.train, task.test)]
    for name in gone:
        (tmp_path / "data" / name).write_bytes(b"no picture")
    torch.manual_seed(0)
    encoder = ViT(ImagePatches(ImageSpec(size=16, patch=8), 16), ViTSettings(width=16, depth=1, heads=2))
    given = settings(tmp_path, epochs=1, rates=(1e-3,), decays=(0.1,), token_gib=1.0 if kept else 0.0)
    result = attentive(with_twins(encoder, 0, 1), source, given)
    assert {entry["id"] for entry in result["data"]["skipped"]} == set(gone)
    assert result["data"]["examples"] == {"train": 15, "test": 3}
    assert result["data"]["tokens_kept"] == kept


def test_tokens_are_prefix_patches_or_places():
    assert tokens_of(
        Encoded(pooled=torch.randn(2, 3), tokens=torch.randn(2, 5, 3), prefix=torch.randn(2, 1, 3))
    ).shape == (
        2,
        6,
        3,
    )
    assert tokens_of(Encoded(pooled=torch.randn(2, 3), feature_map=torch.randn(2, 3, 4, 5))).shape == (2, 20, 3)
    assert tokens_of(Encoded(pooled=torch.randn(2, 3), feature_map=torch.randn(2, 3, 6, 4, 5))).shape == (2, 120, 3)


def test_settings_that_make_no_probe_are_refused(tmp_path):
    with pytest.raises(UserError, match="--rates needs one or more"):
        settings(tmp_path, rates=()).run()
