"""SAM's image encoder against brute force, and names of a transformers checkpoint turned into ours and back."""

import re

import pytest
import torch
from torch.nn.functional import softmax

from vesalius.core.errors import DataError
from vesalius.networks.sam import Sam
from vesalius.networks.sam_vit import Attention, Block, SamViT, from_transformers

TINY = {"side": 64, "patch": 16, "dim": 32, "depth": 2, "heads": 2, "hidden": 48, "window": 3, "whole": (1,), "out": 32}


ENCODER = {
    "image_encoder": "vision_encoder",
    "neck.0": "neck.conv1",
    "neck.1": "neck.layer_norm1",
    "neck.2": "neck.conv2",
    "neck.3": "neck.layer_norm2",
    "patch_embed.proj": "patch_embed.projection",
    "blocks": "layers",
}


def tiny() -> Sam:
    torch.manual_seed(0)
    net = Sam(SamViT(**TINY), size=(64, 64), grid=(4, 4), dim=32)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return net.eval()


def as_transformers(state: dict) -> dict:
    return in_the_library(state, ENCODER)


def in_the_library(state: dict, encoder: dict) -> dict:
    """The names that the library's own conversion gives, which adds the position code of the image once more; ``encoder``: parts of our
    names and theirs for what is not the decoder's."""
    plain = {
        "mask_decoder.output_upscaling.0": "mask_decoder.upscale_conv1",
        "mask_decoder.output_upscaling.1": "mask_decoder.upscale_layer_norm",
        "mask_decoder.output_upscaling.3": "mask_decoder.upscale_conv2",
        "mask_downscaling.0": "mask_embed.conv1",
        "mask_downscaling.1": "mask_embed.layer_norm1",
        "mask_downscaling.3": "mask_embed.conv2",
        "mask_downscaling.4": "mask_embed.layer_norm2",
        "mask_downscaling.6": "mask_embed.conv3",
        "point_embeddings": "point_embed",
        "pe_layer.positional_encoding_gaussian_matrix": "shared_embedding.positional_embedding",
        **encoder,
        ".norm": ".layer_norm",
    }
    out = {}
    for name, tensor in state.items():
        for ours, theirs in plain.items():
            name = name.replace(ours, theirs)
        if found := re.search(r"(mlps\.\d+|prediction_head|score_head|pointer_proj)\.layers\.(\d)", name):
            name = name.replace(f".layers.{found[2]}", {"0": ".proj_in", "1": ".layers.0", "2": ".proj_out"}[found[2]])
        out[name] = tensor
    return out | {"shared_image_embedding.positional_embedding": out["prompt_encoder.shared_embedding.positional_embedding"]}


def test_a_transformers_checkpoint_has_our_names_and_numbers():
    state = tiny().state_dict()
    theirs = as_transformers(state)
    assert {"vision_encoder.layers.0.attn.qkv.weight", "mask_decoder.iou_prediction_head.proj_in.bias"} < set(theirs)
    for lacking in ("", "shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding"):
        back = from_transformers({k: v for k, v in theirs.items() if k != lacking})  # the library saves the one tensor once
        assert set(back) == set(state) and all(torch.equal(back[k], v) for k, v in state.items())
    with pytest.raises(DataError, match="not the weights"):
        from_transformers({"encoder.weight": torch.zeros(1)})


@torch.no_grad()
def test_attention_is_the_published_sum():
    """softmax(q k / sqrt(c) + q . r_row + q . r_column) v, query by query."""
    torch.manual_seed(1)
    net, x = Attention(8, 2, 3), torch.randn(1, 3, 3, 8)
    for p in net.parameters():
        torch.nn.init.normal_(p)
    q, k, v = net.qkv(x.view(9, 8)).view(9, 3, 2, 4).unbind(1)
    out = torch.zeros(9, 2, 4)
    for head in range(2):
        for i in range(9):
            near = torch.stack([net.rel_pos_h[i // 3 - j // 3 + 2] + net.rel_pos_w[i % 3 - j % 3 + 2] for j in range(9)])
            weights = softmax(k[:, head] @ q[i, head] / 2 + near @ q[i, head], 0)
            out[i, head] = weights @ v[:, head]
    assert torch.allclose(net(x).view(9, 8), net.proj(out.reshape(9, 8)), atol=1e-5)


@torch.no_grad()
def test_windows_do_not_see_each_other_and_whole_blocks_see_all():
    torch.manual_seed(2)
    for whole in (False, True):
        block = Block(8, 2, 16, 7 if whole else 3, whole)
        x = torch.randn(1, 7, 7, 8)
        y = x.clone()
        y[0, 6, 6, 0] += 3
        moved = (block(y) - block(x)).abs().amax(-1)[0] > 1e-6
        assert moved[6, 6] and bool(moved[0, 0]) == whole


@torch.no_grad()
def test_the_encoder_gives_its_grid():
    net = SamViT(**TINY)
    assert net(torch.randn(2, 3, 64, 64)).shape == (2, 32, 4, 4)
