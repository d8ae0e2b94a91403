"""What class queries say and where they look, against a label map: SegViT's attention-to-mask loss.

Zhang et al., SegViT: Semantic segmentation with plain vision transformers, NeurIPS 2022, https://arxiv.org/abs/2210.05844. Query k stands
for class k, so nothing is matched.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .focal_dice_iou import focal_dice_iou


def attention_mask(
    answers: Sequence[tuple[Tensor, Tensor]], label: Tensor, *, ignore_index: int | None = None, focal: float = 20.0, absent: float = 0.1
) -> dict[str, Tensor]:
    """Terms of ``answers``, each class logits (B, K, K + 1) and mask logits (B, K, *s), against ``label`` (B, *s) of classes, summed.

    'classes': cross-entropy of query k with class k where the image has it and with 'not there' (K) elsewhere, which weighs ``absent``.
    'focal' (alpha 0.25, gamma 2) and 'dice', over the masks of the classes that an image has, weigh ``focal`` and 1. Pixels with
    ``ignore_index`` count nowhere; without any pixel all terms are 0.
    """
    n = answers[0][1].shape[1]
    known = torch.ones_like(label, dtype=torch.bool) if ignore_index is None else label != ignore_index
    truth = torch.stack([(label == k) & known for k in range(n)], 1)
    there = truth.flatten(2).any(2)
    kind = torch.arange(n, device=label.device)
    wanted = torch.where(there, kind, n)
    wanted = torch.where(known.flatten(1).any(1, keepdim=True), wanted, -1)  # an image of which nothing is known
    weight = torch.ones(n + 1, device=label.device)
    weight[n] = absent
    terms = dict.fromkeys(("classes", "focal", "dice"), answers[0][0].new_zeros(()).float())
    for classes, masks in answers:
        if not there.any():
            terms = {name: term + 0 * (classes.sum() + masks.sum()) for name, term in terms.items()}
            continue
        terms["classes"] = terms["classes"] + cross_entropy(classes.float().transpose(1, 2), wanted, weight, ignore_index=-1)
        z, g = masks[there], truth[there]
        on = known.unsqueeze(1).expand_as(truth)[there]
        terms["focal"] = terms["focal"] + focal_dice_iou(z, z.new_zeros(len(z)), g, on, weight=focal)["focal"]
        p = (z.float().sigmoid() * on).flatten(1)
        both, each = (p * g.flatten(1)).sum(1), p.sum(1) + g.flatten(1).sum(1)
        terms["dice"] = terms["dice"] + (1 - (2 * both + 1) / (each + 1)).mean()
    return terms
