"""What prompts are worth without training: clicks, boxes, coarse boxes, both; what an oracle's choice adds; and what is found without a
word."""

from __future__ import annotations

from vesalius import catalog
from vesalius.engine import api
from vesalius.engine.evaluate import score
from vesalius.engine.interact import respond_to_all, structures
from vesalius.engine.study import Arm, Data, Expect, Study

MOST, OBJECTS = 18, 200  # images of a data set; objects after which no further image is taken
MODES = ("1click", "1click+pick", "1random", "5clicks", "box", "box10", "box20", "box+5clicks", "everything4")


def chosen(manifest, tests) -> list[str]:
    """The first test cases that show something, until there are enough of them or of objects."""
    out, objects, read = [], 0, api.reader(manifest)
    for id in tests:
        if len(out) == MOST or objects >= OBJECTS:
            break
        if manifest[id].labels and (found := structures(read(id), manifest.names)):
            out, objects = [*out, id], objects + len(found)
    return out


def measure(study, manifest, folder, *, seeds, iterations, plan, progress):
    """Rows per (arm, user, case, structure); an image is embedded once for all users of an arm."""
    split, rows = manifest.split(), []
    plan, _ = api.plan_for(manifest, split, overrides=plan, progress=progress)
    tests = chosen(manifest, split.test)
    for arm in study.arms:
        method = catalog.build(arm.method, plan, manifest, options=arm.options)
        modes = MODES if not arm.options else MODES[:2]  # several masks are for one click alone
        with progress.task(arm.name, len(tests)) as advance:
            for case in map(api.reader(manifest), tests):
                advance(1)
                for seed in range(seeds):
                    for mode, answer in respond_to_all(method, case, method.plan, modes, seed=seed):
                        found = [s.to_json() for s in score(answer, case, metrics=study.metrics)]
                        rows += [{**r, "method": f"{arm.name}, {mode}", "seed": seed} for r in found]
    return rows


def study() -> Study:
    return Study(
        slug="sam4mis",
        claim="zero-shot, a box says more than a click, five clicks more than one, coarse boxes less than tight ones, no prompt least",
        arms=(Arm("lite-medsam", "sam4mis"), Arm("four masks", "sam4mis", {"several": True})),
        data=tuple(Data(f"../shared/data/2d/{name}") for name in ("kvasir_seg", "busi_seg", "ph2_skin", "dsb2018_nuclei")),
        baseline="lite-medsam, 1click",
        expects=(
            Expect("lite-medsam, box", "dsc", "higher"),
            Expect("lite-medsam, 5clicks", "dsc", "higher"),
            Expect("lite-medsam, box20", "dsc", "lower", against="lite-medsam, box"),
            Expect("lite-medsam, everything4", "dsc", "lower", against="lite-medsam, box"),
        ),
        metrics=("dsc",),
        seeds=3,
        prompts=MODES,
        measure=measure,
    )
