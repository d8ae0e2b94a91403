"""The probabilistic U-Net: Gaussians with a known divergence, one draw one mask, any size of input."""

import pytest
import torch

from vesalius.networks.prob_unet import Gaussian, ProbabilisticUNet


def net(dims: int = 2, **options) -> ProbabilisticUNet:
    torch.manual_seed(0)
    return ProbabilisticUNet(1, 3, spatial_dims=dims, features=(4, 8), latent=2, **options)


def gaussian(seed: int) -> Gaussian:
    g = torch.Generator().manual_seed(seed)
    return Gaussian(torch.randn(3, 2, generator=g), 0.3 * torch.randn(3, 2, generator=g))


def test_divergence_is_torchs_and_zero_from_itself():
    p, q = gaussian(0), gaussian(1)
    normal = lambda x: torch.distributions.Normal(x.mean, x.logsd.exp())
    expected = torch.distributions.kl_divergence(normal(p), normal(q)).sum(1)
    assert torch.allclose(p.kl(q), expected, atol=1e-5) and torch.equal(p.kl(p), torch.zeros(3))


def test_draws_have_the_gaussians_moments():
    p = gaussian(2)
    z = p.draw(torch.randn(1, 20_000, 2, generator=torch.Generator().manual_seed(3)))
    assert torch.allclose(z.mean(1), p.mean, atol=0.05) and torch.allclose(z.std(1), p.logsd.exp(), atol=0.05)


@pytest.mark.parametrize("dims", [2, 3])
def test_shapes(dims):
    image = torch.randn(2, 1, *(8,) * dims)
    m = net(dims).eval()
    assert m(image).shape == (2, 3, *(8,) * dims)
    assert m(image, torch.randn(2, 5, 2)).shape == (2, 5, 3, *(8,) * dims)
    assert m.prior(torch.randn(1, 1, *(14,) * dims)).mean.shape == (1, 2)


def test_the_sum_is_a_convolution_of_features_and_latent_side_by_side():
    m = net().eval()
    image, z = torch.randn(2, 1, 8, 8), torch.randn(2, 3, 2)
    with torch.no_grad():
        features = m.unet(image)
        tiled = z[:, 1, :, None, None].expand(-1, -1, 8, 8)
        joint = torch.nn.functional.conv2d(
            torch.cat([features, tiled], 1), torch.cat([torch.eye(4), m.of_latent.weight], 1)[:, :, None, None]
        )
        assert torch.allclose(m.mix(joint), m(image, z)[:, 1], atol=1e-5)


def test_without_a_latent_the_priors_mean_answers_and_another_latent_answers_otherwise():
    m = net().eval()
    image = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        mean = m.prior(image).mean.unsqueeze(1)
        assert torch.equal(m(image), m(image, mean)[:, 0])
        assert (m(image, mean + 1) - m(image, mean)).abs().max() > 1e-4


def test_what_cannot_be_built_is_refused():
    for options in ({"mixing": 1}, {"latent": 0}):
        with pytest.raises(ValueError, match="latent"):
            ProbabilisticUNet(1, 2, spatial_dims=2, features=(4, 8), **options)
