"""What the tests of this family share: a tiny plan on a phantom, a segmenter without training, and a run that trains nothing."""

import torch

from vesalius.datasets import open_dataset
from vesalius.engine import api, judges
from vesalius.methods.learned import Segmenter

SMALL = {
    "features": (4, 8), "strides": ((1, 1), (2, 2)), "kernels": ((3, 3), (3, 3)), "patch": (64, 64), "precision": "32", "threads": 1,
    "test_mirror": (0,),
}  # fmt: skip


def setting(where: str = "phantom:shapes-2d?cases=20", **overrides):
    """(manifest, split, plan, read)."""
    manifest = open_dataset(where)
    split = manifest.split()
    plan, _ = api.plan_for(manifest, split, overrides={**SMALL, **overrides})
    return manifest, split, plan, api.reader(manifest)


def segmenter(plan, manifest) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(plan, manifest).eval()


class Lent(judges.Lent):
    """Remembers which cases it was asked for."""

    def __init__(self, manifest, method):
        super().__init__(manifest, method, 0)
        self.asked = []

    def prepared(self, case, method=None):
        self.asked.append(case)
        return super().prepared(case, method)


def fitted(wrapper, manifest, split):
    return wrapper.fit(split.train, split.val, Lent(manifest, wrapper))
