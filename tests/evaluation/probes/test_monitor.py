"""Claims: the signs of collapse equal their papers' formulas, recomputed in NumPy and at values known by hand; the
monitor tells a good encoder from a collapsed one on real files."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from mmssl.adapters.specs import ImageSpec, VideoSpec
from mmssl.data.media import Record
from mmssl.errors import UserError
from mmssl.evaluation.probes.monitor import Monitor, effective_rank, feature_std, uniformity
from tests.evaluation.standins import FolderSource, write_stripes

CPU = torch.device("cpu")


@pytest.fixture
def features():
    return torch.randn(200, 16, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 16)


def test_equal_numpy(features):
    x = features.numpy().astype(np.float64)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert float(feature_std(features)) == pytest.approx(unit.std(0).mean() * 4)
    assert float(uniformity(features)) == pytest.approx(np.log(np.exp(-2 * pdist(unit, "sqeuclidean")).mean()))
    share = np.linalg.svd(x, compute_uv=False)
    share = share / share.sum()
    assert float(effective_rank(features)) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)


def test_values_known_by_hand():
    point = torch.ones(50, 8)
    assert float(feature_std(point)) == pytest.approx(0, abs=1e-6)
    assert float(uniformity(point)) == pytest.approx(0, abs=1e-6)
    assert float(effective_rank(point)) == pytest.approx(1, abs=1e-4)
    assert float(effective_rank(torch.eye(8))) == pytest.approx(8, rel=1e-4)
    # Two opposite points: half of the pairs are at squared distance 4.
    pair = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert float(uniformity(pair)) == pytest.approx(-8)
    even = torch.randn(20000, 64, generator=torch.Generator().manual_seed(1))
    assert float(feature_std(even)) == pytest.approx(1, abs=0.01)


def stripes(tmp_path, labelled=True, count=12):
    write_stripes(tmp_path, per_class=count)
    paths = sorted(tmp_path.rglob("*.png"))
    names = [str(path.relative_to(tmp_path)) for path in paths]
    records = [
        Record(id=n, kind="image", path=n, label=p.parent.name if labelled else None)
        for n, p in zip(names, paths, strict=True)
    ]
    return FolderSource(tmp_path, records)


def direction(batch):
    """Features that know the answer: differences along each axis."""
    x = batch.views["view"].float().mean(1)
    return torch.stack([x.diff(dim=1).abs().mean((1, 2)), x.diff(dim=2).abs().mean((1, 2))], 1)


def test_tells_good_from_collapsed(tmp_path):
    monitor = Monitor(stripes(tmp_path), ImageSpec(size=32, patch=16), seed=0, batch_size=5)
    assert all(batch.views["view"].dtype == torch.uint8 for batch in monitor.batches)
    assert "2 classes" in monitor.note
    assert monitor.chance == pytest.approx(0.5)
    good = monitor.measure(direction, CPU)
    assert good["knn_top1"] == 1.0
    collapsed = monitor.measure(lambda batch: torch.ones(len(batch), 6), CPU)
    assert collapsed["knn_top1"] <= 0.5
    assert collapsed["effective_rank"] == pytest.approx(1, abs=1e-3)
    assert collapsed["feature_std"] < 1e-6 < good["feature_std"]
    broken = monitor.measure(lambda batch: torch.full((len(batch), 6), float("nan")), CPU)
    assert set(broken) == set(good)
    assert all(np.isnan(value) for value in broken.values())


def test_without_labels_only_collapse_is_watched(tmp_path):
    monitor = Monitor(stripes(tmp_path, labelled=False), ImageSpec(size=32, patch=16), seed=0, limit=10)
    assert sum(map(len, monitor.batches)) == 10
    assert monitor.chance is None
    assert set(monitor.measure(direction, CPU)) == {"feature_std", "effective_rank", "uniformity"}


def test_memory_bounds_the_samples(tmp_path):
    monitor = Monitor(stripes(tmp_path), ImageSpec(size=32, patch=16), seed=0, memory=9 * 3 * 32 * 32)
    assert sum(map(len, monitor.batches)) == 9


def test_unreadable_files_are_an_error_of_one_sentence(tmp_path):
    source = stripes(tmp_path, labelled=False)
    for record in source.records:
        (tmp_path / record.path).write_bytes(b"not a picture")
    with pytest.raises(UserError, match="could read 0 of 24 files"):
        Monitor(source, ImageSpec(size=32, patch=16), seed=0)


def test_a_video_spec_is_counted_in_frames():
    from mmssl.evaluation.probes.monitor import _bytes

    assert _bytes(VideoSpec(size=224, frames=16)) == 16 * 3 * 224 * 224
