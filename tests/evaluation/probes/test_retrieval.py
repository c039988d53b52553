"""Claims: the recalls of a retrieval on files equal a brute-force search in NumPy on the embeddings that
`mmssl embed` wrote; chance is the mean over random orders; the report shows every figure."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from mmssl.adapters.image import ImagePatches
from mmssl.adapters.specs import ImageSpec
from mmssl.data.sources import open_source
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.errors import UserError
from mmssl.evaluation.embed import EmbedSettings, run_embed
from mmssl.evaluation.labels import file_labels
from mmssl.evaluation.probes.retrieval import RetrievalSettings, chance_of_hit, nearest
from mmssl.report.reading import read_evaluations
from tests.evaluation.standins import write_stripes


def test_nearest_is_a_brute_force_search():
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(50, 6)), rng.normal(size=(20, 6))
    cosine = (queries / np.linalg.norm(queries, axis=1)[:, None]) @ (bank / np.linalg.norm(bank, axis=1)[:, None]).T
    found = nearest(torch.from_numpy(bank * rng.uniform(0.1, 9, (50, 1))), torch.from_numpy(queries), 10)
    np.testing.assert_array_equal(found.numpy(), np.argsort(-cosine, axis=1)[:, :10])
    assert nearest(torch.from_numpy(bank[:3]), torch.from_numpy(queries), 10).shape == (20, 3)


def test_chance_is_the_mean_over_random_orders():
    rng = np.random.default_rng(1)
    train, test = np.array([0] * 5 + [1] * 12 + [2] * 2), np.array([0, 1, 1, 2, 3])  # none of class 3 to be found
    for k in (1, 5, 10):
        blind = [np.mean([(rng.permutation(train)[:k] == c).any() for c in test]) for _ in range(4000)]
        assert chance_of_hit(train, test, k) == pytest.approx(np.mean(blind), abs=0.015)
    assert chance_of_hit(train, np.array([1]), 8) == 1.0  # 7 examples are of other classes
    assert chance_of_hit(train, np.array([0, 1]), 99) == 1.0


def test_recalls_equal_numpy_on_the_written_embeddings(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))
    pictures = write_stripes(tmp_path / "pictures", per_class=20)
    torch.manual_seed(5)
    made = ViT(ImagePatches(ImageSpec(size=32, patch=8), 32), ViTSettings(width=32, depth=2, heads=2))
    made.save_pretrained(tmp_path / "encoder")
    given: dict[str, Any] = {"encoder": str(tmp_path / "encoder"), "data": str(pictures), "workers": 0}
    result = RetrievalSettings(**given, out=tmp_path / "run/retrieval.json", seeds=2).run()
    said = capsys.readouterr().out
    assert "R@10" in said
    assert "untrained (seed 1)" in said
    table = run_embed(EmbedSettings(**given, out=tmp_path / "e.parquet"))
    x = np.array(table["embedding"].to_pylist(), dtype=np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    labels = np.array(table["label"].to_pylist())
    task = file_labels(open_source(pictures, "image"), seed=0)
    for k in (1, 5, 10):
        hits = [
            (labels[task.train][np.argsort(-(x[task.train] @ x[row]))[:k]] == labels[row]).any() for row in task.test
        ]
        assert result["trained"][f"recall_at_{k}"] == pytest.approx(np.mean(hits))
        assert result["chance"][f"recall_at_{k}"] == pytest.approx(
            chance_of_hit(np.repeat([0, 1], 16), np.repeat([0, 1], 4), k)
        )
    assert json.loads((tmp_path / "run/retrieval.json").read_text())["evaluation"] == "retrieval"
    assert [row["name"] for row in result["trained"]["per_class"]] == ["lying", "standing"]
    (read,) = read_evaluations(tmp_path / "run")
    assert [one.measure for one in read.results] == ["R@1", "R@5", "R@10"]
    assert read.results[1].chance == pytest.approx(result["chance"]["recall_at_5"])
    assert read.results[0].gain_interval is not None


def test_shuffled_labels_make_no_sense_here(tmp_path):
    settings = RetrievalSettings(encoder="e", data="d", out=tmp_path / "r.json", shuffle_labels=True)
    with pytest.raises(UserError, match="retrieval trains none"):
        settings.run()
