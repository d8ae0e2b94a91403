"""Maps of tokens seen window by window."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import pad


def through_windows(x: Tensor, size: int, see: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, h, w, C) tokens in windows of ``size`` a side that tile the map from its first token, each through ``see`` (n, size, size, C) ->
    (n, s, s, D), put together again; zeros fill the last windows and take part. (B, h, w, D), or smaller where s is."""
    b, h, w, c = x.shape
    x = pad(x, (0, 0, 0, -w % size, 0, -h % size))
    rows, columns = x.shape[1] // size, x.shape[2] // size
    seen = see(x.view(b, rows, size, columns, size, c).transpose(2, 3).reshape(-1, size, size, c))
    s = seen.shape[1]
    whole = seen.view(b, rows, columns, s, s, -1).transpose(2, 3).reshape(b, rows * s, columns * s, -1)
    return whole[:, : h * s // size, : w * s // size]
