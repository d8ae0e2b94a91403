"""SAM 2's memory: the numbers that the transformers library gives for the same weights, and what the memory must and must not see."""

import pytest
import torch

from tests.networks.test_sam2 import TINY, as_transformers, waved
from vesalius.networks.blocks.transformer import rotate
from vesalius.networks.sam2_video import ABSENT, Bank, Sam2Video, from_transformers, turns

SMALL = {**TINY, "memory": 16, "frames": 3, "pointers": 3, "layers": 2, "hidden": 48}


def tiny(there: float = 10.0, **options) -> Sam2Video:
    """``there``: what the score for the object's presence starts from. What is remembered has a loud voice."""
    net = waved(Sam2Video(**SMALL | options))
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.mul_(4.0 if "cross_attn_image" in name or "mask_downsampler" in name else 1.0)
    torch.nn.init.constant_(net.mask_decoder.pred_obj_score_head.layers[-1].bias, there)
    return net


def video(count: int = 6) -> torch.Tensor:
    return torch.sin(torch.arange(count * 3 * 128 * 128, dtype=torch.float64) * 0.0137).float().view(count, 3, 128, 128)


def square(low: int, high: int) -> torch.Tensor:
    mask = torch.zeros(1, 128, 128)
    mask[:, low:high, low : high + 10] = 1
    return mask


def carried(net: Sam2Video, given: dict[int, torch.Tensor], start: int, way: int, frames: torch.Tensor) -> dict[int, torch.Tensor]:
    """frame -> logits (K, 32, 32) of a walk from ``start`` to the next given frame or the end."""
    looks = [net.look(f[None]) for f in frames]
    bank = Bank({(t - start) * way: net.keep(looks[t], masks) for t, masks in given.items()})
    out, at = {}, 1
    while 0 <= (t := start + way * at) < len(frames) and t not in given:
        out[t], kept = net.track(looks[t], bank, at)
        bank, at = net.follow(bank, kept, at), at + 1
    return out


GOLD = [  # transformers 5.23, Sam2VideoModel: (timed and absence, given, start, way, frame, logits at rows 0, 9, 18, 27 of column 13)
    (True, {0: square(30, 80)}, 0, 1, 1, [1.7424, 1.6997, 1.6539, 1.6836]),
    (True, {0: square(30, 80)}, 0, 1, 5, [1.6012, 1.7321, 1.7269, 1.7392]),
    (True, {0: square(20, 60)}, 0, 1, 5, [1.5623, 1.6917, 1.6852, 1.6983]),
    (True, {0: square(30, 80), 4: square(20, 60)}, 0, 1, 3, [1.5882, 1.5963, 1.5485, 1.595]),
    (True, {5: square(30, 80)}, 5, -1, 0, [1.7062, 1.7345, 1.6822, 1.7131]),
    (True, {1: square(30, 80), 5: square(20, 60)}, 5, -1, 2, [1.7114, 1.6476, 1.5858, 1.6101]),
    (False, {0: square(30, 80)}, 0, 1, 5, [1.4705, 1.5968, 1.5872, 1.6021]),
    (False, {1: square(30, 80), 5: square(20, 60)}, 5, -1, 2, [1.5722, 1.5178, 1.4559, 1.4821]),
]


@torch.no_grad()
@pytest.mark.parametrize(("new", "given", "start", "way", "frame", "logits"), GOLD)
def test_the_answers_are_those_of_the_library(new, given, start, way, frame, logits):
    net = tiny(timed=new, absence=new)
    found = carried(net, given, start, way, video())[frame]
    assert found[0, ::9, 13].tolist() == pytest.approx(logits, abs=5e-4)  # what is remembered is rounded to bfloat16


def test_a_transformers_checkpoint_has_our_names_and_numbers():
    state = tiny().state_dict()
    theirs = as_transformers(state) | {"no_memory_positional_encoding": torch.zeros(1, 1, 32)}
    assert {"memory_attention.layers.1.cross_attn_image.o_proj.weight", "object_pointer_proj.proj_in.bias"} < set(theirs)
    back = from_transformers(theirs)
    assert set(back) == set(state) and all(torch.equal(back[k], v) for k, v in state.items())


@torch.no_grad()
def test_objects_do_not_see_each_other():
    net, frames, masks = tiny(), video(4), torch.cat([square(30, 80), square(20, 60)])
    together = carried(net, {0: masks}, 0, 1, frames)
    for k in range(2):
        alone = carried(net, {0: masks[k : k + 1]}, 0, 1, frames)
        assert all(torch.allclose(together[t][k], alone[t][0], atol=2e-3) for t in alone)
    assert (together[3][0] - together[3][1]).abs().max() > 0.02


@torch.no_grad()
def test_an_object_that_is_not_there_has_no_pixel_and_no_pointer_of_its_own():
    net, frames = tiny(there=-1e3), video(2)
    bank = Bank({0: net.keep(net.look(frames[:1]), square(30, 80))})
    logits, kept = net.track(net.look(frames[1:]), bank, 1)
    assert (logits == ABSENT).all() and torch.equal(kept.pointer, net.no_object_pointer)
    here = tiny()
    empty = here.keep(here.look(frames[:1]), torch.zeros(1, 128, 128))
    assert torch.equal(empty.pointer, here.no_object_pointer)


@torch.no_grad()
def test_what_is_too_long_ago_is_let_go():
    net = tiny()
    look = net.look(video(1))
    bank = Bank({0: net.keep(look, square(30, 80))})
    for at in range(1, 8):
        _, kept = net.track(look, bank, at)
        bank = net.follow(bank, kept, at)
        assert len(bank.found) <= max(SMALL["frames"], SMALL["pointers"]) and 0 in bank.given
    everything = Bank(bank.given, {**{t: kept for t in range(-9, 5)}, **bank.found})
    assert torch.equal(net.track(look, everything, 8)[0], net.track(look, bank, 8)[0])


@torch.no_grad()
def test_turns_are_those_of_the_row_and_the_column_alone():
    """The product of a turned query and a turned key depends on how far they are apart, not on where they are."""
    turn, q, k = turns((5, 7), 16, torch.zeros(1)), torch.randn(16), torch.randn(16)
    at = lambda r, c: tuple(t[r * 7 + c] for t in turn)
    product = lambda a, b: rotate(q, at(*a)) @ rotate(k, at(*b))
    assert torch.isclose(product((0, 1), (2, 4)), product((2, 3), (4, 6)), atol=1e-4)
    assert not torch.isclose(product((0, 1), (2, 4)), product((0, 1), (2, 5)), atol=1e-3)
