"""The network that carries masks: objects are alike to it, adapters begin as nothing, sizes are checked."""

import pytest
import torch

from vesalius.core.errors import UsageError
from vesalius.networks.blocks.memory import similarity
from vesalius.networks.mask_memory import MaskMemoryNet

SMALL = {"features": (8, 8, 16), "key": 8, "value": 8, "hidden": 4}


def run(net, image, masks):
    look = net.look(image)
    value, sensory = net.write(image, look, net.blank(look, masks.shape[1]), masks)
    return net.answer(look, sensory, value)


@torch.no_grad()
def test_shapes_and_objects_without_order():
    torch.manual_seed(0)
    net = MaskMemoryNet(2, **SMALL).eval()
    image, masks = torch.randn(2, 2, 16, 24), torch.rand(2, 3, 16, 24)
    logits, sensory = run(net, image, masks)
    assert logits.shape == (2, 3, 16, 24) and sensory.shape == (2, 3, 4, 4, 6) and net.multiple == (4, 4)
    turned, _ = run(net, image, masks[:, [2, 0, 1]])
    assert torch.allclose(turned, logits[:, [2, 0, 1]], atol=1e-5)
    alone, _ = run(net, image[:1], masks[:1])
    assert torch.allclose(alone, logits[:1], atol=1e-5)
    look = net.look(image)
    assert (look.shrinkage >= 1).all() and ((look.selection >= 0) & (look.selection <= 1)).all()
    elements = look.elements(torch.randn(3, 8, 4, 6), 1)
    assert elements.key.shape == (10, 24) and torch.equal(elements.key, look.key[1].flatten(1)) and elements.value.shape == (3, 8, 24)


@torch.no_grad()
def test_a_key_finds_what_lies_near_it():
    """Where nothing else tells places apart, similarity is minus the squared distance in units of ``reach``."""
    net = MaskMemoryNet(1, **SMALL, reach=6.0)
    for layer in (net.to_key, net.to_selection):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    net.to_selection.bias += 30  # 1
    look = net.look(torch.randn(1, 1, 16, 20))
    key, one = look.key.flatten(2), torch.ones(1, 1, 20)
    found = similarity(key, one, key, look.selection.flatten(2))[0].view(4, 5, 4, 5)
    assert torch.isclose(found[1, 1, 3, 4], torch.tensor(-(8.0**2 + 12.0**2) / 36), atol=1e-4) and found[2, 3, 2, 3].abs() < 1e-4
    assert MaskMemoryNet(1, **SMALL, reach=0).look(torch.randn(1, 1, 16, 20)).key.shape[1] == 8


@torch.no_grad()
def test_adapters_change_nothing_before_they_are_trained():
    torch.manual_seed(0)
    plain, adapted = MaskMemoryNet(1, **SMALL), MaskMemoryNet(1, **SMALL, adapters=True)
    lacking = adapted.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert lacking and all("adapters." in k for k in lacking)
    image, masks = torch.randn(1, 1, 16, 16), torch.rand(1, 2, 16, 16)
    for a, b in zip(run(plain, image, masks), run(adapted, image, masks), strict=True):
        assert torch.equal(a, b)
    adapted.sight_adapters[0].up.bias += 1
    assert not torch.allclose(run(plain, image, masks)[0], run(adapted, image, masks)[0])


def test_one_stage_is_refused():
    with pytest.raises(UsageError, match="coarser grid"):
        MaskMemoryNet(1, features=(8,))
