"""Which of many proposed masks are worth showing: those that are thought good, do not hang on the threshold, and are not there twice.

The filter of Segment Anything's 'everything' mode (Kirillov et al. 2023, https://arxiv.org/abs/2304.02643, appendix B), with its numbers.
"""

from __future__ import annotations

from torch import Tensor

QUALITY, STABILITY, OVERLAP = 0.88, 0.95, 0.7  # least predicted IoU, least stability, largest IoU of two boxes


def proposals(
    logits: Tensor, quality: Tensor, *, least: float = QUALITY, stable: float = STABILITY, overlap: float = OVERLAP
) -> tuple[Tensor, Tensor]:
    """(n, h, w), (n,): those of ``logits`` (N, h, w) and their predicted ``quality`` (N,) that remain, best first.

    A mask falls away if it is empty, its quality below ``least``, its stability (area at logit 1 over area at logit -1) below ``stable``,
    or its box overlaps a better one's by more than ``overlap`` (IoU)."""
    wide, narrow = ((logits > at).flatten(1).sum(1) for at in (-1, 1))
    keep = ((logits > 0).flatten(1).any(1) & (quality >= least) & (narrow >= stable * wide)).nonzero()[:, 0]
    keep = keep[quality[keep].argsort(descending=True, stable=True)]
    boxes, left = [_box(logits[i] > 0) for i in keep], []
    for k, box in enumerate(boxes):
        if all(_iou(box, boxes[j]) <= overlap for j in left):
            left.append(k)
    keep = keep[left]
    return logits[keep], quality[keep]


def _box(mask: Tensor) -> tuple[int, int, int, int]:
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _iou(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    both = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return both / (sum(area) - both)
