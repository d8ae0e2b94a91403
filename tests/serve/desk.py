"""What the tests of the server share: small projects, a stand-in promptable model, a client that is signed in."""

import gzip

import numpy as np
from fastapi.testclient import TestClient

from tests.engine.test_interact import Ball
from vesalius import io
from vesalius.core.case import Image
from vesalius.core.geometry import Geometry
from vesalius.core.manifest import Manifest
from vesalius.core.plan import Plan
from vesalius.core.prediction import Prediction
from vesalius.methods.learned import ReferringSegmenter
from vesalius.serve.app import create_app
from vesalius.serve.models import Loaded, Model, Models
from vesalius.serve.security import Guard
from vesalius.serve.sources import manifest_of
from vesalius.serve.store import Project

TOKEN = "a token that tests use"
VOLUME = Geometry((20, 16, 12), np.array([[-1.5, 0, 0, 10.0], [0, -1.5, 0, 20.0], [0, 0, 3.0, -30.0], [0, 0, 0, 1]]))  # LPS, thick slices
PICTURE = Geometry.of((24, 40), (1.0, 1.0))


def image_files(folder, count=2, dims=3):
    """Image files of noise with a bright block."""
    rng, files = np.random.default_rng(0), []
    for k in range(count):
        geometry = VOLUME if dims == 3 else PICTURE
        data = rng.integers(0, 100, (1, *geometry.shape)).astype(np.int16 if dims == 3 else np.uint8)
        data[(0, *(slice(4, 10),) * dims)] += 100
        files.append(folder / (f"case {k}.nii.gz" if dims == 3 else f"case {k}.png"))
        io.write_image(files[-1], data, geometry)
    return files


class Bright(ReferringSegmenter):
    """'bright' means what is brighter than all noise; it has heard of nothing else."""

    def predict(self, case, prompts=(), *, rng):
        (query,) = case.queries
        mask = case.stack(self.channels)[:1] >= 100 if query.text == "bright" else np.zeros((1, *case.geometry.shape))
        notes = () if mask.any() else (f"'{query.text}' means nothing here",)
        return Prediction(probability=Image(mask.astype(np.float32), case.geometry), names=(query.id,), threshold=0.5, notes=notes)


def ball(case, dims, kind=Ball):
    normalise = {name: "none" for name in case.images}
    plan = Plan(dims, tuple(case.images), classes=("background", "foreground"), patch=(8,) * dims, normalise=normalise)
    manifest = Manifest("m", "", dims, plan.channels, {"background": 0, "foreground": 1}, ())
    return Loaded(kind(plan, manifest), plan, dims == 2 and kind is Ball)


BUILT = {
    "ball": (Model("ball", "Ball", ("box", "lasso", "mask", "point", "scribble"), (2, 3)), ball),
    "flat": (Model("flat", "Flat ball", ("box", "lasso", "mask", "point", "scribble"), (2,)), ball),
    "words": (Model("words", "Words", ("text",), (2, 3)), lambda case, dims: ball(case, dims, Bright)),
    "flat words": (Model("flat words", "Flat words", ("text",), (2,)), lambda case, dims: ball(case, dims, Bright)),
}


def project_of(folder, dims=3, count=2):
    (folder / "images").mkdir(exist_ok=True)
    files = sorted((folder / "images").glob("*")) or image_files(folder / "images", count, dims)
    return Project(folder / "project", manifest_of(files))


def client_of(project, *, signed_in=True, most_body=2**22, models=lambda project: Models(project, BUILT)):
    app = create_app(project, guard=Guard(TOKEN, most_body=most_body), models=models(project), page=project.folder / "no page")
    headers = {"authorization": f"Bearer {TOKEN}"} if signed_in else {}
    return TestClient(app, base_url="http://127.0.0.1:8421", headers=headers, raise_server_exceptions=False)


def raw(mask):
    """Body and headers of a mask sent as an array."""
    sides = ",".join(map(str, mask.shape))
    return {"content": gzip.compress(mask.tobytes()), "headers": {"x-shape": sides, "x-dtype": mask.dtype.name}}


def put(client, case, mask, parent="none", **headers):
    sent = raw(mask)
    return client.put(f"/api/cases/{case}/label", params={"parent": parent}, content=sent["content"], headers=sent["headers"] | headers)


def relabel(client, labels, version=None):
    """The table of labels replaced, by someone who saw it as it is now (or as of ``version``)."""
    version = version or client.get("/api/project").json()["labels_version"]
    return client.put("/api/labels", json=labels, headers={"if-match": version})


def finished(client, answer, seconds=60):
    """The job that an answer names, when it is over."""
    import time

    assert answer.status_code == 202, answer.text
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        job = client.get(f"/api/jobs/{answer.json()['job']}").json()
        if job["state"] not in ("queued", "running"):
            return job
        time.sleep(0.02)
    raise AssertionError(f"not finished: {job}")
