"""Latent diffusion's networks: sizes, weights from a folder, and what is said when diffusers is missing."""

import pytest
import torch

pytest.importorskip("diffusers")

from vesalius.core.errors import DataError, UsageError
from vesalius.networks import latent_diffusion
from vesalius.networks.latent_diffusion import attending_unet, autoencoder, encoder_of, latent_unet, load_autoencoder

FEATURES = (8, 8, 16)


def test_an_autoencoder_shrinks_by_its_levels():
    net = autoencoder(3, features=FEATURES, latent=5).eval()
    z = net.encode(torch.randn(2, 3, 16, 24)).latent_dist.mean
    assert z.shape == (2, 5, 4, 6) and net.decode(z).sample.shape == (2, 3, 16, 24)


def test_an_encoder_of_its_own_says_the_same_until_it_is_trained():
    net = autoencoder(3, features=FEATURES)
    own, x = encoder_of(net), torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(own(x)[:, :4], net.encode(x).latent_dist.mean)
    assert not {id(p) for p in own.parameters()} & {id(p) for p in net.parameters()}


@pytest.mark.parametrize("levels", [2, 5])
def test_a_unet_attends_at_its_four_finest_levels(levels):
    net = latent_unet(8, 4, features=[8 * (i + 1) for i in range(levels)], classes=3)
    x = torch.randn(2, 8, 16, 16)
    said = [net(x, torch.tensor([3, 900]), class_labels=torch.tensor(c)).sample for c in ([0, 1], [2, 1])]
    assert said[0].shape == (2, 4, 16, 16)
    assert not torch.allclose(said[0][0], said[1][0]) and torch.allclose(said[0][1], said[1][1], atol=1e-5)
    assert [hasattr(block, "attentions") for block in net.down_blocks] == [i < 4 for i in range(levels)]


def test_what_a_unet_is_told_by_attention_counts_but_not_its_order():
    net, x, t = attending_unet(4, 4, told=5, features=(8, 16)).eval(), torch.randn(1, 4, 8, 8), torch.tensor([500])
    told = torch.randn(1, 6, 5)
    a, b, c = (net(x, t, z).sample for z in (told, told.flip(1), told + 1))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert a.shape == x.shape and not torch.allclose(a, c, atol=1e-4)


def test_weights_come_from_a_folder(tmp_path):
    torch.manual_seed(0)
    saved, other = autoencoder(3, features=FEATURES), autoencoder(3, features=FEATURES)
    saved.save_pretrained(tmp_path / "vae")
    for folder in (tmp_path, tmp_path / "vae"):
        load_autoencoder(other, folder)
        assert all(torch.equal(a, b) for a, b in zip(saved.state_dict().values(), other.state_dict().values(), strict=True))
    with pytest.raises(DataError, match="block_out_channels.*8, 8, 16.*16, 16, 16"):
        load_autoencoder(autoencoder(3, features=(16, 16, 16)), tmp_path)


def test_a_folder_without_weights_or_with_pickled_ones_is_refused(tmp_path):
    net = autoencoder(3, features=FEATURES)
    with pytest.raises(UsageError, match="config.json"):
        load_autoencoder(net, tmp_path / "nowhere")
    net.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(DataError, match="safetensors"):
        load_autoencoder(net, tmp_path)


def test_a_missing_diffusers_is_one_sentence(monkeypatch):
    def nothing(name):
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(latent_diffusion, "import_module", nothing)
    with pytest.raises(UsageError, match=r"pip install 'vesalius\[diffusion\]'"):
        autoencoder(3, features=FEATURES)
