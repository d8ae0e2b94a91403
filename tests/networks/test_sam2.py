"""SAM 2 on one image: the numbers that the transformers library gives for the same weights, and the names of its checkpoints."""

import pytest
import torch

from tests.networks.test_sam_vit import in_the_library
from vesalius.core.errors import DataError
from vesalius.core.prompt import Asked, Turn
from vesalius.networks.hiera import Block, Hiera
from vesalius.networks.sam2 import Sam2, from_transformers

TINY = {
    "side": 128,
    "dim": 32,
    "dims": (8, 16, 32, 64),
    "depths": (1, 2, 3, 1),
    "heads": (1, 2, 4, 8),
    "windows": (8, 4, 14, 7),
    "whole": (4,),
}
POINT = torch.tensor([[[30.0, 20.0]]])
NO_POINT, NO_SIGN, ON = torch.zeros(1, 0, 2), torch.zeros(1, 0, dtype=torch.long), torch.ones(1, 1, dtype=torch.long)
BOX = torch.tensor([[[10.0, 12.0], [60.0, 80.0]]])
ASKED = {
    "click": Asked(POINT, ON),
    "box": Asked(NO_POINT, NO_SIGN, BOX),
    "both": Asked(POINT, ON, BOX),
    "mask": Asked(NO_POINT, NO_SIGN, None, (torch.arange(32 * 32).view(1, 1, 32, 32) % 5 > 2).float()),
}


def tiny() -> Sam2:
    return waved(Sam2(**TINY))


@torch.no_grad()
def waved(net: Sam2) -> Sam2:
    """Weights that are the same everywhere: waves, about 1 where a layer norm multiplies."""
    for i, (name, t) in enumerate(sorted(net.state_dict().items())):
        wave = torch.sin(torch.arange(t.numel(), dtype=torch.float64) * (0.37 + 0.011 * (i % 29)) + i).reshape(t.shape)
        scale = 2.0 * (t[0].numel() if t.ndim > 1 else 16) ** -0.5
        scale = 3.0 if "prompt_encoder" in name and "downscaling" not in name else scale
        t.copy_(wave * scale + (1.0 if t.ndim == 1 and "norm" in name and name.endswith("weight") else 0.0))
    return net.eval()


def image() -> torch.Tensor:
    return torch.sin(torch.arange(3 * 128 * 128, dtype=torch.float64) * 0.013).float().view(1, 3, 128, 128)


ENCODER = {
    "image_encoder.0": "vision_encoder.backbone",
    "image_encoder.1": "vision_encoder.neck",
    "patch_embed": "patch_embed.projection",
    "mlp.lin1": "mlp.proj_in",
    "mlp.lin2": "mlp.proj_out",
    "out_proj": "o_proj",
}


def as_transformers(state: dict) -> dict:
    out = in_the_library(state, ENCODER)
    corners = [out.pop(f"prompt_encoder.point_embed.{k}.weight") for k in range(4)]
    return out | {"prompt_encoder.point_embed.weight": torch.cat(corners)}


def with_memory(state: dict) -> dict:
    """With some of what a checkpoint for videos holds beside."""
    return state | {
        "mask_decoder.pred_obj_score_head.proj_in.bias": torch.zeros(32),
        "memory_attention.layers.0.linear1.weight": torch.zeros(1),
        "no_object_pointer": torch.zeros(1),
    }


def test_a_transformers_checkpoint_has_our_names_and_numbers():
    state = tiny().state_dict()
    back = from_transformers(with_memory(as_transformers(state)))
    assert set(back) == set(state) and all(torch.equal(back[k], v) for k, v in state.items())
    with pytest.raises(DataError, match="not the weights"):
        from_transformers({"encoder.weight": torch.zeros(1)})


GOLD = {  # transformers 5.23, Sam2Model with these weights: the first mask's logits at rows 0, 9, 18, 27 of column 13; qualities
    ("click", True): ([1.81583, 1.40056, 1.70947, 1.39027], [0.51302, 0.73974, 0.39414]),
    ("click", False): ([5.41732, 5.12971, 5.32376, 5.11631], [0.18973]),
    ("box", True): ([1.82396, 1.40226, 1.71722, 1.3941], [0.51043, 0.73967, 0.39659]),
    ("box", False): ([5.42869, 5.14123, 5.33529, 5.13031], [0.18936]),
    ("both", True): ([1.81654, 1.39925, 1.71037, 1.39025], [0.51542, 0.73974, 0.39185]),
    ("both", False): ([5.37841, 5.09159, 5.28532, 5.07916], [0.19011]),
    ("mask", True): ([1.80914, 1.39443, 1.67906, 1.3533], [0.53122, 0.74789, 0.37951]),
    ("mask", False): ([6.12643, 5.7954, 6.00575, 5.74213], [0.18614]),
}


@torch.no_grad()
def test_the_answers_are_those_of_the_library():
    net = tiny()
    maps = net.embed(image())
    assert [tuple(m.shape[1:]) for m in maps] == [(4, 32, 32), (8, 16, 16), (32, 8, 8)]
    for (name, several), (logits, quality) in GOLD.items():
        answer = net.decode(maps, [Turn(ASKED[name])], several=several)
        assert answer.logits.shape == (1, len(quality), 32, 32)
        assert answer.logits[0, 0, ::9, 13].tolist() == pytest.approx(logits, abs=1e-3), name
        assert answer.quality[0].tolist() == pytest.approx(quality, abs=1e-4), name


@torch.no_grad()
def test_a_mask_that_is_not_firm_gives_way_to_the_best_of_the_others():
    net = tiny()
    maps, turn = net.embed(image()), [Turn(ASKED["click"])]
    alone, several = net.decode(maps, turn), net.decode(maps, turn, several=True)
    net.firm = (float(alone.logits.min()) + 0.1, 0.98)  # some of it is below the margin now
    best = int(several.quality[0].argmax())
    given = net.decode(maps, turn)
    assert torch.equal(given.logits[0, 0], several.logits[0, best]) and not torch.equal(given.logits, alone.logits)
    net.firm = None
    assert torch.equal(net.decode(maps, turn).logits, alone.logits)


@torch.no_grad()
def test_windows_do_not_see_each_other_and_whole_blocks_see_all():
    for window in (0, 3):
        torch.manual_seed(2)
        block, x = Block(8, 8, 2, window, 4.0, pool=False), torch.randn(1, 7, 7, 8)
        y = x.clone()
        y[0, 6, 6, 0] += 3
        moved = (block(y) - block(x)).abs().amax(-1)[0] > 1e-6
        assert moved[6, 6] and bool(moved[0, 0]) == (window == 0)


@torch.no_grad()
def test_a_pooled_block_looks_with_the_greatest_query_of_four():
    torch.manual_seed(3)
    block, x = Block(4, 8, 2, 4, 2.0, pool=True), torch.randn(1, 8, 4, 4)
    y = block(x)
    assert y.shape == (1, 4, 2, 8)
    inner = block.norm1(x)
    q, k, v = block.attn.qkv(inner[0, 4:, :]).view(4, 4, 3, 2, 4).unbind(2)  # the lower window
    q = q[2:, :2].reshape(4, 2, 4).amax(0)  # its lower left four
    seen = torch.cat([torch.softmax(k.reshape(16, 2, 4)[:, h] @ q[h] / 2, 0) @ v.reshape(16, 2, 4)[:, h] for h in range(2)])
    kept = block.proj(inner)[0, 6:8, :2].reshape(4, 8).amax(0) + block.attn.proj(seen)
    expected = kept + block.mlp.lin2(torch.nn.functional.gelu(block.mlp.lin1(block.norm2(kept))))
    assert torch.allclose(y[0, 3, 0], expected, atol=1e-5)


@torch.no_grad()
def test_the_encoder_gives_every_stage():
    maps = Hiera(dims=(8, 16, 32, 64), depths=(1, 1, 1, 1), windows=(8, 4, 4, 4), whole=())(torch.randn(2, 3, 64, 128))
    assert [tuple(m.shape) for m in maps] == [(2, 8, 16, 32), (2, 16, 8, 16), (2, 32, 4, 8), (2, 64, 2, 4)]
