"""Claims: neighbours equal scikit-learn's by cosine distance, agreement is at chance on shuffled labels and one on
clusters, the map separates clusters and repeats exactly, and `collect` leaves files that the report shows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from mmssl.adapters.image import ImagePatches
from mmssl.adapters.specs import ImageSpec
from mmssl.data.sources import open_source
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.report.build import write_report
from mmssl.report.neighbours import agreement, choose_queries, collect, embedding_map, nearest, thumbnail
from tests.media import make_image_tree
from tests.report.runs import noise


def test_neighbours_equal_those_of_scikit_learn() -> None:
    x = noise(1500, 24)
    indices, similarities = nearest(x, 6)
    oracle = NearestNeighbors(n_neighbors=7, metric="cosine", algorithm="brute").fit(x)
    distances, expected = oracle.kneighbors(x)
    assert (indices == expected[:, 1:]).mean() > 0.999  # rounding may swap a tie
    np.testing.assert_allclose(similarities, 1 - distances[:, 1:], atol=1e-5)
    assert (indices != np.arange(1500)[:, None]).all()


def clusters(each: int = 60) -> tuple[np.ndarray, list[str | None]]:
    centres = 8 * noise(4, 16, seed=1)
    labels: list[str | None] = [f"class {i % 4}" for i in range(4 * each)]
    return np.stack([centres[i % 4] for i in range(4 * each)]) + noise(4 * each, 16), labels


def test_agreement_of_clusters_and_of_shuffled_labels() -> None:
    x, labels = clusters()
    indices, _ = nearest(x, 6)
    found = agreement(indices, labels)
    assert found is not None
    assert found.share == 1
    assert found.chance == pytest.approx(59 / 239)  # others of the same class among all others
    rng = np.random.default_rng(0)
    shuffled = [agreement(indices, [labels[i] for i in rng.permutation(240)]) for _ in range(40)]
    assert np.mean([one.share for one in shuffled if one]) == pytest.approx(found.chance, abs=0.02)
    assert agreement(indices, [None] * 240) is None


def test_queries_cover_the_labels() -> None:
    labels = ["common"] * 97 + ["rare", None, "other"]
    chosen = choose_queries(labels, 8, seed=0)
    assert len(set(chosen)) == 8
    assert {labels[i] for i in chosen} == {"common", "rare", None, "other"}
    assert choose_queries(labels, 8, seed=0) == chosen
    assert len(choose_queries(["a", "b"], 8, seed=0)) == 2


def test_the_map_separates_clusters_and_repeats() -> None:
    x, labels = clusters(each=25)
    found = embedding_map(x, labels)
    assert found.method == "t-SNE (perplexity 25, seed 0) of 100 of 100 samples"
    points = np.array(found.points)
    assert np.abs(points).max() <= 1.5
    share = agreement(NearestNeighbors(n_neighbors=7).fit(points).kneighbors(points)[1][:, 1:], labels)
    assert share is not None
    assert share.share > 0.98
    assert embedding_map(x, labels).points == found.points
    few = embedding_map(x[:20], labels[:20])
    assert "principal components" in few.method
    assert len(few.points) == 20


def test_thumbnails_show_what_the_encoder_gets() -> None:
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    assert (thumbnail(image)[::3, ::3] == image.permute(1, 2, 0).numpy()).all()
    clip = torch.stack([torch.full((3, 96, 96), t, dtype=torch.uint8) for t in range(9)])
    assert (thumbnail(clip) == 4).all()
    time = torch.arange(16000) / 16000
    tone = thumbnail(torch.sin(2 * torch.pi * 1000 * time), 16000).astype(int).sum(axis=(1, 2))
    # rows are logarithmic from 8 kHz (top) to 50 Hz: 1 kHz lies log(8)/log(160) of the way down
    assert tone.argmax() / len(tone) == pytest.approx(np.log(8) / np.log(160), abs=0.03)


def test_collect_leaves_files_that_the_report_shows(tmp_path: Path) -> None:
    source = open_source(str(make_image_tree(tmp_path / "media")), "image")
    encoder = ViT(ImagePatches(ImageSpec(size=32, patch=8), width=24), ViTSettings(width=24, depth=1, heads=2))
    out = tmp_path / "run"
    out.mkdir()
    content = json.loads(collect(out, encoder, source).read_text())
    assert content["samples"] == len(source)
    assert len(content["rows"]) == 8
    assert all(len(row) == 7 for row in content["rows"])
    ids = {source.id(row): source.label(row) for row in range(len(source))}
    for row in content["rows"]:
        assert all(ids[cell["id"]] == cell["label"] for cell in row)
        assert row[0]["similarity"] == 1
        assert [cell["similarity"] for cell in row[1:]] == sorted((c["similarity"] for c in row[1:]), reverse=True)
        assert all(Image.open(out / cell["file"]).size == (96, 96) for cell in row)
    (out / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    page = write_report(out).read_text()
    assert page.count('src="data:image/webp') == 8 * 7
    assert "Embedding map" in page


def test_an_encoder_that_diverged_ends_in_a_sentence(tmp_path: Path) -> None:
    source = open_source(str(make_image_tree(tmp_path / "media")), "image")
    encoder = ViT(ImagePatches(ImageSpec(size=32, patch=8), width=24), ViTSettings(width=24, depth=1, heads=2))
    with torch.no_grad():
        next(encoder.parameters()).fill_(float("nan"))
    out = tmp_path / "run"
    out.mkdir()
    assert "not finite" in json.loads(collect(out, encoder, source).read_text())["problem"]
