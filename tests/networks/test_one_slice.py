"""Networks of 2D and 3D that plan in all directions, as methods: volumes of one slice and of odd sides, and answers of the same shape."""

from pathlib import Path

import pytest
import torch

from vesalius import catalog
from vesalius.core.case import Batch
from vesalius.core.manifest import Manifest
from vesalius.core.method import Clock
from vesalius.core.plan import Plan


@pytest.mark.parametrize("channels, classes, size", [(1, 2, (1, 33, 46)), (3, 7, (40, 21, 1)), (2, 3, (5, 34, 18))])
@pytest.mark.parametrize("slug", ["maxquery", "transdae"])
def test_thin_volumes(slug, channels, classes, size):
    torch.manual_seed(0)
    names = {"background": 0, **{f"c{k}": k for k in range(1, classes)}}
    images, step = tuple(f"i{k}" for k in range(channels)), tuple(1 if n == 1 else 2 for n in size)
    small = {"features": (4, 8), "strides": ((1, 1, 1), step), "kernels": ((3, 3, 3),) * 2}
    plan = Plan(3, images, channels, tuple(names), patch=size, **small)
    method = catalog.build(slug, plan, Manifest("made", Path("."), 3, images, names, ()), options=catalog.get(slug).small)
    patch = method.plan.patch
    assert all(p >= n and p % m == 0 for p, n, m in zip(patch, size, method.network.multiple, strict=True))
    image, label = torch.randn(2, channels, *patch), torch.randint(0, classes, (2, *patch))
    batch = Batch(image, {"reference": label}, torch.eye(4).expand(2, 4, 4), ["a", "b"])
    sum(method.train().losses(batch, Clock(0, 10)).values()).backward()
    silent = [n for n, p in method.network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not silent, silent
    x = torch.randn(2, channels, *size)
    with torch.no_grad():
        both = method.eval()(x)
        assert both.shape == (2, classes, *size) and torch.isfinite(both).all() and both.std() > 0
        torch.testing.assert_close(both[1:], method(x[1:]), atol=1e-4, rtol=1e-4)
        if slug == "maxquery":
            assert method.fast_forward(x)["ood"].shape == (2, 1, *size)
