"""Laws of the sliding window: a pointwise forward is undisturbed, every voxel is covered, slabs equal the whole, MONAI agrees."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from vesalius.core.errors import GeometryError, RunError, UsageError
from vesalius.inferers import SlidingWindow
from vesalius.inferers.sliding import _axis_weights, _starts, importance

SHAPES = [
    ((37, 29), (16, 16)),
    ((16, 16), (16, 16)),
    ((7, 50), (16, 12)),
    ((23, 31, 19), (12, 10, 8)),
    ((48, 40, 3), (16, 16, 16)),
    ((5, 4, 3), (8, 9, 6)),
]


def image_of(shape, channels=2, seed=0):
    return torch.randn((channels, *shape), generator=torch.Generator().manual_seed(seed))


def conv(dims, seed=0, size=3):
    torch.manual_seed(seed)
    return (nn.Conv2d if dims == 2 else nn.Conv3d)(2, 3, size, padding=size // 2).requires_grad_(False)


@pytest.mark.parametrize("shape,patch", SHAPES)
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
def test_pointwise_forward_equals_the_whole_image(shape, patch, overlap):
    image = image_of(shape)
    forward = conv(len(shape), size=1)
    found = SlidingWindow(patch, overlap=overlap)(forward, image)
    assert found.dtype == torch.float32 and found.shape == (3, *shape)
    torch.testing.assert_close(found, forward(image[None])[0], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("shape,patch", SHAPES)
def test_constant_forward_gives_the_constant(shape, patch):
    found = SlidingWindow(patch)(lambda x: torch.full((len(x), 1, *x.shape[2:]), 7.5), image_of(shape))
    torch.testing.assert_close(found, torch.full((1, *shape), 7.5), atol=1e-5, rtol=0)


@pytest.mark.parametrize("n", range(1, 60))
def test_windows_cover_the_axis_and_weights_add_up_to_one(n):
    for patch, overlap in [(8, 0.5), (7, 0.3), (16, 0.75), (1, 0.0)]:
        starts = _starts(n, patch, overlap)
        assert starts == sorted(set(starts)) and starts[0] == 0 and starts[-1] == max(0, n - patch)
        assert all(b - a <= max(1, int(patch * (1 - overlap))) for a, b in zip(starts, starts[1:]))
        total = torch.zeros(max(n, patch))
        for s, w in zip(starts, _axis_weights(starts, n, patch, torch.device("cpu"))):
            assert (w > 0).all()
            total[s : s + patch] += w
        torch.testing.assert_close(total, torch.ones_like(total))


def test_brute_force_blend():
    """Against weight maps of the whole image: sum(w * logit) / sum(w)."""
    image, forward, patch = image_of((22, 17, 13)), conv(3), (8, 6, 7)
    inferer = SlidingWindow(patch, overlap=0.4)
    g = [importance(p) for p in patch]
    weight = g[0][:, None, None] * g[1][:, None] * g[2]
    top, bottom = torch.zeros(3, 22, 17, 13, dtype=torch.float64), torch.zeros(22, 17, 13, dtype=torch.float64)
    for corner in np.stack(np.meshgrid(*inferer._grid((22, 17, 13)), indexing="ij"), -1).reshape(-1, 3):
        at = tuple(slice(c, c + p) for c, p in zip(corner, patch))
        top[(slice(None), *at)] += weight * forward(image[(slice(None), *at)][None])[0].double()
        bottom[at] += weight
    torch.testing.assert_close(inferer(forward, image), (top / bottom).float(), atol=1e-5, rtol=1e-5)


def test_small_image_is_padded_on_both_sides_with_zeros():
    seen = []
    SlidingWindow((8, 8))(lambda x: seen.append(x) or x, torch.ones(1, 3, 8))
    assert seen[0].shape == (1, 1, 8, 8)
    assert seen[0][0, 0, :, 0].tolist() == [0, 0, 1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("batch", [2, 3, 50])
def test_batch_equals_one_by_one(batch):
    image, forward = image_of((30, 25)), conv(2)
    one = SlidingWindow((12, 12))(forward, image)
    torch.testing.assert_close(SlidingWindow((12, 12), batch=batch)(forward, image), one, atol=1e-6, rtol=1e-6)


def test_same_call_same_numbers():
    image, forward = image_of((20, 21, 9)), conv(3)
    assert torch.equal(SlidingWindow((8, 8, 8))(forward, image), SlidingWindow((8, 8, 8))(forward, image))


def test_maps_by_name_with_different_channels():
    image = image_of((19, 33))
    found = SlidingWindow((8, 8))(lambda x: {"logits": x, "distance": x[:, :1] * 2}, image)
    torch.testing.assert_close(found["logits"], image, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found["distance"], image[:1] * 2, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape,patch", SHAPES)
def test_slabs_tile_the_image_and_equal_the_whole(shape, patch, tmp_path):
    image, forward = image_of(shape), conv(len(shape))
    inferer = SlidingWindow(patch)
    out = np.lib.format.open_memmap(tmp_path / "maps.npy", mode="w+", dtype=np.float32, shape=(3, *shape))
    at = 0
    for name, start, rows in inferer.rows(forward, image):
        assert name == "" and start == at and rows.shape[1] <= patch[0]
        out[:, start : start + rows.shape[1]] = rows.numpy()
        at += rows.shape[1]
    assert at == shape[0]
    assert np.array_equal(out, inferer(forward, image).numpy())


def test_mirroring_averages_over_all_flips():
    image, forward = image_of((8, 8)), conv(2)
    flips = [a for n in range(3) for a in combinations((2, 3), n)]
    wanted = sum(forward(image[None].flip(a)).flip(a) if a else forward(image[None]) for a in flips)[0] / 4
    torch.testing.assert_close(SlidingWindow((8, 8), mirror_axes=(0, 1))(forward, image), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
def test_gate_spares_windows_and_keeps_the_answer(batch):
    image = torch.zeros(2, 64, 64) - 1
    image[:, 8:20, 8:20] = image_of((12, 12))
    image.clamp_(min=-1)
    calls = []

    def forward(x):
        calls.append(len(x))
        return x * 2

    gated = SlidingWindow((16, 16), batch=batch, gate=lambda w: bool((w != w.flatten(1)[:, 0, None, None]).any()))
    torch.testing.assert_close(gated(forward, image), image * 2, atol=1e-5, rtol=1e-5)
    assert sum(calls) < gated.count((64, 64)) / 3


def test_condition_and_progress_reach_their_ends():
    done = []
    inferer = SlidingWindow((8, 8), batch=3)
    found = inferer(lambda x, c: x + c, torch.zeros(1, 20, 20), condition=3.0, progress=done.append)
    torch.testing.assert_close(found, torch.full((1, 20, 20), 3.0))
    assert sum(done) == inferer.count((20, 20)) == 16


def test_gradients_reach_the_image():
    image = image_of((20, 14)).requires_grad_()
    SlidingWindow((8, 8))(lambda x: x * 3, image).sum().backward()
    torch.testing.assert_close(image.grad, torch.full_like(image, 3.0), atol=1e-5, rtol=1e-5)


def test_half_precision_logits_are_added_up_in_float32():
    found = SlidingWindow((8, 8))(lambda x: x.bfloat16(), torch.full((1, 40, 40), 1.5))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full((1, 40, 40), 1.5), atol=1e-6, rtol=1e-6)


IMPOSSIBLE = [{"patch": (0, 4)}, {"overlap": 1.0}, {"overlap": -0.1}, {"batch": 0}, {"mirror_axes": (2,)}, {"mirror_axes": (0, 0)}]


@pytest.mark.parametrize("bad", IMPOSSIBLE)
def test_impossible_windows_are_refused(bad):
    with pytest.raises(UsageError):
        SlidingWindow(**{"patch": (8, 8), **bad})


def test_mismatches_are_refused():
    with pytest.raises(GeometryError):
        SlidingWindow((8, 8))(lambda x: x, torch.zeros(1, 8, 8, 8))
    with pytest.raises(GeometryError):
        SlidingWindow((8, 8))(lambda x: x, torch.zeros(1, 0, 8))
    with pytest.raises(RunError, match="not as large"):
        SlidingWindow((8, 8))(lambda x: x[..., ::2], torch.zeros(1, 8, 8))
    with pytest.raises(RunError, match="list"):
        SlidingWindow((8, 8))(lambda x: [x], torch.zeros(1, 8, 8))


@pytest.fixture(scope="module")
def monai_sliding():
    return pytest.importorskip("monai.inferers.utils").sliding_window_inference


@pytest.mark.parametrize("shape,patch", [((32, 48), (16, 16)), ((24, 16, 20), (8, 8, 8)), ((6, 16, 24), (8, 8, 8))])
def test_monai_agrees_where_the_windows_coincide(monai_sliding, shape, patch):
    image, forward = image_of(shape), conv(len(shape))
    ours = SlidingWindow(patch)(forward, image)
    g = [importance(p).float() for p in patch]
    weight = g[0][:, None] * g[1] if len(patch) == 2 else g[0][:, None, None] * g[1][:, None] * g[2]
    args = {"roi_size": patch, "sw_batch_size": 1, "predictor": forward, "overlap": 0.5}
    same_weights = monai_sliding(image[None], mode="constant", roi_weight_map=weight, **args)[0]
    torch.testing.assert_close(ours, same_weights, atol=1e-5, rtol=1e-4)


def test_monai_s_own_gaussian_is_close(monai_sliding):
    """MONAI cuts the product of the weights off below 1e-3, which is not separable and moves the blend a little where all are small."""
    image, forward = image_of((40, 32, 24)), conv(3)
    ours = SlidingWindow((16, 16, 16))(forward, image)
    theirs = monai_sliding(image[None], (16, 16, 16), 1, forward, overlap=0.5, mode="gaussian")[0]
    inside = (ours - theirs).abs()[:, 8:-8, 8:-8, 8:-8]
    assert inside.median() < 2e-3 and inside.mean() < 0.01 * theirs.abs().mean()


def test_some_windows_are_the_image_s_own_and_spread():
    image = torch.arange(12 * 10.0).reshape(1, 12, 10)
    inferer = SlidingWindow((4, 4))
    every = inferer.some(image, 1000)
    assert len(every) == inferer.count((12, 10)) and torch.equal(every[0], image[:, :4, :4]) and torch.equal(every[-1], image[:, -4:, -4:])
    few = inferer.some(image, 3)
    assert few.shape == (3, 1, 4, 4) and len(few.unique(dim=0)) == 3
    assert all(any(torch.equal(w, e) for e in every) for w in few)
    small = inferer.some(image[:, :2], 5)
    assert torch.equal(small[0, 0, 1:3], image[0, :2, :4]) and not small[:, :, 0].any() and not small[:, :, 3].any()


TANH = (torch.tanh, lambda p: p.clamp(-0.999999, 0.999999).atanh())


@pytest.mark.parametrize("mirror", [(), (0, 1)])
def test_a_link_averages_what_is_seen_and_gives_logits_back(mirror):
    image, inner = image_of((30, 25)), conv(2)
    forward = lambda x: inner(x) + 9 * x.mean((1, 2, 3), keepdim=True)  # windows differ where they overlap
    plain, linked = (SlidingWindow((12, 12), mirror_axes=mirror, link=link) for link in (None, TANH))
    found = linked(forward, image)
    torch.testing.assert_close(found.tanh(), plain(lambda x: forward(x).tanh(), image), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, plain(forward, image), atol=1e-2)
    slabs = torch.cat([rows.clone() for _, _, rows in linked.rows(forward, image)], 1)
    assert torch.equal(slabs, found)


def test_with_a_link_a_sure_window_does_not_outvote_a_likely_one():
    """Where two windows overlap, the first says 0.6 with more than half the weight and the second is without a doubt that it is not."""
    answers = iter([torch.tensor(0.6).atanh(), torch.tensor(-9.0)] * 2)
    forward = lambda x: torch.full((1, 1, *x.shape[2:]), next(answers).item())
    image, column = torch.zeros(1, 8, 12), 5  # windows at 0 and 4
    first, second = importance(8)[column], importance(8)[column - 4]
    expected = (0.6 * first - second) / (first + second)
    assert expected > 0
    seen = SlidingWindow((8, 8), link=TANH)(forward, image)[0, 0, column]
    assert torch.isclose(seen.tanh().double(), expected, atol=1e-4) and SlidingWindow((8, 8))(forward, image)[0, 0, column] < 0


def test_a_part_of_the_windows_cannot_be_linked():
    with pytest.raises(UsageError, match="visited all"):
        SlidingWindow((8, 8), link=TANH)(conv(2), image_of((20, 20)), only={(0, 0)})
