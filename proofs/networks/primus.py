"""Primus's question: does performance survive without the transformer? Asked of Primus, and of a U-Net with a transformer at its bottom.

In the torso a left kidney looks like a right one: telling them apart needs more than a token sees. Every arm has the same time, since an
update of Primus costs a fraction of one of the U-Net and it needs many more. The tiny Primus has about as many parameters as the U-Net (a
test holds this); a twin has as many as remain when the blocks are gone. No aim is set for the hybrid's loss: its row and its twin's show
it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from vesalius.core.geometry import Spacing
from vesalius.core.manifest import Manifest
from vesalius.core.method import Method
from vesalius.core.plan import Plan
from vesalius.engine.study import Arm, Data, Expect, Study
from vesalius.methods.learned import Segmenter
from vesalius.networks.ablation import identity_twin
from vesalius.networks.blocks.transformer import Transformer


class Hybrid(Segmenter):
    """The planned U-Net with four transformer blocks over its coarsest maps; ``identity``: with these blocks taken out."""

    def __init__(self, plan: Plan, manifest: Manifest, *, parts: Mapping[str, Method] | None = None, identity: bool = False):
        self.identity = identity
        super().__init__(plan, manifest, parts=parts)

    def build(self, network=None, **options) -> nn.Module:
        net = super().build(network, **options)
        grid = [n // m for n, m in zip(self.plan.patch, net.multiple, strict=True)]
        net.down[-1] = nn.Sequential(net.down[-1], Transformer(self.plan.features[-1], 4, 4, grid, rotary=False, drop_path=0.0))
        return identity_twin(net) if self.identity else net


BUDGET = {"depth": 2, "heads": 2, "dim": 48, "drop_path": 0.0, "lr": 3e-3, "schedule": "cosine", "ema": 0.98}


def study() -> Study:
    return Study(
        slug="primus",
        claim="without its transformer Primus loses what it can do; a U-Net that carries one hardly notices",
        arms=(
            Arm("primus without blocks", "primus", {**BUDGET, "identity": True}),
            Arm("hybrid", Hybrid),
            Arm("hybrid without blocks", Hybrid, {"identity": True}),
            Arm("unet", "unet"),
            Arm("primus", "primus", BUDGET),
        ),
        data=(
            Data("phantom:torso-ct?cases=24", plan={"grid": Spacing(6.3, 6.3, 6.0), "patch": (48, 40, 32), "batch": 1}),
            Data("../shared/data/3d/msd_hippocampus", plan={"patch": (32, 48, 32), "batch": 2}),
        ),
        baseline="primus without blocks",
        expects=(Expect("primus", "dsc", "higher"), Expect("primus", "hd95", "lower")),
        metrics=("dsc", "hd95"),
        minutes=0.14,
        plan={"features": (8, 16, 32), "overlap": 0.25, "test_mirror": ()},
    )
