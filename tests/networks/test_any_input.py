"""Every 2D network of the catalogue as a method, and two methods around one: any size, grey and RGB, two classes and seven."""

from pathlib import Path

import pytest
import torch

from vesalius import catalog
from vesalius.core.case import Batch
from vesalius.core.manifest import Manifest
from vesalius.core.method import Clock
from vesalius.core.plan import Plan

SLUGS = [s for s in catalog.names(family="networks", dims=2, kind="network") if "probability" in catalog.get(s).gives]
SLUGS += ["kvasir-seg", "kdas"]  # an importer's baseline, a scheme: cards of other kinds


@pytest.mark.parametrize("channels, classes, size", [(1, 2, (45, 70)), (3, 7, (64, 37))])
@pytest.mark.parametrize("slug", SLUGS)
def test_any_input(slug, channels, classes, size):
    torch.manual_seed(0)
    names = {"background": 0, **{f"c{k}": k for k in range(1, classes)}}
    images = tuple(f"i{k}" for k in range(channels))
    small = {"features": (4, 8), "strides": ((1, 1), (2, 2)), "kernels": ((3, 3),) * 2}
    patch = (64, 64) if slug == "unet" else size  # a recipe rounds up to what its network divides; the planner does for the planned one
    plan = Plan(2, images, channels, tuple(names), patch=patch, **small)
    method = catalog.build(slug, plan, Manifest("made", Path("."), 2, images, names, ()), options=catalog.get(slug).small)
    image, label = torch.randn(2, channels, *method.plan.patch), torch.randint(0, classes, (2, *method.plan.patch))
    batch = Batch(image, {"reference": label}, torch.eye(3).expand(2, 3, 3), ["a", "b"])
    terms = method.train().losses(batch, Clock(0, 10), method.turns(Clock(0, 10))[0])
    sum(terms.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
    with torch.no_grad():
        logits = method.eval()(torch.randn(2, channels, *patch))
    assert logits.shape == (2, classes, *patch) and torch.isfinite(logits).all()
