"""Memory reading against its own equation, soft aggregation in closed form, and the bounds of the three memories."""

import numpy as np
import pytest
import torch

from vesalius.networks.blocks.memory import Elements, MemoryBank, affinity, aggregate, potentiation, readout, similarity


def random_frame(rng, n=16, channels=4, objects=2, width=3) -> Elements:
    draw = lambda *s: torch.from_numpy(rng.standard_normal(s)).float()  # noqa: E731
    return Elements(draw(channels, n), 1 + draw(1, n).abs(), draw(channels, n).sigmoid(), draw(objects, width, n))


def test_similarity_is_the_weighted_distance_of_every_pair():
    rng = np.random.default_rng(0)
    memory, asking = random_frame(rng, 5), random_frame(rng, 7)
    found = similarity(memory.key[None], memory.shrinkage[None], asking.key[None], asking.selection[None])[0]
    for m in range(5):
        for n in range(7):
            off = ((asking.selection[:, n]) * (memory.key[:, m] - asking.key[:, n]) ** 2).sum()
            assert torch.isclose(found[m, n], -memory.shrinkage[0, m] * off / 2, atol=1e-5)
    assert (found <= 1e-6).all()


@pytest.mark.parametrize("top", [None, 1, 3])
def test_weights_sum_to_one_over_the_most_similar(top):
    similar = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(0))
    weights = affinity(similar, top)
    assert torch.allclose(weights.sum(1), torch.ones(2, 6)) and (weights > 0).sum(1).eq(top or 9).all()
    assert (weights.argmax(1) == similar.argmax(1)).all()
    values = torch.randn(2, 4, 5, 9)
    assert torch.allclose(readout(weights, values)[1, 2], values[1, 2] @ weights[1])


def test_aggregation_sums_to_one_and_is_the_closed_form_for_one_object():
    p = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(aggregate(p).softmax(1).sum(1), torch.ones(2, 8, 8))
    one = p[:, :1]
    assert torch.allclose(aggregate(one).softmax(1)[:, 1:], one**2 / (one**2 + (1 - one) ** 2), atol=1e-4)
    assert torch.equal(aggregate(p).flip(1)[:, :3], aggregate(p.flip(1))[:, 1:]), "objects have no order"
    assert aggregate(torch.zeros(1, 2, 1, 1)).argmax() == 0 and torch.isfinite(aggregate(torch.ones(1, 2, 1, 1))).all()


def test_what_was_seen_is_found_again():
    rng = np.random.default_rng(2)
    bank, frames = MemoryBank(top=1), [random_frame(rng) for _ in range(3)]
    for f in frames:
        bank.add(f)
    for f in frames:
        assert torch.allclose(bank.read(f.key, torch.ones_like(f.selection)), f.value)


def test_memories_keep_their_bounds_and_what_a_person_gave():
    rng = np.random.default_rng(3)
    bank, given = MemoryBank(top=8, least=2, most=4, prototypes=6, capacity=15), random_frame(rng)
    bank.add(given, keep=True)
    for _ in range(20):
        frame = random_frame(rng)
        bank.add(frame)
        bank.read(frame.key, frame.selection)
        assert len(bank.working) <= 4 and sum(map(len, bank.long)) <= 15
    assert sum(map(len, bank.long)) in range(10, 16), "long-term memory is full, but for a handful"
    assert torch.equal(bank.kept[0].key, given.key) and torch.equal(bank.kept[0].value, given.value)
    assert len(bank) == 16 * (1 + len(bank.working)) + sum(map(len, bank.long))


def test_prototypes_are_the_most_used_elements_and_take_on_their_surroundings():
    rng = np.random.default_rng(4)
    bank, frames = MemoryBank(top=1, least=1, most=2, prototypes=2, capacity=4), [random_frame(rng, 8) for _ in range(3)]
    bank.add(frames[0])
    bank.add(frames[1])
    wanted = frames[0].key[:, [5, 2]]
    for _ in range(3):
        bank.read(wanted, torch.ones_like(wanted))
    bank.add(frames[2])
    assert {tuple(k) for k in bank.long[0].key.T.tolist()} == {tuple(k) for k in wanted.T.tolist()}
    old = Elements.cat(frames[:2])
    weights = potentiation(old, bank.long[0])
    assert torch.allclose(weights.sum(0), torch.ones(2))
    assert torch.allclose(bank.long[0].value, old.value @ weights, atol=1e-6)
