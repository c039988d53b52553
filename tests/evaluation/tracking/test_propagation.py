"""Claims: one step equals a loop over cells written out in NumPy float64, for squares and discs, however it is cut into
chunks; both protocols have their published numbers and contexts; perfect features carry a moving square exactly; a long
video costs no more memory than a short one; frames get the sizes of DINO's script."""

import dataclasses
import gc
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmssl.errors import UserError
from mmssl.evaluation.tracking.propagation import PROTOCOLS, Context, Propagation, check_protocol, input_size, propagate
from mmssl.evaluation.tracking.scores import region_similarity


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=0)


def context(seed: int, grid: tuple[int, int] = (5, 7)) -> Context:
    labels = torch.rand(3, *grid, generator=torch.Generator().manual_seed(100 + seed))
    return Context(unit(6, *grid, seed=seed), labels)


def by_hand(query, free, near, top_k, temperature, radius, window) -> np.ndarray:
    """For every cell, over every context cell: cosine, sort, weights exp(cosine / T), divide by their sum."""
    query = query.double().numpy()
    _, h, w = query.shape
    out = np.zeros((len((free + near)[0].labels), h, w))
    for i in range(h):
        for j in range(w):
            found = []
            for frame, limited in [(f, False) for f in free] + [(f, True) for f in near]:
                for p in range(h):
                    for q in range(w):
                        far = max(abs(i - p), abs(j - q)) > radius
                        if window == "disc":
                            far = np.hypot(i - p, j - q) >= radius
                        if limited and radius and far:
                            continue
                        cosine = query[:, i, j] @ frame.features[:, p, q].double().numpy()
                        found.append((cosine, frame.labels[:, p, q].double().numpy()))
            best = sorted(found, key=lambda pair: -pair[0])[:top_k]
            weights = np.exp(np.array([cosine for cosine, _ in best]) / temperature)
            out[:, i, j] = sum(weight * label for weight, (_, label) in zip(weights, best, strict=True)) / weights.sum()
    return out


@pytest.mark.parametrize("window", ["square", "disc"])
@pytest.mark.parametrize(("radius", "top_k"), [(0, 4), (2, 4), (1, 40), (2.5, 3)])
@pytest.mark.parametrize("chunk", [1, 2000, 1 << 23])
def test_a_step_equals_the_loop_over_cells(window, radius, top_k, chunk):
    free, near, query = [context(0)], [context(1), context(2)], unit(6, 5, 7, seed=9)
    options = {"top_k": top_k, "temperature": 0.1, "radius": radius, "window": window}
    found = propagate(query, free, near, **options, chunk=chunk)
    torch.testing.assert_close(
        found.double(), torch.from_numpy(by_hand(query, free, near, **options)), atol=1e-5, rtol=0
    )
    limited = propagate(query, [], free + near, **options, chunk=chunk)
    expected = by_hand(query, [], free + near, **options)
    torch.testing.assert_close(limited.double(), torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_soft_labels_stay_a_distribution():
    labels = torch.rand(3, 5, 7).softmax(0)
    state = Propagation(PROTOCOLS["dino"], unit(6, 5, 7), labels)
    for seed in range(4):
        torch.testing.assert_close(state.step(unit(6, 5, 7, seed=seed)).sum(0), torch.ones(5, 7))


def test_the_presets_have_the_published_numbers():
    """DINO's eval_video_segmentation.py and CRW's test.py with the options of its README."""
    dino, crw = PROTOCOLS["dino"], PROTOCOLS["crw"]
    assert (dino.size, dino.multiple, dino.previous, dino.top_k, dino.temperature, dino.radius) == (
        480,
        64,
        7,
        5,
        0.1,
        12,
    )
    assert (dino.window, dino.restrict_first, dino.repeat_first) == ("square", True, False)
    assert (dino.reduce, dino.normalise, dino.argmax, dino.layer) == ("nearest", True, "input", 0)
    assert (crw.size, crw.layer, crw.previous, crw.top_k, crw.temperature, crw.radius) == (0, 3, 20, 10, 0.05, 12)
    assert (crw.window, crw.restrict_first, crw.repeat_first) == ("disc", False, True)
    assert (crw.reduce, crw.normalise, crw.argmax) == ("bilinear", False, "mask")


@pytest.mark.parametrize(("name", "first", "fifth"), [("dino", 1, 5), ("crw", 21, 21)])
def test_the_context_is_frame_0_and_the_previous_ones(name, first, fifth, monkeypatch):
    seen = []

    def spy(query, free, near, **options):
        seen.append((free, near))
        return torch.zeros(2, 2, 2)

    monkeypatch.setattr("mmssl.evaluation.tracking.propagation.propagate", spy)
    features = [unit(3, 2, 2, seed=seed) for seed in range(30)]
    state = Propagation(PROTOCOLS[name], features[0], torch.zeros(2, 2, 2))
    for one in features[1:]:
        state.step(one)
    sizes = [len(free) + len(near) for free, near in seen]
    assert sizes[0] == first
    assert sizes[4] == fifth
    free, near = seen[-1]  # frame 29
    previous = PROTOCOLS[name].previous
    expected = [0, *range(29 - previous, 29)]
    assert [next(i for i, f in enumerate(features) if f is frame.features) for frame in [*free, *near]] == expected
    assert len(free) == (name == "crw")
    assert all(frame.features is features[0] for frame in seen[0][0] + seen[0][1])


@pytest.mark.parametrize("name", ["dino", "crw"])
def test_perfect_features_carry_a_square_exactly(name):
    """Each cell's feature says which part of the square it is, or that it is ground: nothing is left to doubt."""
    frames, h, w, side = 12, 16, 40, 5
    masks = np.zeros((frames, h, w), bool)
    codes = torch.eye(side * side + 1)
    maps = []
    for time in range(frames):
        masks[time, 4 : 4 + side, 3 + 2 * time : 3 + 2 * time + side] = True
        numbers = torch.zeros(h, w, dtype=torch.long)
        numbers[torch.from_numpy(masks[time])] = torch.arange(1, side * side + 1)
        maps.append(codes[numbers].permute(2, 0, 1))
    truth = torch.from_numpy(masks)
    start = torch.stack([~truth[0], truth[0]]).float()
    # Ground cells all look alike, so that ground is found within any reach; the square moves out of the reach of frame
    # 0, and is carried on by the frames in between.
    state = Propagation(dataclasses.replace(PROTOCOLS[name], radius=4, top_k=1), maps[0], start)
    for time in range(1, frames):
        predicted = state.step(maps[time]).argmax(0).numpy().astype(bool)
        assert region_similarity(masks[time], predicted) == 1.0


def test_constant_features_copy_what_is_near():
    """Where all cells look alike, nothing may be invented: a cell with background all around stays background."""
    features = F.normalize(torch.ones(4, 9, 9), dim=0)
    labels = torch.zeros(2, 9, 9)
    labels[0] = 1
    labels[:, 0, 0] = torch.tensor([0.0, 1.0])
    out = Propagation(dataclasses.replace(PROTOCOLS["dino"], radius=1, top_k=9), features, labels).step(features)
    torch.testing.assert_close(out[1, 2:], torch.zeros(7, 9))
    assert out[1, 0, 0] == pytest.approx(1 / 4)  # one of the four cells that a corner reaches


@pytest.mark.parametrize(("name", "held"), [("dino", 1 + 7), ("crw", 1 + 20)])
def test_a_long_video_holds_the_context_only(name, held):
    alive: set[int] = set()
    peak = 0

    def frame(number: int) -> torch.Tensor:
        features = unit(4, 4, 6, seed=number)
        alive.add(number)
        weakref.finalize(features, alive.discard, number)
        return features

    state = Propagation(PROTOCOLS[name], frame(0), torch.ones(2, 4, 6))
    for number in range(1, 300):
        state.step(frame(number))
        gc.collect(0)
        peak = max(peak, len(alive))
    assert peak == held
    assert len(state.recent) == PROTOCOLS[name].previous


def test_affinities_are_made_in_parts(monkeypatch):
    """No part of the affinities is above the limit by more than one row of queries."""
    sizes = []
    real = torch.cat

    def spy(tensors, dim=0):
        out = real(tensors, dim)
        sizes.append(out.numel())
        return out

    grid, chunk = (20, 30), 60_000
    near = [context(seed, grid) for seed in range(5)]
    monkeypatch.setattr(torch, "cat", spy)
    propagate(unit(6, *grid), [], near, top_k=5, temperature=0.1, radius=2, chunk=chunk)
    assert 30 * 5 * 5 * 30 <= max(sizes) <= 2.5 * chunk
    assert 20 * chunk < 20 * 30 * 5 * 20 * 30  # all at once would be far more


@pytest.mark.parametrize(
    ("frame", "protocol", "patch", "expected"),
    [
        ((480, 854), "dino", 16, (480, 832)),
        ((854, 480), "dino", 8, (832, 480)),
        ((240, 427), "dino", 16, (480, 832)),
        ((480, 854), "dino", 14, (476, 854)),  # 14 does not divide 64: multiples of the patch
        ((480, 854), "crw", 1, (480, 854)),
        ((480, 854), "crw", 16, (480, 848)),
    ],
)
def test_frames_get_the_size_of_the_protocol(frame, protocol, patch, expected):
    height, width = frame
    assert input_size(height, width, PROTOCOLS[protocol], patch) == expected


def test_numbers_without_a_meaning_are_refused():
    with pytest.raises(UserError, match="smaller than one patch of 16"):
        input_size(12, 100, PROTOCOLS["crw"], 16)
    for wrong, message in (
        ({"top_k": 0}, "--top-k is 0"),
        ({"temperature": 0.0}, "--temperature"),
        ({"radius": -1}, "-1"),
    ):
        with pytest.raises(UserError, match=message):
            check_protocol(dataclasses.replace(PROTOCOLS["dino"], **wrong))
