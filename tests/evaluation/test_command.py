"""Claims, end to end on files through a saved encoder: the figures of the JSON file equal a recomputation in NumPy from
the embeddings that `mmssl embed` wrote; the untrained twin is what a build at that seed gives; features are computed
once; workers change nothing; mistakes end in one sentence."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mmssl.adapters.image import ImagePatches, ImagePixels
from mmssl.adapters.specs import AudioSpec, ImageSpec, VideoSpec
from mmssl.adapters.spectrogram import SpectrogramPatches
from mmssl.adapters.video import VideoTubelets
from mmssl.data.sources import open_source
from mmssl.encoders.base import Encoder
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.errors import UserError
from mmssl.evaluation import features
from mmssl.evaluation.embed import EmbedSettings, run_embed
from mmssl.evaluation.features import extract
from mmssl.evaluation.probes.knn import KnnSettings
from mmssl.evaluation.probes.linear import LinearSettings
from mmssl.evaluation.subject import encoder_hash, untrained
from mmssl.evaluation.views import evaluation_views
from tests.evaluation.standins import write_moving_squares, write_stripes, write_tones

TINY = ViTSettings(width=32, depth=2, heads=2)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pictures(tmp_path):
    return write_stripes(tmp_path / "pictures")


@pytest.fixture
def encoder(tmp_path) -> Encoder:
    torch.manual_seed(5)
    made = ViT(ImagePatches(ImageSpec(size=32, patch=8), 32), TINY)
    made.save_pretrained(tmp_path / "encoder")
    return made


def options(tmp_path, name, data="pictures"):
    return {"encoder": str(tmp_path / "encoder"), "data": str(tmp_path / data), "out": tmp_path / name, "workers": 0}


def test_knn_equals_numpy_on_the_written_embeddings(tmp_path, pictures, encoder, capsys):
    settings = KnnSettings(
        **options(tmp_path, "results/knn.json"), k=5, neighbours=(1, 3), shuffle_labels=True, seeds=2
    )
    result = settings.run()
    assert json.loads((tmp_path / "results/knn.json").read_text()) == json.loads(json.dumps(result))
    assert "untrained (seed 1)" in capsys.readouterr().out

    table = run_embed(EmbedSettings(**options(tmp_path, "e.parquet")))
    assert pq.read_table(tmp_path / "e.parquet").equals(table, check_metadata=True)
    assert table.column_names == ["id", "row", "split", "label", "embedding"]
    assert str(table.schema.field("embedding").type).startswith("fixed_size_list<")
    facts = json.loads(table.schema.metadata[b"mmssl"])
    assert facts["sha256"] == result["encoder"]["sha256"] == encoder_hash(encoder)
    assert facts["pooling"] == "mean"
    assert table["label"].to_pylist() == [name.split("/")[0] for name in table["id"].to_pylist()]

    x = np.array(table["embedding"].to_pylist(), dtype=np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    labels = np.array(table["label"].to_pylist())
    rows = table["row"].to_pylist()
    assert rows == list(range(24))
    from mmssl.evaluation.labels import file_labels

    task = file_labels(open_source(pictures, "image"), seed=0)
    right = []
    for row in task.test:
        cosine = x[task.train] @ x[row]
        near = np.argsort(-cosine)[:5]
        votes = {c: np.exp(cosine[near][labels[task.train][near] == c] / 0.07).sum() for c in task.classes}
        right.append(max(votes, key=lambda c: votes[c]) == labels[row])
    assert result["trained"]["top1"] == pytest.approx(np.mean(right))
    assert sorted(result["trained"]["top1_by_k"]) == ["1", "3", "5"]

    assert result["data"]["files"] == {"train": 18, "test": 6}
    assert result["chance"] == {"majority": 0.5, "majority_balanced": 0.5, "uniform": 0.5, "uniform_balanced": 0.5}
    assert result["untrained"]["seed"] == 0
    assert [twin["seed"] for twin in result["further_untrained"]] == [1]
    assert result["difference"]["top1"] == pytest.approx(result["trained"]["top1"] - result["untrained"]["top1"])
    assert result["shuffled"]["top1"] == pytest.approx(np.mean(result["shuffled"]["top1_each"]))
    assert len(set(result["shuffled"]["top1_each"])) > 1
    assert result["trained"]["top1"] > result["shuffled"]["top1_interval"][0]
    assert result["versions"]["torch"] == torch.__version__


def test_linear_probe_reports_what_it_chose(tmp_path, pictures, encoder, capsys):
    result = LinearSettings(**options(tmp_path, "linear.json"), epochs=1).run()
    trained = result["trained"]
    assert len(trained["validation"]) == 20
    assert (trained["rate"], trained["decay"]) in {(t["rate"], t["decay"]) for t in trained["validation"]}
    assert {"top1", "top1_interval", "balanced", "balanced_interval", "per_class"} <= set(result["untrained"])
    assert f"lr {trained['rate']:g}" in capsys.readouterr().out


def test_features_equal_the_encoder_on_each_file_and_are_computed_once(tmp_path, pictures, encoder, monkeypatch):
    source = open_source(pictures, "image")
    rows = source.rows(None)[::-1]
    found = extract(encoder, source, rows, batch_size=7, cache=tmp_path / "kept")
    assert found.rows.tolist() == rows.tolist()
    assert found.ids[0] == source.id(int(rows[0]))
    view = evaluation_views(encoder.spec)(source.media(3), np.random.default_rng(0))[0].views["view"]
    expected = encoder.eval()(view[None]).pooled[0].detach()
    torch.testing.assert_close(torch.from_numpy(found.x[rows.tolist().index(3)]), expected, atol=1e-5, rtol=1e-5)

    def never(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(features, "_compute", never)
    again = extract(encoder, source, rows, cache=tmp_path / "kept")
    assert (again.x == found.x).all()
    assert again.labels == found.labels
    with pytest.raises(AssertionError, match="computed again"):
        extract(encoder, source, rows[:-1], cache=tmp_path / "kept")
    with torch.no_grad():
        next(encoder.parameters()).add_(1e-3)
    with pytest.raises(AssertionError, match="computed again"):
        extract(encoder, source, rows, cache=tmp_path / "kept")


def test_a_damaged_cache_is_computed_again(tmp_path, pictures, encoder):
    source = open_source(pictures, "image")
    found = extract(encoder, source, source.rows(None), cache=tmp_path / "kept")
    (file,) = (tmp_path / "kept").iterdir()
    file.write_bytes(file.read_bytes()[:-200])
    assert (extract(encoder, source, source.rows(None), cache=tmp_path / "kept").x == found.x).all()


def test_workers_change_nothing_and_the_mode_of_the_encoder_survives(tmp_path, pictures, encoder):
    source = open_source(pictures, "image", out=tmp_path)
    encoder.train()
    alone, helped = (extract(encoder, source, source.rows(None), workers=workers) for workers in (0, 1))
    assert (alone.x == helped.x).all()
    assert all(part.training for part in encoder.modules())


def test_untrained_is_a_fresh_build_at_that_seed(encoder):
    torch.manual_seed(3)
    fresh = ViT(ImagePatches(ImageSpec(size=32, patch=8), 32), TINY)
    before = torch.get_rng_state()
    twin = untrained(encoder, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), fresh.parameters(), strict=True))
    assert encoder_hash(twin) == encoder_hash(fresh)
    assert len({encoder_hash(twin), encoder_hash(untrained(encoder, 4)), encoder_hash(encoder)}) == 3


def test_untrained_convolutional_net():
    net = ConvEncoder(ImagePixels(ImageSpec(size=32)), "resnet18", "cifar")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    twin = untrained(net, 0)
    assert isinstance(twin, ConvEncoder)
    assert twin.conv1.weight.std() > 0.01
    assert (net.conv1.weight == 0).all()


def test_playback_speed_on_held_out_videos(tmp_path):
    data = write_moving_squares(tmp_path / "videos", files=10, frames=40)
    spec = VideoSpec(size=32, frames=4, stride=2, patch=16)
    settings = ViTSettings(width=32, depth=1, heads=2, prefix=0, positions="sincos1d")
    ViT(VideoTubelets(spec, 32), settings).save_pretrained(tmp_path / "encoder")
    given = {**options(tmp_path, "speed.json", "videos"), "labels": "speed"}
    result = KnnSettings(**given).run()
    assert result["evaluation"] == "knn (speed)"
    assert result["data"]["classes"] == ["1x", "2x", "4x"]
    assert result["data"]["files"] == {"train": 8, "test": 2}
    assert result["data"]["examples"] == {"train": 96, "test": 24}
    assert [row["n"] for row in result["trained"]["per_class"]] == [8, 8, 8]
    assert result["chance"]["uniform"] == pytest.approx(1 / 3)
    with pytest.raises(UserError, match="carries a label"):
        KnnSettings(**{**given, "labels": "data"}).run()
    with pytest.raises(UserError, match="tells apart"):
        KnnSettings(**given, clips=2).run()
    assert data.exists()


def test_recordings_with_several_segments(tmp_path):
    write_tones(tmp_path / "tones")
    spec = AudioSpec(frames=32, mels=32, patch=16)
    adapter = SpectrogramPatches(spec, 32)
    ViT(adapter, ViTSettings(width=32, depth=1, heads=2)).save_pretrained(tmp_path / "encoder")
    result = LinearSettings(**options(tmp_path, "tones.json", "tones"), clips=3, epochs=1).run()
    assert result["data"]["examples"] == {"train": 16, "test": 4}
    assert result["trained"]["top1"] == 1.0, "two pitches are two spectra to any linear map"


def test_unreadable_files_are_listed_or_stop(tmp_path, pictures, encoder):
    source = open_source(pictures, "image")
    (pictures / "lying/000.png").write_bytes(b"broken after it was verified")
    found = extract(encoder, source, source.rows(None))
    assert len(found.rows) == 23
    assert found.skipped[0][0] == "lying/000.png"
    for number in range(1, 6):
        (pictures / f"lying/{number:03d}.png").write_bytes(b"broken")
    with pytest.raises(UserError, match="of 24 files could not be read"):
        extract(encoder, source, source.rows(None))


def test_a_diverged_encoder(tmp_path, pictures, encoder):
    with torch.no_grad():
        next(encoder.parameters()).fill_(float("nan"))
    source = open_source(pictures, "image")
    with pytest.raises(UserError, match="its training diverged"):
        extract(encoder, source, source.rows(None))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": "cuda:99"}, "--device cuda:99"),
        ({"seeds": 0}, "--seeds is 0"),
        ({"clips": 3}, "1 for images"),
        ({"k": 0}, "counts of 1 or more"),
        ({"batch_size": 0}, "--batch-size is 0: give 1"),
        ({"labels": "speed"}, "takes image"),
        ({"data": "nowhere-at-all/never/x"}, "nowhere-at-all"),
    ],
)
def test_mistakes_end_in_one_sentence(tmp_path, pictures, encoder, change, words):
    with pytest.raises(UserError, match=words):
        KnnSettings(**{**options(tmp_path, "x.json"), **change}).run()
    assert not (tmp_path / "x.json").exists()


def test_out_that_is_a_folder_is_refused_before_any_work(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        KnnSettings(encoder="none", data="none", out=tmp_path).run()
    with pytest.raises(UserError, match="is a folder"):
        run_embed(EmbedSettings(encoder="none", data="none", out=tmp_path))
