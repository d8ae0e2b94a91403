"""SPOCKMIP's claim: with a loss on projections the same U-Net's vessels are in fewer pieces. All arms see the same patches; noise hides
parts of the vessels. 'spockmip, whole volume' asks a patch for the whole volume's projection, as the published code does. Two validation
cases are too few for the engine to choose to keep the largest piece alone, which would hide what is compared.

A few hundred steps leave false alarms in all arms, which projections multiply; after a thousand there are hardly any, and with little noise
hardly a broken vessel either: hence a short training in some noise, and a longer one in more.

The liver slabs (LVSD) cannot say anything here: one slice of seven is labelled, the others would be taught as empty, a projection along z
is that slice, and all test slabs are one patient's.
"""

from __future__ import annotations

from vesalius.engine.study import Arm, Data, Expect, Study


def study() -> Study:
    return Study(
        slug="spockmip",
        claim="projections in the loss keep vessels in fewer pieces, at no lower overlap of volumes and centre lines",
        arms=(
            Arm("without", "spockmip", {"mip_weight": 0.0}),
            Arm("spockmip, z", "spockmip", {"axes": "z"}),
            Arm("spockmip", "spockmip"),
            Arm("spockmip, whole volume", "spockmip", {"target": "volume"}),
        ),
        data=(
            Data("phantom:vessel-tree-3d?cases=12,2,6&corruption=noise&corrupted=all&severity=3", iterations=300),
            Data("phantom:vessel-tree-3d?cases=12,2,6&corruption=noise&corrupted=all&severity=4", iterations=1200),
        ),
        baseline="without",
        expects=(
            Expect("spockmip", "betti0_error", "lower"),
            Expect("spockmip", "cldice", "higher", margin=0.01),
            Expect("spockmip", "dsc", "higher", margin=0.01),
            Expect("spockmip, z", "betti0_error", "lower"),
        ),
        metrics=("dsc", "cldice", "length_detected", "betti0_error"),
        seeds=3,
        plan={"patch": (32, 32, 32), "features": (8, 16, 32), "overlap": 0.25, "test_mirror": ()},
    )
