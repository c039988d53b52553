"""Alignment between cameras: 0 for embeddings that agree, 1/3 for ones that say nothing, equal to a NumPy
re-computation; states by ridge as scikit-learn has it; and the command on rendered dots, where raw pixels of mirrored
cameras must fail and a brightness-free view of the truth must not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from mmssl.adapters.image import ImagePatches
from mmssl.adapters.specs import ImageSpec, VideoSpec
from mmssl.adapters.video import VideoTubelets
from mmssl.cli import main
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.errors import UserError
from mmssl.evaluation.cameras.alignment import AlignmentSettings, alignment_errors, random_error, sequence_error
from mmssl.evaluation.cameras.states import r2, read_states, regress, ridge
from tests.cameras import make_cameras


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cameras(tmp_path_factory.mktemp("dots"), splits=True)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(3)
    ViT(ImagePatches(ImageSpec(size=32, patch=8), 32), ViTSettings(width=32, depth=1, heads=2)).save_pretrained(folder)
    return folder


# ----------------------------------------------------------------------------------------------------------- the figure


def test_embeddings_that_agree_align_perfectly() -> None:
    x = torch.randn(50, 8)
    assert alignment_errors(x, x).sum() == 0
    assert alignment_errors(x, x + 1e-3 * torch.randn(50, 8)).sum() == 0


def test_random_embeddings_align_at_a_third() -> None:
    """Over all pairs |i - j| / T is (T^2 - 1) / (3 T^2) on average: enumerated here, and measured on 40 sequences."""
    for instants in (2, 7, 100):
        i = np.arange(instants)
        assert random_error(instants) == pytest.approx(np.abs(i[:, None] - i).mean() / instants)
    torch.manual_seed(0)
    found = np.array([float(alignment_errors(torch.randn(100, 32), torch.randn(100, 32)).mean()) for _ in range(40)])
    assert found.mean() == pytest.approx(1 / 3, abs=4 * found.std() / 40**0.5)
    assert abs(found.mean() - 1 / 3) < 0.02


def test_the_error_is_that_of_numpy_over_all_ordered_pairs() -> None:
    torch.manual_seed(0)
    features = torch.randn(3, 20, 4)
    x = features.double().numpy()
    expected = []
    for i in range(3):
        for j in range(3):
            if i != j:
                nearest = ((x[i][:, None] - x[j]) ** 2).sum(2).argmin(1)
                expected.append(np.abs(nearest - np.arange(20)).mean() / 20)
    assert sequence_error(features) == pytest.approx(np.mean(expected))


def test_reversed_time_is_worse_than_random() -> None:
    x = torch.arange(10.0).unsqueeze(1)
    assert float(alignment_errors(x, x.flip(0)).mean()) == pytest.approx(0.5)


# ------------------------------------------------------------------------------------------------------------- states


@pytest.mark.parametrize(("n", "d"), [(40, 6), (30, 50)])
def test_ridge_is_that_of_scikit_learn(n: int, d: int) -> None:
    rng = np.random.default_rng(0)
    x, y, queries = (rng.normal(size=shape).astype(np.float32) for shape in ((n, d), (n, 3), (9, d)))
    x[:, 0] *= 100
    penalties = np.array([1e-3, 1.0, 50.0])
    found = ridge(x, y, queries, penalties)
    scaler = StandardScaler().fit(x)
    for penalty, answer in zip(penalties, found, strict=True):
        model = Ridge(alpha=n * penalty).fit(scaler.transform(x), y)
        np.testing.assert_allclose(answer, model.predict(scaler.transform(queries)), rtol=1e-3, atol=1e-4)


def test_states_that_features_hold_are_read_off_and_others_are_not() -> None:
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(400, 3))
    x = (hidden @ rng.normal(size=(3, 10)) + 5).astype(np.float32)
    y = np.stack([hidden[:, 0], 2 * hidden[:, 1] - 7, rng.normal(size=400)], 1)
    groups = np.repeat(np.arange(20), 20)
    found = regress((x[:300], y[:300], groups[:300]), (x[300:], y[300:], groups[300:]), seed=0)
    assert (found[:2] > 0.99).all()
    assert abs(found[2]) < 0.2
    assert r2(y, np.tile(y.mean(0), (400, 1))) == pytest.approx([0, 0, 0], abs=1e-9)


def test_labels_of_both_formats_and_the_nearest_moment(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("sequence,time,x,y\nb,1.0,5,6\na,0.5,1,2\na,0.1,3,4\n")
    states = read_states(tmp_path, ["a", "b"])
    assert states is not None
    assert states.names == ("x", "y")
    np.testing.assert_array_equal(states.at("a", np.array([-1, 0.29, 0.31, 9])), [[3, 4], [3, 4], [1, 2], [1, 2]])
    np.testing.assert_array_equal(states.at("b", np.array([0.0, 2.0])), [[5, 6], [5, 6]])
    (tmp_path / "labels.csv").unlink()
    np.savez(tmp_path / "labels.npz", sequence=np.array(["a", "a"]), time=[0.0, 1.0], x=[1.0, 2.0])
    again = read_states(tmp_path, ["a", "b"])
    assert again is not None
    np.testing.assert_array_equal(again.at("a", np.array([0.9])), [[2]])
    (tmp_path / "labels.npz").unlink()
    assert read_states(tmp_path, ["a"]) is None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("sequence,time,x\ngone,0,1\n", "labels 1 sequences that are not in .*first: gone; the first there is a"),
        ("sequence,x\na,1\n", "no column 'time'"),
        ("sequence,time,x\na,0,high\n", "cannot be read as labels"),
        ("sequence,time,x\na,0,nan\n", "not finite"),
        ("", "no rows"),
        ("sequence,time\na,0\n", "cannot be read as labels"),
    ],
)
def test_wrong_labels_end_in_a_sentence(content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_states(tmp_path, ["a"])


# --------------------------------------------------------------------------------------------------------- the command


def test_command(data: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "alignment.json"
    main(["evaluate", "alignment", "--encoder", str(encoder), "--data", str(data), "--out", str(out), "--seeds", "2"])
    result = json.loads(out.read_text())
    figures = result["alignment"]
    assert list(figures["subjects"]) == ["trained", "untrained (seed 0)", "untrained (seed 1)", "pixels"]
    assert result["data"]["sequences"] == ["test/dot4", "test/dot5"]
    assert result["data"]["instants"] == [35, 35]  # what both cameras film, 0.5 to 3.95 s
    assert figures["random"] == pytest.approx(random_error(35))
    for name, one in figures["trained_minus"].items():
        assert one["error"] == pytest.approx(
            figures["subjects"]["trained"]["error"] - figures["subjects"][name]["error"]
        )
    states = result["states"]
    assert states["labels"] == ["x", "y"]
    assert states["sequences"] == {"train": 4, "test": 2}
    assert states["r2"]["pixels"]["y"] > 0.6, "pixels hold the height of a dot that both cameras show upright"
    with Image.open(out.with_suffix(".png")) as strip:
        assert strip.size[0] > 800
    said = capsys.readouterr().out
    assert "film different times" in said
    assert "held-out sequences" in said


def test_a_split_by_seed_compares_every_sequence(encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    root = make_cameras(tmp_path / "data", sequences=3)
    settings = AlignmentSettings(encoder=str(encoder), data=str(root), out=tmp_path / "a.json", rate=100)
    result = settings.run()
    assert result["data"]["split"] == "by seed"
    assert result["data"]["instants"] == [42] * 3, "3.45 s at the 12 frames/s of the slower camera"
    assert result["states"]["sequences"] == {"train": 2, "test": 1}


def test_an_encoder_of_clips_is_refused(data: Path, tmp_path: Path) -> None:
    clips = ViTSettings(width=32, depth=1, heads=2, prefix=0, positions="sincos1d", qkv_bias="qv")
    ViT(VideoTubelets(VideoSpec(size=16, frames=4, patch=8), 32), clips).save_pretrained(tmp_path / "clips")
    with pytest.raises(UserError, match="takes video, and alignment compares single frames"):
        AlignmentSettings(encoder=str(tmp_path / "clips"), data=str(data), out=tmp_path / "a.json").run()
