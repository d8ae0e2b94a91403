"""Proposals: each of the four reasons to leave a mask out, and the best first."""

import torch

from vesalius.ops.proposals import proposals


def square(low: int, high: int, edge: float = 9.0) -> torch.Tensor:
    out = torch.full((20, 20), -9.0)
    out[low:high, low:high] = edge
    return out


def test_what_is_empty_poor_unstable_or_there_already_falls_away():
    soft = square(12, 18)
    soft[12:18, 12] = 0.5  # on at 0, off at 1: a sixth of the area hangs on the threshold
    logits = torch.stack([square(1, 8), square(1, 9), square(10, 19), torch.full((20, 20), -9.0), soft, square(2, 4)])
    quality = torch.tensor([0.90, 0.95, 0.91, 0.99, 0.99, 0.5])
    kept, good = proposals(logits, quality)
    assert torch.equal(kept, logits[[1, 2]]) and good.tolist() == quality[[1, 2]].tolist(), "49 / 64 is more than 0.7"
    assert len(proposals(logits, quality, overlap=0.8)[0]) == 3
    assert len(proposals(logits, quality, least=0.0)[0]) == 3 and len(proposals(logits, quality, stable=0.5)[0]) == 3
    assert proposals(logits[:0], quality[:0])[0].shape == (0, 20, 20)
