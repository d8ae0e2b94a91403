"""The loop of the annotator closed on real pictures: annotate, train, correct what the model proposes, train again, predict.

    .venv/bin/python bench/loop.py            writes bench/results/loop.json (with --quick it only prints: few cases and steps)

The training pictures of PH2 (skin lesions) are opened as plain files by ``vesalius annotate``, a process of its own that is talked to
over localhost as the page does. A simulated person, who alone sees the reference, outlines the first third: a box whose sides are off by
up to 5 % of their length, LiteMedSAM's answer saved, the case done. 'Improve the model' trains ``unet`` on what is done; it proposes masks
for the next third, of which the person keeps what is good enough (DSC of at least .9) and draws a box in the others; and so on. After each
round ``vesalius predict`` answers for the test pictures, which nobody has seen. The peer is the same training on the references.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import table
from annotator import BIN, Client, kept, served, unpacked

from vesalius.core.case import Case, LabelMap
from vesalius.datasets import open_dataset
from vesalius.engine import api
from vesalius.metrics.overlap import dsc
from vesalius.ops.prompts import box

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data" / "2d" / "ph2_skin"
ROUNDS, ITERATIONS, GOOD, JITTER, AIM = 3, 250, 0.9, 0.05, 0.98
METHOD, STRUCTURE = "unet", "lesion"


class Person(Client):
    """Somebody who annotates the one structure, and who alone knows what is right: ``reference`` of a picture's name."""

    def __init__(self, port: int, reference: Callable[[str], Case]):
        super().__init__(port)
        self.reference, self.rng = reference, np.random.default_rng(0)
        known = self.json("GET", "/api/project")["labels_version"]
        self.json("PUT", "/api/labels", [{"value": 1, "name": STRUCTURE, "color": "#d62728"}], **{"if-match": known})

    def cases(self) -> list[str]:
        """All cases of the project, in an order of their own."""
        found = self.json("GET", "/api/cases")
        self.names = {c["id"]: c["name"] for c in found}
        return list(np.random.default_rng(0).permutation([c["id"] for c in found]))

    def truth(self, case: str) -> LabelMap:
        return self.reference(self.names[case]).labels["reference"]

    def score(self, case: str, mask: np.ndarray) -> float:
        return dsc(mask, np.asarray(self.truth(case).data) == 1)

    def outline(self, case: str) -> np.ndarray:
        """A box, and what LiteMedSAM makes of it, saved."""
        truth = self.truth(case)
        low, high = truth.geometry.to_world(box(np.asarray(truth.data) == 1, self.rng, jitter=JITTER))
        prompt = {"kind": "box", "low": low.tolist(), "high": high.tolist()}
        session = self.session(case)
        answer = self.json("POST", f"/api/sessions/{session}/prompts", {"object": STRUCTURE, "prompts": [prompt]})
        self.json("DELETE", f"/api/sessions/{session}")
        mask = unpacked(answer, truth.geometry.shape)
        parent = self.json("GET", f"/api/cases/{case}")["latest"] or "none"
        if (status := self.save(case, mask, parent)[0]) != 201:
            sys.exit(f"the mask was not kept: {status}")
        return mask > 0

    def proposal(self, case: str, model: str) -> np.ndarray:
        """What a trained model answers, which is the case's newest version then."""
        done = self.wait(self.json("POST", f"/api/cases/{case}/run", {"model": model})["job"])
        return kept(self, case, done["version"]) > 0

    def improve(self, iterations: int) -> str:
        """The model that was trained on what is done."""
        return self.wait(self.json("POST", "/api/train", {"method": METHOD, "iterations": iterations})["job"])["model"]

    def wait(self, job: str) -> dict:
        while (found := self.json("GET", f"/api/jobs/{job}"))["state"] in ("queued", "running"):
            time.sleep(0.2)
        if found["state"] != "done":
            sys.exit(f"a job ended as {found}")
        return found["result"]


def annotate(person: Person, cases: list[str], model: str | None) -> dict:
    """A round's cases made done: how good the proposals were, how many boxes were drawn, and how good the masks are now."""
    proposed, final, boxes = [], [], 0
    for case in cases:
        mask = None if model is None else person.proposal(case, model)
        if mask is not None:
            proposed.append(person.score(case, mask))
        if mask is None or proposed[-1] < GOOD:
            mask, boxes = person.outline(case), boxes + 1
        final.append(person.score(case, mask))
        person.json("PUT", f"/api/cases/{case}/status", {"status": "done"})
    return {
        "cases": len(cases),
        "boxes": boxes,
        "proposals": float(np.mean(proposed)) if proposed else None,
        "masks": float(np.mean(final)),
    }


def tested(run: Path, folder: Path, tests: list[Path]) -> float:
    """Mean DSC of ``vesalius predict`` on the test pictures, as ``vesalius evaluate`` has it."""
    subprocess.run([BIN, "predict", run, *tests, "--out", folder, "--quiet"], check=True, stdout=subprocess.DEVNULL)
    command = [BIN, "evaluate", "--pred", folder, "--ref", DATA, "--split", "test", "--metric", "dsc", "--json", "--quiet"]
    label = [] if run.name == "references" else ["--label", f"{STRUCTURE}=1"]  # the project's value; the data set's is 255
    rows = json.loads(subprocess.run([*command, *label], check=True, stdout=subprocess.PIPE, text=True).stdout)
    return float(np.mean([row["value"] for row in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps a training; nothing is written")
    quick = parser.parse_args().quick
    iterations = 4 if quick else ITERATIONS
    manifest = open_dataset(DATA)
    split, read = manifest.split(), api.reader(manifest)
    files = {case.id: DATA / case.images["RGB"] for case in manifest.cases}
    tests, rounds = [files[i] for i in split.test], []
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        chosen = {files[i].stem: i for i in (*split.train, *split.val)}
        with served(sorted(files[i] for i in chosen.values()), folder / "project") as port:
            person = Person(port, lambda name: read(chosen[name]))
            cases, model = person.cases(), None
            for part in np.array_split(cases, ROUNDS):
                done = annotate(person, list(part), model)
                model = person.improve(iterations)
                run = max((folder / "project" / "runs").iterdir(), key=lambda p: p.stat().st_mtime)
                done["test"] = tested(run, folder / f"round{len(rounds)}", tests)
                person.connection.close()  # the server did, meanwhile; the next request opens it again
                rounds.append(done)
                print(done, file=sys.stderr)
        given = api.train(METHOD, manifest, folder / "references", iterations=iterations, split=split)
        aim = tested(given.folder, folder / "given", tests)
    boxes, masks = sum(r["boxes"] for r in rounds), np.average([r["masks"] for r in rounds], weights=[r["cases"] for r in rounds])
    result = table.result(
        f"annotate, train, predict on PH2: {boxes} boxes for {len(cases)} pictures (masks DSC {masks:.3f}), {METHOD} then has test DSC "
        f"{rounds[-1]['test']:.3f}",
        f"the same training on the references, {aim:.3f}",
        f">= {AIM}x",
        rounds[-1]["test"] / aim,
        ".venv/bin/python bench/loop.py",
        met=rounds[-1]["test"] >= AIM * aim,
        details={"rounds": rounds, "references": aim, "iterations": iterations, "method": METHOD},
    )
    print(json.dumps(result, indent=1))
    if not quick:
        table.write("loop", [result])


if __name__ == "__main__":
    main()
