"""The tapped U-Net is the U-Net: same logits for the same weights, and the logits are linear in the features."""

import pytest
import torch

from vesalius.networks.feature_unet import FeatureUNet
from vesalius.networks.unet import UNet


@pytest.mark.parametrize("dims", [2, 3])
def test_same_logits_as_the_plain_unet(dims):
    torch.manual_seed(0)
    tapped = FeatureUNet(1, 3, spatial_dims=dims, features=(4, 8))
    torch.manual_seed(0)
    plain = UNet(1, 3, spatial_dims=dims, features=(4, 8))
    image = torch.randn(2, 1, *(8,) * dims)
    logits, features = tapped.tapped(image)
    assert torch.equal(logits, plain(image)) and torch.equal(logits, tapped(image))
    assert features.shape == (2, 4, *(8,) * dims) and torch.equal(tapped.head(features), logits)
    assert sum(p.numel() for p in tapped.parameters()) == sum(p.numel() for p in plain.parameters())
    assert tapped.bottleneck is tapped.body.down[-1] and tapped.multiple == plain.multiple
