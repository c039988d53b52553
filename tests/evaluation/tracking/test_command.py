"""Claims, on files through a saved encoder: `mmssl evaluate propagation` carries masks and key points through videos of
the layouts of DAVIS and of key points, with image, clip and convolutional encoders; its figures are those of a
recomputation from the masks that it writes; films and strips can be read; mistakes end in one sentence."""

import dataclasses
import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mmssl.adapters.colour import rgb_to_lab
from mmssl.adapters.image import ImagePatches, ImagePixels
from mmssl.adapters.specs import AudioSpec, ImageSpec, VideoSpec
from mmssl.adapters.spectrogram import LogMel
from mmssl.adapters.stack import StackedFrames
from mmssl.adapters.video import VideoTubelets
from mmssl.cli import main
from mmssl.encoders.base import Encoder
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.dense import DenseEncoder, DenseSettings
from mmssl.encoders.headed import HeadedEncoder, HeadSettings, build_head
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.errors import UserError
from mmssl.evaluation.tracking.command import PropagationSettings, open_tracks
from mmssl.evaluation.tracking.dense import DenseFeatures, lab_patches
from mmssl.evaluation.tracking.masks import davis_tracks, read_mask, stretch
from mmssl.evaluation.tracking.propagation import PROTOCOLS
from mmssl.evaluation.tracking.scores import boundary_accuracy, region_similarity
from mmssl.evaluation.tracking.table import COPIED, LAB
from tests.evaluation.tracking.tracked import save_palette, square_masks, write_davis, write_keypoints, write_list

TINY = ViTSettings(width=32, depth=2, heads=2)


@pytest.fixture
def image_encoder() -> ViT:
    torch.manual_seed(3)
    return ViT(ImagePatches(ImageSpec(size=32, patch=8), 32), TINY)


def settings(tmp_path: Path, encoder: Encoder, data: Path, **options) -> PropagationSettings:
    encoder.save_pretrained(tmp_path / "encoder")
    small = {"size": 0, "multiple": 8, "seed": 7, **options}
    return PropagationSettings(
        encoder=str(tmp_path / "encoder"), data=str(data), out=tmp_path / "out/davis.json", **small
    )


def test_masks_from_files_to_figures(tmp_path, image_encoder, capsys):
    data = write_davis(tmp_path / "DAVIS")
    result = settings(tmp_path, image_encoder, data, save_masks=True, seeds=2).run()
    out = tmp_path / "out"
    assert json.loads((out / "davis.json").read_text()) == json.loads(json.dumps(result))
    printed = capsys.readouterr().out
    assert "untrained (seed 8)" in printed
    assert "left" in printed

    # The figures, from the masks that were written, by the DAVIS scorer's order of means: frames, then objects.
    means = []
    for video in ("left", "right"):
        for number in (1, 2):
            pairs = []
            for frame in range(1, 5):  # neither the first nor the last of 6
                truth = read_mask(data / f"Annotations/480p/{video}/{frame:05d}.png") == number
                found = read_mask(out / f"davis/masks/{video}/{frame:05d}.png") == number
                pairs.append((region_similarity(truth, found), boundary_accuracy(truth, found)))
            means.append(np.mean(pairs, 0))
    j, f = np.mean(means, 0)
    trained = result["trained"]
    assert (trained["J"], trained["F"], trained["J&F"]) == pytest.approx((j, f, (j + f) / 2))
    assert trained["videos"][1]["objects"][0]["J"] == pytest.approx(means[2][0])
    assert trained["by_video"]["J"] == pytest.approx(j)  # two objects in each: the same

    # Squares of 20 pixels that moved by 4 t: (20 - 4 t) / (20 + 4 t), known without a computer.
    copied = result["baselines"][COPIED]
    assert copied["J"] == pytest.approx(np.mean([(20 - 4 * t) / (20 + 4 * t) for t in range(1, 5)]))
    assert result["baselines"][LAB]["J"] > 0.6 > copied["J"]
    assert copied["difference"]["J"] == pytest.approx(trained["J"] - copied["J"])
    assert result["chance"]["J"] == copied["J"]
    gain = trained["by_video"]["J&F"] - result["untrained"]["by_video"]["J&F"]
    assert result["difference"]["J&F"] == pytest.approx(gain)
    low, high = result["difference"]["J&F_interval"]
    assert low <= gain <= high
    assert [one["seed"] for one in (result["untrained"], *result["further_untrained"])] == [7, 8]
    assert result["data"]["videos"][0] | {"labels": None} == {
        "name": "left",
        "frames": 6,
        "scored": 4,
        "frame": (64, 96),
        "input": (64, 96),
        "grid": (8, 12),
        "labels": None,
    }

    for video in ("left", "right"):
        with av.open(str(out / f"davis/{video}.mp4")) as film:
            frames = list(film.decode(video=0))
        assert len(frames) == 6
        assert (frames[0].height, frames[0].width) == (64, 96)
        ground = frames[0].to_ndarray(format="rgb24")[55, 5].astype(int)
        assert np.abs(ground - [90, 110, 90]).max() < 30
        strip = Image.open(out / f"davis/{video}.png")
        assert strip.width == 6 * 244 + 4
    assert read_mask(out / "davis/masks/left/00000.png").tolist() == square_masks(objects=2)[0].tolist()


@pytest.mark.parametrize("protocol", ["dino", "crw"])
def test_colours_carry_squares_in_both_protocols(tmp_path, image_encoder, protocol):
    """The squares differ from the ground in colour, so Lab patches must find them, to about half a cell of 8 pixels."""
    data = write_davis(tmp_path / "DAVIS", ("one",))
    options = settings(tmp_path, image_encoder, data, protocol=protocol, seeds=0, pictures=False)
    result = options.run()
    assert result["untrained"] is None
    assert result["protocol"]["previous"] == PROTOCOLS[protocol].previous
    assert result["protocol"]["layer"] == 0
    assert result["baselines"][LAB]["J"] > 0.6 > 1.5 * result["baselines"][COPIED]["J"]
    assert not (tmp_path / "out/davis").exists()


def test_davis_2016_masks_of_another_size(tmp_path, image_encoder):
    """0 and 255, twice the frames' size: one object, scored at the masks' size."""
    data = write_davis(tmp_path / "DAVIS", ("one",), objects=1, split="val")
    for file in (data / "Annotations/480p/one").iterdir():
        mask = read_mask(file).repeat(2, 0).repeat(2, 1) * 255
        Image.fromarray(mask, "L").save(file)
    (data / "JPEGImages/480p").rename(data / "JPEGImages/240p")
    result = settings(tmp_path, image_encoder, data, seeds=0, save_masks=True).run()
    mask = read_mask(tmp_path / "out/davis/masks/one/00002.png")
    assert mask.shape == (128, 192)
    assert set(np.unique(mask)) == {0, 255}
    assert result["baselines"][COPIED]["J"] == pytest.approx(
        np.mean([(40 - 8 * t) / (40 + 8 * t) for t in range(1, 5)])
    )
    assert result["trained"]["videos"][0]["objects"][0]["name"] == "1"


def test_void_pixels_are_not_scored(tmp_path):
    data = write_davis(tmp_path / "DAVIS", ("one",))
    mask = square_masks(objects=2)[1]
    mask[:, 60:] = 255
    save_palette(data / "Annotations/480p/one/00001.png", mask)
    (track,) = davis_tracks(data, "val")
    assert track.names == ("1", "2")
    guess = square_masks(objects=2)[1]
    guess[36:56, 50:96] = 2  # far too much of object 2, but where nobody knows
    assert (track.score(mask, np.where(mask == 255, guess, mask))[:, 0] == 1.0).all()


def test_key_points_from_files_to_figures(tmp_path, image_encoder):
    data = write_keypoints(tmp_path / "JHMDB")
    result = settings(tmp_path, image_encoder, data).run()
    assert result["task"] == "key points"
    # Joints (17.5, 17.5) and (73.5, 45.5) in frame 0; both move by 4 t, one of them not labelled in frame 2. The box's
    # diagonal in frame t is that of (56 - 8 t) x 28.
    copied, shares = result["baselines"][COPIED], []
    for _ in (0, 1):
        errors = [4 * t / (0.6 * np.hypot(56 - 8 * t, 28)) for t in range(1, 5) if t != 2]  # no box from one joint
        shares.append(np.mean(np.array(errors) <= 0.2))
    assert copied["PCK@0.2"] == pytest.approx(np.mean(shares))
    assert result["baselines"][LAB]["PCK@0.5"] == 1.0
    assert (tmp_path / "out/davis/walk.mp4").stat().st_size > 500
    assert (tmp_path / "out/davis/walk.png").is_file()


def test_a_key_point_returns_from_its_label_to_where_it_was(tmp_path):
    (track,) = open_tracks(write_keypoints(tmp_path))
    for grid in ((16, 24), (8, 12), (60, 90)):
        labels = track.labels(grid, PROTOCOLS["crw"])
        assert labels.shape == (2, *grid)
        found = track.decode(labels, (64, 96), PROTOCOLS["crw"])
        assert np.abs(found - track.truth(0)).max() < 0.5 * 64 / grid[0]
    lost = track.decode(torch.zeros(2, 8, 12), (64, 96), PROTOCOLS["crw"])
    assert np.isnan(lost).all()
    truth = track.truth(1)
    assert truth is not None
    assert (track.score(truth, lost) == np.inf).all()


# ---------------------------------------------------------------- features


def frame(height: int = 48, width: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def unit(features: torch.Tensor) -> None:
    torch.testing.assert_close(features.norm(dim=0), torch.ones(features.shape[1:]))


def test_tokens_of_a_frame_larger_than_in_training(image_encoder):
    """Positions are those of the frame's own grid: features equal the tokens of the encoder on that frame."""
    found = DenseFeatures(image_encoder.eval())(frame())
    assert found.shape == (32, 6, 8)
    unit(found)
    tokens = image_encoder(frame()[None]).tokens
    assert tokens is not None
    expected = torch.nn.functional.normalize(tokens[0, 2 * 8 + 3].detach(), dim=0)
    torch.testing.assert_close(found[:, 2, 3], expected)
    states = image_encoder(frame()[None], hidden=True).hidden
    assert states is not None
    inner = DenseFeatures(image_encoder, layer=1)(frame())
    torch.testing.assert_close(inner[:, 0, 0], torch.nn.functional.normalize(states[1][0, 1].detach(), dim=0))
    with pytest.raises(UserError, match="has the layers 1 to 2"):
        DenseFeatures(image_encoder, layer=3)(frame())


@pytest.mark.parametrize("positions", ["sincos1d", "learned", "separable", "rope3d"])
def test_a_clip_encoder_sees_the_frame_as_its_middle_tubelet(positions):
    torch.manual_seed(0)
    spec = VideoSpec(size=32, frames=8, patch=8, tubelet=2)
    width = 48
    vit = ViT(VideoTubelets(spec, width), ViTSettings(width=width, depth=2, heads=2, prefix=0, positions=positions))
    found = DenseFeatures(vit.eval())(frame())
    assert found.shape == (width, 6, 8)
    unit(found)
    clip = frame().expand(1, 8, -1, -1, -1)
    tokens = vit.tokenize(clip)
    middle = torch.arange(2 * 48, 3 * 48)[None]  # of 4 tubelets, the third
    alone = vit.encode(tokens, keep=middle).tokens
    assert alone is not None
    expected = torch.nn.functional.normalize(alone[0].detach().T.unflatten(1, (6, 8)), dim=0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_maps_of_convolutional_nets():
    torch.manual_seed(0)
    net = ConvEncoder(ImagePixels(ImageSpec(size=64)), "resnet18").eval()
    third = DenseFeatures(net, layer=3)(frame(96, 128))
    assert third.shape == (256, 6, 8)
    unit(third)
    assert DenseFeatures(net)(frame(96, 128)).shape == (512, 3, 4)
    dense = DenseEncoder(net, VideoSpec(size=64, frames=4), DenseSettings(out=16, hidden=8, layers=1)).eval()
    assert DenseFeatures(dense)(frame(96, 128)).shape == (16, 3, 4)
    numbers = PropagationSettings(encoder="e", data="", out=Path("o.json"), protocol="crw").numbers
    assert (numbers(convolutional=True).layer, numbers(convolutional=False).layer) == (3, 0)
    headed = HeadedEncoder(net, build_head(net, HeadSettings(hidden=8, out=4, channels=8)))
    torch.testing.assert_close(DenseFeatures(headed.eval(), layer=3)(frame(96, 128)), third)
    stacked = ConvEncoder(StackedFrames(VideoSpec(size=64, frames=4, stack="differences")), "resnet18")
    with pytest.raises(UserError, match="as a stack"):
        DenseFeatures(stacked)
    with pytest.raises(UserError, match="takes sound"):
        DenseFeatures(ConvEncoder(LogMel(AudioSpec()), "resnet18"))


def test_lab_patches_order_cells_by_distance_in_lab():
    found = lab_patches(frame(16, 24), (4, 6))
    unit(found)
    lab = rgb_to_lab(frame(16, 24)).double()
    cells = lab.unfold(1, 4, 4).unfold(2, 4, 4)  # [3,4,6,4,4]
    distance = (cells - cells[:, 1:2, 2:3]).square().sum((0, 3, 4)).flatten()
    cosine = (found * found[:, 1:2, 2:3]).sum(0).double().flatten()
    expected = 1 - distance / (2 * 16 * (50.0**2 + 2 * 128.0**2))
    assert ((expected - cosine) >= -1e-6).all()
    assert ((expected - cosine) <= 0.02 * (1 - expected) + 1e-6).all()  # the further coordinate's part
    assert torch.equal(cosine.argsort(descending=True)[:5], distance.argsort()[:5])


def test_labels_are_stretched_as_dino_does():
    soft = torch.tensor([[[0.2, 0.6], [0.4, 0.2]], [[0.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(stretch(soft)[0], torch.tensor([[0.0, 1.0], [0.5, 0.0]]))
    assert (stretch(soft)[1] == 0).all()


# ---------------------------------------------------------------- mistakes


def spoil(data: Path, what: str) -> None:
    mask = data / "Annotations/480p/left/00000.png"
    if what == "no first mask":
        mask.unlink()
    elif what == "another ratio":
        Image.fromarray(read_mask(mask)[:, :64]).save(mask)
    elif what == "another size later":
        Image.fromarray(read_mask(mask)[:32, :48]).save(data / "Annotations/480p/left/00003.png")
    elif what == "an empty first mask":
        Image.fromarray(np.zeros((64, 96), np.uint8)).save(mask)
    elif what == "a colour picture":
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)).save(mask)
    elif what == "no masks to score":
        for number in range(1, 5):
            (data / f"Annotations/480p/left/{number:05d}.png").unlink()
    elif what == "a mask without a frame":
        mask.with_name("00009.png").write_bytes(mask.read_bytes())
    elif what == "two frames":
        for number in range(2, 6):
            (data / f"JPEGImages/480p/left/{number:05d}.jpg").unlink()
    elif what == "an absent video":
        write_list(data, "2017/val", ("left", "lion", "right"))
    elif what == "another frame size":
        Image.new("RGB", (80, 64)).save(data / "JPEGImages/480p/left/00002.jpg")
    elif what == "a broken frame":
        (data / "JPEGImages/480p/left/00002.jpg").write_bytes(b"\xff\xd8 no")
    elif what == "no list":
        (data / "ImageSets/2017/val.txt").rename(data / "ImageSets/2017/train.txt")
    elif what == "two lists":
        write_list(data, "a/val", ("left",))
        write_list(data, "b/val", ("left",))
        (data / "ImageSets/2017/val.txt").unlink()
    elif what == "two resolutions":
        (data / "JPEGImages/480p").rename(data / "JPEGImages/Full")
        (data / "JPEGImages/240p").mkdir()


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("no first mask", "has no mask 00000.png of the first frame"),
        ("another ratio", "00000.png is 64x64 and its frame 96x64"),
        ("another size later", "00003.png has 48x32 pixels and the first mask of the video 96x64"),
        ("an empty first mask", "00000.png is empty"),
        ("a colour picture", "is a picture of mode RGB, not a mask"),
        ("no masks to score", "nothing can be scored"),
        ("a mask without a frame", "00009.png belongs to no frame"),
        ("two frames", "has 2 frames: a video needs 3"),
        ("an absent video", "names 1 of 3 videos that"),
        ("another frame size", "00002.jpg has 80x64 pixels and the first frame of the video 96x64"),
        ("a broken frame", "00002.jpg cannot be read as a picture"),
        ("no list", "has no list 'val': give --split one of 2017/train, all"),
        ("two lists", "has several lists 'val': give --split one of a/val, b/val, all"),
        ("two resolutions", "give --resolution one of 240p, Full"),
    ],
)
def test_what_does_not_fit_ends_in_one_sentence(tmp_path, image_encoder, what, sentence, capsys):
    data = write_davis(tmp_path / "DAVIS", objects=1)
    spoil(data, what)
    options = settings(tmp_path, image_encoder, data, pictures=True, seeds=0)
    with pytest.raises(UserError) as error:
        options.run()
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out/davis.json").exists()
    assert not (tmp_path / "out/davis/left.mp4").exists()  # no film that was only begun


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.pop("joints"), "is no file of key points"),
        (lambda c: c["points"].pop(), "has points of 4 frames for 5 frames"),
        (lambda c: c["points"].__setitem__(0, [None, None]), "has no point in the first frame"),
        (lambda c: c["joints"].append("more"), "not one [x, y] for each of 3 joints"),
    ],
)
def test_key_points_that_do_not_fit_end_in_one_sentence(tmp_path, change, sentence):
    data = write_keypoints(tmp_path)
    file = data / "Keypoints/walk.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"walk\.json") as error:
        open_tracks(data)
    assert sentence in str(error.value)
    file.unlink()
    with pytest.raises(UserError, match=r"walk.json is missing"):
        open_tracks(data)


def test_the_command_line_says_what_is_wrong(tmp_path, image_encoder, capsys):
    image_encoder.save_pretrained(tmp_path / "encoder")
    command = ["evaluate", "propagation", "--encoder", str(tmp_path / "encoder"), "--out", str(tmp_path / "o.json")]
    data = write_davis(tmp_path / "DAVIS", ("one",), objects=1)
    for extra, sentence in (
        (["--data", str(tmp_path)], "has neither Annotations/"),
        (["--data", str(data), "--videos", "two"], "has no such video"),
        (["--data", str(data), "--top-k", "0"], "--top-k is 0"),
        (["--data", str(data), "--size", "4"], "smaller than one patch of 8"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(command + extra)
        assert stop.value.code == 2
        assert sentence in capsys.readouterr().err
    main(
        [
            *command,
            "--data",
            str(data),
            "--size",
            "0",
            "--multiple",
            "8",
            "--seeds",
            "0",
            "--top-k",
            "3",
            "--no-pictures",
        ]
    )
    assert json.loads((tmp_path / "o.json").read_text())["protocol"]["top_k"] == 3


def test_every_number_of_a_protocol_can_be_replaced():
    fields = {field.name for field in dataclasses.fields(PropagationSettings)}
    assert {field.name for field in dataclasses.fields(PROTOCOLS["dino"])} <= fields
