"""Laws of screening: all windows kept is the sliding window, a skipped window neither adds nor takes away, none kept is no answer."""

import numpy as np
import pytest
import torch
from torch import nn

from vesalius.core.errors import GeometryError, RunError, UsageError
from vesalius.inferers import SlidingWindow
from vesalius.inferers.screened import Screened
from vesalius.inferers.sliding import importance


def image_of(shape, channels=2, seed=0):
    return torch.randn((channels, *shape), generator=torch.Generator().manual_seed(seed))


def conv(dims, seed=0):
    torch.manual_seed(seed)
    return (nn.Conv2d if dims == 2 else nn.Conv3d)(2, 3, 3, padding=1).requires_grad_(False)


def by_mean(windows):
    """A glance: windows of a high mean are worth a look."""
    return windows.flatten(1).mean(1).sigmoid()


@pytest.mark.parametrize("shape,patch", [((37, 29), (16, 16)), ((23, 31, 19), (12, 10, 8)), ((5, 4, 3), (8, 9, 6))])
def test_every_window_kept_is_the_sliding_window(shape, patch):
    image, forward = image_of(shape), conv(len(shape))
    found = Screened(patch, glance=by_mean, least=0.0)(forward, image)
    torch.testing.assert_close(found["logits"], SlidingWindow(patch)(forward, image), atol=1e-5, rtol=1e-5)
    assert found["looked"].all() and found["looked"].shape == (1, *shape)


@pytest.mark.parametrize("mirror", [(), (0, 2)])
def test_brute_force_average_over_the_kept_windows(mirror):
    """Against weight maps of the whole image, summed over kept windows alone: sum(w * logit) / sum(w)."""
    image, forward, patch = image_of((22, 17, 13)), conv(3), (8, 6, 7)
    inferer = Screened(patch, overlap=0.4, glance=by_mean, least=0.51, mirror_axes=mirror)
    whole = SlidingWindow(patch, mirror_axes=mirror)
    weight = importance(8)[:, None, None] * importance(6)[:, None] * importance(7)
    top, bottom = torch.zeros(3, 22, 17, 13, dtype=torch.float64), torch.zeros(22, 17, 13, dtype=torch.float64)
    kept = 0
    for corner in np.stack(np.meshgrid(*inferer._grid((22, 17, 13)), indexing="ij"), -1).reshape(-1, 3):
        at = (slice(None), *(slice(c, c + p) for c, p in zip(corner, patch)))
        if by_mean(image[at][None]) >= 0.51:
            top[at] += weight * whole(forward, image[at]).double()
            bottom[at[1:]] += weight
            kept += 1
    found = inferer(forward, image)
    assert 3 < kept < len(found["chance"]) - 3 and int((found["chance"] >= 0.51).sum()) == kept
    assert torch.equal(found["looked"][0], bottom > 0)
    expected = torch.where(bottom > 0, top / bottom, 0.0).float()
    torch.testing.assert_close(found["logits"], expected, atol=1e-5, rtol=1e-5)


def test_only_kept_windows_are_forwarded():
    image = torch.zeros(1, 64, 64)
    image[:, 40:60, 8:20] = 1
    seen = []

    def forward(x):
        seen.append(len(x))
        return x * 2

    found = Screened((16, 16), batch=3, glance=lambda w: (w.flatten(1).amax(1) > 0).float())(forward, image)
    kept = int((found["chance"] >= 0.5).sum())
    assert sum(seen) == kept < len(found["chance"]) / 3
    torch.testing.assert_close(found["logits"], image * 2, atol=1e-5, rtol=1e-5)  # slabs before the first kept window are 0
    assert not found["looked"][0, :32].any() and found["looked"][0, 40:60, 8:20].all()


def test_a_skipped_neighbour_takes_nothing_away():
    """A kept window's answer stands where only it looked, however many skipped windows overlap it."""
    image = torch.zeros(1, 40, 40)
    image[0, 18:22, 18:22] = 1
    full = (image[0, 12:28, 12:28] > 0).sum()
    found = Screened((16, 16), overlap=0.75, glance=lambda w: (w.flatten(1).sum(1) >= full).float())(lambda x: torch.ones_like(x), image)
    looked = found["looked"]
    torch.testing.assert_close(found["logits"][looked], torch.ones(int(looked.sum())))
    assert not found["logits"][~looked].any() and 0 < looked.float().mean() < 1


def test_no_window_kept_is_no_answer_and_no_forward():
    def forward(_):
        raise AssertionError("nothing is forwarded")

    done = []
    found = Screened((8, 8, 8), glance=lambda w: w.new_zeros(len(w)))(forward, image_of((20, 9, 12)), progress=done.append)
    assert set(found) == {"looked", "chance", "corner"} and not found["looked"].any() and not found["chance"].any()
    assert sum(done) == len(found["chance"]) == len(found["corner"])


def test_windows_are_named_by_their_corners_and_a_glance_sees_what_the_forward_would():
    image = torch.arange(12 * 10.0).reshape(1, 12, 10)
    glanced = []
    found = Screened((4, 14), glance=lambda w: glanced.append(w) or w.new_ones(len(w)), glances=2)(lambda x: x, image)
    corner, windows = found["corner"], torch.cat(glanced)
    assert [len(g) for g in glanced[:-1]] == [2] * (len(glanced) - 1) and corner.tolist()[0] == [0, -2] and corner.tolist()[-1] == [8, -2]
    for (row, _), window in zip(corner.tolist(), windows):
        assert torch.equal(window[0, :, 2:12], image[0, row : row + 4]) and not window[0, :, :2].any() and not window[0, :, 12:].any()


def test_named_maps_condition_and_progress():
    done, image = [], image_of((20, 20))
    forward = lambda x, c: {"a": x + c, "b": x[:, :1]}
    found = Screened((8, 8), batch=3, glance=by_mean, least=0.5)(forward, image, condition=3.0, progress=done.append)
    looked = found["looked"][0]
    torch.testing.assert_close(found["a"][:, looked], image[:, looked] + 3, atol=1e-5, rtol=1e-5)
    assert found["b"].shape == (1, 20, 20) and sum(done) == len(found["chance"])


def test_visited_windows_parts_add_up_to_the_blend():
    """``only`` of the sliding window: two halves of the windows give two parts of the same map."""
    image, forward, inferer = image_of((30, 25)), conv(2), SlidingWindow((12, 12))
    places = inferer.places((30, 25))
    first, second = set(places[::2]), set(places[1::2])
    parts = inferer(forward, image, only=first) + inferer(forward, image, only=second)
    torch.testing.assert_close(parts, inferer(forward, image), atol=1e-5, rtol=1e-5)
    assert inferer(forward, image, only=set()) == {}


@pytest.mark.parametrize("bad", [{"least": -0.1}, {"least": 1.1}, {"glances": 0}, {"overlap": 1.0}])
def test_impossible_screening_is_refused(bad):
    with pytest.raises(UsageError):
        Screened(**{"patch": (8, 8), "glance": by_mean, **bad})


def test_mismatches_are_refused():
    with pytest.raises(GeometryError):
        Screened((8, 8), glance=by_mean)(lambda x: x, torch.zeros(1, 8, 8, 8))
    with pytest.raises(RunError, match="one number a window"):
        Screened((8, 8), glance=lambda w: w)(lambda x: x, torch.zeros(1, 8, 8))
    with pytest.raises(RunError, match="list"):
        Screened((8, 8), glance=by_mean, least=0.0)(lambda x: [x], torch.zeros(1, 8, 8))
