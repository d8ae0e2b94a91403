"""What is hidden of an image: how much, in which blocks and rings, and what the error of a guess is."""

import pytest
import torch

from vesalius.core.errors import UsageError
from vesalius.objectives.masked_image import MaskedImage, without


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_whole_blocks_are_hidden_and_their_share_is_rounded_up():
    hidden = MaskedImage(hide=0.6, block=32).blocks(torch.zeros(5, 1, 128, 96), 8)
    assert hidden.shape == (5, 16, 12)
    blocks = hidden.view(5, 4, 4, 3, 4).transpose(2, 3).flatten(3)
    assert (blocks.all(-1) == blocks.any(-1)).all()
    assert (blocks.all(-1).flatten(1).sum(1) == 8).all()  # 7.2 of 12
    assert len({tuple(row.tolist()) for row in hidden.flatten(1)}) > 1


def test_blocks_need_not_divide_the_image_nor_be_larger_than_a_token():
    hidden = MaskedImage(hide=0.5, block=32).blocks(torch.zeros(2, 1, 80, 40), 16)
    assert hidden.shape == (2, 5, 2) and hidden.any() and not hidden.all()
    assert MaskedImage(hide=0.99, block=32).blocks(torch.zeros(2, 1, 64, 64), 16).flatten(1).sum(1).tolist() == [12, 12]  # of 16
    assert (MaskedImage(hide=0.5, block=4).blocks(torch.zeros(2, 1, 64, 64), 16).flatten(1).sum(1) == 8).all()


def test_rings_are_rings_around_a_protected_centre():
    masks = MaskedImage(rings=6, protect=0.1)
    ring, f = (
        masks.ring((40, 64)),
        torch.stack(torch.meshgrid(torch.fft.fftfreq(40), torch.fft.fftfreq(64), indexing="ij")).square().sum(0).sqrt(),
    )
    assert ((ring == -1) == (f < 0.1)).all() and ring[0, 0] == -1 and ring.max() == 5
    edges = [float(f[ring == k].min()) for k in range(6)]
    assert edges == sorted(edges)
    assert all(f[ring == k].max() <= f[ring == k + 1].min() for k in range(5))
    wide = [0.1 * (0.5**0.5 / 0.1) ** (k / 6) for k in range(7)]
    assert all(wide[k] - 0.02 <= f[ring == k].min() and f[ring == k].max() <= wide[k + 1] + 0.02 for k in range(6))


def test_removed_bands_are_gone_and_the_rest_stays():
    masks, image = MaskedImage(rings=5, drop=0.4, protect=0.08), torch.randn(3, 2, 48, 40)
    removed = masks.bands(image)
    for row, ring in zip(removed, [masks.ring((48, 40))] * 3):
        assert len(set(ring[row].tolist())) == 2 and not row[ring == -1].any()
        assert all(row[ring == k].all() for k in set(ring[row].tolist()))
    left = torch.fft.fft2(without(image, removed))
    before = torch.fft.fft2(image)
    gone = removed.unsqueeze(1).expand_as(before)
    assert left[gone].abs().max() < 1e-3
    torch.testing.assert_close(left[~gone], before[~gone], atol=1e-3, rtol=1e-3)


def test_the_error_is_that_of_what_was_hidden():
    masks, image = MaskedImage(), torch.randn(2, 1, 64, 64)
    hidden = torch.zeros(2, 8, 8, dtype=torch.bool)
    hidden[0, :2] = True
    guess = image.clone()
    guess[0, 0, :16] += 0.5
    guess[1] += 7.0  # seen: not asked
    guess[0, 0, 16:] -= 3.0
    assert float(masks(guess, image, hidden, None)["blocks"]) == pytest.approx(0.5, abs=1e-5)
    removed = masks.bands(image)
    low = torch.full_like(image, 2.0)  # an error of the protected centre
    assert float(masks(image + low, image, None, removed)["bands"]) < 1e-4
    wave = torch.randn_like(image)
    found = masks(image + wave, image, None, removed)["bands"]
    assert float(found) == pytest.approx(float(torch.fft.fft2(wave, norm="ortho")[removed.unsqueeze(1)].abs().mean()), rel=1e-4)
    assert masks(image, image, hidden, removed).keys() == {"blocks", "bands"}
    assert sum(masks(image, image, hidden, removed).values()) == 0


def test_the_gradient_of_a_perfect_guess_is_finite():
    masks, image = MaskedImage(), torch.randn(1, 1, 32, 32)
    guess = image.clone().requires_grad_()
    sum(masks(guess, image, masks.blocks(image, 8), masks.bands(image)).values()).backward()
    assert torch.isfinite(guess.grad).all()


def test_rings_that_no_frequency_is_in_cost_nothing():
    masks, image = MaskedImage(rings=500, drop=0.01), torch.randn(4, 1, 16, 16)
    for _ in range(10):
        assert torch.isfinite(masks(torch.zeros_like(image), image, None, masks.bands(image))["bands"])


@pytest.mark.parametrize("options", [{"hide": 0.0}, {"hide": 1.0}, {"block": 0}, {"rings": 0}, {"drop": 0.0}, {"protect": 0.6}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UsageError):
        MaskedImage(**options)
