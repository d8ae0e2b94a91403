"""Inputs of any size for networks that halve theirs: zeros at the far end of each axis, cut off the answer again."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import pad

from ...core.errors import GeometryError


def pad_to_multiple(x: Tensor, multiple: Sequence[int]) -> Tensor:
    """(B, C, *s) with zeros appended until every side is a multiple; ``x`` itself where that is so already."""
    missing = [-n % m for n, m in zip(x.shape[2:], multiple, strict=True)]
    return pad(x, [side for n in reversed(missing) for side in (0, n)]) if any(missing) else x


def check_multiple(x: Tensor, multiple: Sequence[int], who: str) -> None:
    """GeometryError when a side of ``x`` (B, C, *s) is no multiple, as networks that do not pad by themselves say it."""
    if len(x.shape) - 2 != len(multiple) or any(n % m for n, m in zip(x.shape[2:], multiple, strict=True)):
        raise GeometryError(
            f"{who} cannot divide this input", where="patch", found=tuple(x.shape[2:]), allowed=f"multiples of {tuple(multiple)}"
        )
