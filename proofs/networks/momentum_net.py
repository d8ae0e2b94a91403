"""MomentumNet's claim: blocks with a velocity segment better than plain residual blocks, at the same parameters and the same steps; and
what its way back saves.

The encoder is narrow, with six blocks in its longest stage, from random weights (the paper's is a ResNet-50). No value of gamma was found;
0.5 is ours, 0.9 the library's. Reversible and stored training give the same gradients (a test holds that), so 'reversible' is not trained:
'MiB at n blocks' is what a stage of n blocks keeps from its forward pass for the way back, in batches of 8 with 64 channels of 24 x 24.
"""

from __future__ import annotations

import torch
from torch import nn

from vesalius.core.geometry import LongestSide
from vesalius.engine.study import Arm, Data, Expect, Study, compared
from vesalius.networks.momentum import Momentum
from vesalius.networks.momentum_net import Bottleneck

BUDGET = {"depths": (3, 4, 6, 3), "width": 8, "optimizer": "adamw", "lr": 2e-3, "weight_decay": 1e-2}
REVERSIBLE = Arm("reversible", "momentum-net", {**BUDGET, "memory": "reversible"})
DEPTHS = (8, 32)


def measure(study, manifest, folder, *, seeds, iterations, plan, progress):
    """A comparison of the arms that are trained, and what both ways of training keep."""
    scores = study.metrics[: -len(DEPTHS)]
    how = dict(seeds=seeds, iterations=iterations, plan=plan, progress=progress)
    rows = compared(study, manifest, folder, scores, arms=study.arms[:-1], **how)
    for arm in study.arms[-2:]:
        for n in DEPTHS:
            value = kept(arm.options.get("memory", "stored"), n) / 2**20
            for seed in range(seeds):
                at = {"method": arm.name, "case": "", "patient": f"seed {seed}", "seed": seed}
                rows.append({**at, "metric": f"MiB at {n} blocks", "value": value})
    return rows


def kept(memory: str, blocks: int) -> int:
    """Bytes, weights apart, that ``blocks`` bottlenecks in a row keep between forward and backward."""
    torch.manual_seed(0)
    sizes: dict[int, int] = {}
    saved = []  # alive, so that no two are counted for one

    def count(t: torch.Tensor) -> torch.Tensor:
        if not isinstance(t, nn.Parameter):
            saved.append(t)
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    flow = Momentum(0.5, memory=memory, blocks=blocks)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        x, _ = flow(torch.randn(8, 64, 24, 24, requires_grad=True), [Bottleneck(64, 64) for _ in range(blocks)])
    for t in getattr(x.grad_fn, "end", ()):  # the integers of the way back
        count(t)
    return sum(sizes.values())


def study() -> Study:
    return Study(
        slug="momentum-net",
        claim="residual blocks with momentum segment better than plain ones, and their way back keeps the same whatever the depth",
        arms=(
            Arm("plain residual", "momentum-net", {**BUDGET, "gamma": 0.0}),
            Arm("gamma 0.9", "momentum-net", {**BUDGET, "gamma": 0.9}),
            Arm("momentum-net", "momentum-net", BUDGET),
            REVERSIBLE,
        ),
        data=(
            Data("../shared/data/2d/cxr_lungs", iterations=100),
            Data("../shared/data/2d/kvasir_seg", iterations=240),
        ),
        baseline="plain residual",
        expects=(
            Expect("momentum-net", "dsc", "higher"),
            *(Expect("reversible", f"MiB at {n} blocks", "lower", against="momentum-net") for n in DEPTHS),
        ),
        metrics=("dsc", "nsd", "hd95", *(f"MiB at {n} blocks" for n in DEPTHS)),
        plan={"grid": LongestSide(96), "patch": (96, 96), "batch": 8, "precision": "32", "test_mirror": ()},
        measure=measure,
    )
