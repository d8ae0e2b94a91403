"""MaxQuery's claim: agreement with queries finds a type of lesion that training never showed better than a plain network's logits do, and
the query-distribution loss helps.

Every trained network is tested on three unseen types; voxels of the unseen lesion are told from those of the known lesions of the same
picture (AUROC, AUPRC, FPR95), and from the whole rest of the organ. Scores are compared voxel by voxel as they are, without blur. All
networks are the same planned U-Net up to its last features, trained for the same steps on the same patches.

Two numbers a training say what queries are for. 'queries apart': of what queries take of known lesions, the part that is theirs alone, sum
over queries of l^2 / (l + o + b) with l, o and b a query's mean share of lesions', organ's and background's voxels; 1 if lesions have
queries of their own, 1/3 if all kinds share all. It asks for no groups, so it is fair to the arm without the loss. 'queries on lesions' is
the share of queries that any voxel of a known lesion agrees with most; shown and not compared, as with the loss only a third may.
"""

from __future__ import annotations

import numpy as np
import torch

from vesalius.core.case import Image
from vesalius.core.prediction import Prediction
from vesalius.datasets import open_dataset
from vesalius.engine import api
from vesalius.engine.evaluate import score
from vesalius.engine.infer import infer
from vesalius.engine.prepare import prepare
from vesalius.engine.restore import restore
from vesalius.engine.study import Arm, Data, Expect, Study, trained_once
from vesalius.metrics.classification import auprc, auroc, fpr_at_tpr

UNSEEN = ("mottled", "calcified", "layered")
OF_LOGITS = {
    "unet, MSP": lambda z: -z.softmax(0).amax(0),
    "unet, max-logit": lambda z: -z.amax(0),
    "unet, energy": lambda z: -z.logsumexp(0),
}
SMALL = {"queries": (4, 4, 4), "width": 32, "heads": 4, "expansion": 4}
TRAINING = {"optimizer": "adamw", "lr": 2e-3, "weight_decay": 1e-2, "ema": 0.99}  # as the U-Net's, for a short training
BUDGET = {**SMALL, **TRAINING}


def measure(study, manifest, folder, *, seeds, iterations, plan, progress):
    """Rows of every test case and unseen type; of each arm's DSC of known lesions, and of its queries a seed."""
    rows, split = [], manifest.split()
    for seed in range(seeds):
        how = dict(seed=seed, iterations=iterations, plan_overrides=plan, split=split, progress=progress)
        for arm, trained in trained_once(study.arms, manifest, folder, **how):
            taken, used = [], set()
            for unseen in UNSEEN:
                other = open_dataset(f"phantom:lesion-types?unseen={unseen}")
                for i in split.test:
                    case = api.reader(other)(i)
                    row = {"method": arm.name, "seed": seed, "case": f"{i}, {unseen}", "patient": case.patient}
                    strange, share = look(trained, arm, case)
                    rows += [{**row, "metric": name, "value": v} for name, v in found(strange, case).items()]
                    for s in score(infer(trained.method, case, trained.plan), case, metrics=("dsc",)):
                        if s.structure in ("cyst", "solid"):
                            rows.append({**row, "structure": s.structure, "metric": "dsc", "value": s.value})
                    if share is not None:
                        taken.append(sums(share, case))
                        used |= set(np.unique(share.argmax(0)[case.label.data > 1]))
            if taken:
                own = {"method": arm.name, "seed": seed, "case": "", "patient": f"seed {seed}"}
                rows.append({**own, "metric": "queries apart", "value": apart(np.sum(taken, 0))})
                rows.append({**own, "metric": "queries on lesions", "value": len(used) / sum(trained.method.network.sizes)})
    return rows


def look(trained, arm, case) -> tuple[np.ndarray, np.ndarray | None]:
    """(how strange each voxel is, each query's share of it (N, *s)), on the original grid."""
    method, seen = trained.method.eval(), prepare(case.without_labels(), trained.plan, trained.method)
    image = torch.from_numpy(np.ascontiguousarray(seen.stack(method.channels)))
    with torch.no_grad():
        if arm.name in OF_LOGITS:
            maps = {"ood": OF_LOGITS[arm.name](method.inferer()(method, image))[None]}
        else:
            answer = lambda x: {"agreement": method.network.answer(x).agreement}
            agreement = method.inferer()(answer, image)["agreement"]
            maps = {"ood": -agreement.amax(0, keepdim=True), "share": agreement.softmax(0)}
    images = {k: Image(v.float().numpy(), seen.geometry) for k, v in maps.items()}
    back = restore(Prediction(images=images), seen.geometry, case.geometry, trained.plan.classes).images
    return back["ood"].data[0], back["share"].data if "share" in back else None


def sums(share: np.ndarray, case) -> np.ndarray:
    """(3, N + 1): what each query takes of known lesions, organ and background, and their voxels; the unseen lesion is none of them."""
    label, known = case.label.data, case.rois["unseen"].data == 0
    kinds = (known & (label > 1), known & (label == 1), known & (label == 0))
    return np.stack([np.append(share[:, kind].sum(1), kind.sum()) for kind in kinds])


def apart(taken: np.ndarray) -> float:
    """Of the queries' mean shares of lesions, what they do not share with organ and background (see above), from sums (3, N + 1)."""
    mean = taken[:, :-1] / np.maximum(taken[:, -1:], 1)
    return float((mean[0] ** 2 / np.maximum(mean.sum(0), 1e-12)).sum())


def found(strange: np.ndarray, case) -> dict[str, float | None]:
    label, unseen = case.label.data, case.rois["unseen"].data > 0
    lesions, organ = unseen | (label > 1), unseen | (label > 0)
    against = strange[lesions], unseen[lesions]
    out = {"auroc": auroc(*against), "auprc": auprc(*against), "fpr95": fpr_at_tpr(*against)}
    return {**out, "auroc in organ": auroc(strange[organ], unseen[organ])}


def study() -> Study:
    return Study(
        slug="maxquery",
        claim="agreement of voxels with queries finds unseen lesions better than a plain network's logits, with the QD loss better still",
        arms=(
            *(Arm(name, "unet") for name in OF_LOGITS),
            Arm("without QD", "maxquery", {**BUDGET, "qd_weight": 0.0}),
            Arm("maxquery", "maxquery", BUDGET),
        ),
        data=(Data("phantom:lesion-types"),),
        baseline="unet, MSP",
        expects=(
            *(Expect("maxquery", "auroc", "higher", against=name) for name in OF_LOGITS),
            Expect("maxquery", "auprc", "higher"),
            Expect("maxquery", "fpr95", "lower"),
            Expect("maxquery", "auroc in organ", "higher"),
            Expect("maxquery", "dsc", "higher"),
            Expect("maxquery", "auroc", "higher", against="without QD"),
            Expect("maxquery", "queries apart", "higher", against="without QD"),
        ),
        metrics=("auroc", "auprc", "fpr95", "auroc in organ", "dsc", "queries apart", "queries on lesions"),
        seeds=3,
        iterations=800,
        plan={"patch": (96, 96), "features": (8, 16, 32, 64), "batch": 8, "precision": "32", "test_mirror": ()},
        measure=measure,
    )
