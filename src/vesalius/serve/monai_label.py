"""MONAI Label's REST, as 3D Slicer's and OHIF's plugins and its own client class speak it, over the same project.

Images are the project's cases by their opaque ids, models the project's models; a saved label becomes a version of its case. Signing in
goes by ``/auth/token``: any user name, and the server's token as the password; or by ``Authorization: Bearer``. Clicks are voxel indices
of the image ('foreground', 'background'), as DeepEdit's clients send them; a box is 'roi' [low i, high i, low j, high j, ...].
"""

from __future__ import annotations

import json
import secrets
from collections import OrderedDict
from typing import Any

import numpy as np
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from .. import __version__
from ..core.errors import DataError, UsageError
from ..core.geometry import Geometry, coarsest
from ..core.prompt import Box, Point, Prompt
from ..engine.infer import infer
from . import active
from .jobs import Jobs
from .security import Guard
from .store import Missing
from .wire import decode_mask, encode
from .work import Desk

_MOST_SESSIONS = 32
_USER = "MONAI Label client"
_MIME = "application/gzip"


class _Any(BaseModel):
    """Whatever a client sends; what is not understood is left aside, as MONAI Label does."""

    model_config = {"extra": "allow"}


def add_routes(app: FastAPI, desk: Desk, jobs: Jobs, guard: Guard) -> None:
    """Add the surface to the annotator's application."""
    project, models, routes = desk.project, desk.models, APIRouter(tags=["MONAI Label"])
    uploads: OrderedDict[str, str] = OrderedDict()  # their session -> our case

    def case_of(image: str) -> str:
        """A case by id, or by its name where that is how the client knows it. Raises Missing."""
        entries = project.entries()
        found = next((e.id for e in entries if e.id == image), None) or next((e.id for e in entries if e.name == image), None)
        if found is None:
            raise Missing("there is no such image", fix="ask /datastore/ for the images")
        return found

    @routes.get("/auth/", summary="Whether and how to sign in")
    def sign_in_facts() -> dict:
        return {"enabled": True, "realm": "Vesalius", "client_id": "vesalius"}

    @routes.post("/auth/token", summary="The token, for the password that is the token")
    async def sign_in_by_password(request: Request) -> Response:
        form = await request.form(max_files=0, max_fields=16)
        if not guard.accepts(str(form.get("password", ""))):
            return JSONResponse({"error": "the password is the server's token", "fix": None}, guard.refused())
        return JSONResponse({"access_token": guard.token, "token_type": "bearer"})

    @routes.get("/auth/token/valid", summary="Whether the token is valid")
    def signed_in_user() -> dict:
        return {"username": _USER}

    @routes.get("/info/", summary="Models, labels and strategies")
    def server_info() -> dict:
        labels = {x.name: x.value for x in project.labels}
        listed = {
            m.id: {
                "type": "deepedit" if m.kinds else "segmentation",
                "labels": labels,
                "dimension": max(m.dims),
                "description": m.title,
                "config": {},
            }
            for m in models.list()
            if not m.listens
        }
        entries = project.entries()
        saved = sum(e.head is not None for e in entries)
        strategies = {s: {"description": f"Vesalius: by {s}"} for s in active.STRATEGIES}
        return {
            "name": project.manifest.name,
            "description": "Vesalius annotator",
            "version": __version__,
            "labels": list(labels),
            "models": listed,
            "trainers": {"unet": {"description": "U-Net trained on the cases that are done", "config": {"minutes": 10}}},
            "strategies": strategies,
            "scoring": {},
            "train_stats": {},
            "datastore": {"total": len(entries), "completed": saved},
            "config": {},
        }

    @routes.get("/datastore/", summary="Images and labels that there are")
    def datastore_listing(output: str = "stats") -> Any:
        entries = project.entries()
        done = [e for e in entries if e.head is not None]
        if output == "train":
            return [{"image": e.id, "label": e.id} for e in done]
        if output == "stats":
            return {"total": len(entries), "completed": len(done), "label_tags": {"final": len(done)}}
        return {"objects": {e.id: {"image": {"ext": ".nii.gz", "info": {}}, "labels": _tags(e.head)} for e in entries}}

    @routes.get("/datastore/image", summary="An image, as NIfTI")
    def datastore_image(image: str) -> Response:
        from .app import image_file

        case = case_of(image)
        name = project.channels(project.entry(case))[0]
        return FileResponse(image_file(desk, case, name), media_type=_MIME, filename=f"{case}.nii.gz")

    @routes.get("/datastore/image/info", summary="An image's name and status")
    def datastore_image_info(image: str) -> dict:
        entry = project.entry(case_of(image))
        return {"name": entry.id, "status": entry.status}

    @routes.put("/datastore/", summary="A new case from an uploaded NIfTI")
    async def datastore_add_image(request: Request, image: str = "") -> dict:
        form = await request.form(max_files=2, max_fields=16)
        content = await _file(form, "file", "files")
        return {"image": await run_in_threadpool(project.add, image, content)}

    @routes.get("/datastore/label", summary="An image's newest label, as NIfTI")
    def datastore_label(label: str, tag: str = "final") -> Response:
        case = case_of(label)
        return _sent(encode(project.mask(case)[None], project.geometry(case)), case)

    @routes.put("/datastore/label", summary="Save a label as a new version")
    async def datastore_save_label(request: Request, image: str, tag: str = "final") -> dict:
        form = await request.form(max_files=2, max_fields=16)
        content = await _file(form, "label", "file")

        def save() -> str:
            case = case_of(image)
            mask = decode_mask(content, project.geometry(case), project.folder / "uploads")
            parent = project.entry(case).head  # these clients know of no versions: theirs goes on top, and the one before stays
            return project.save(case, mask, parent, user=_USER, origin={"kind": "manual", "client": "monai label"}, note=tag[:100]).id

        return {"image": image, "label": await run_in_threadpool(save), "tag": tag}

    @routes.put("/session/", summary="A session that brings its own image")
    async def upload_session(request: Request) -> dict:
        form = await request.form(max_files=2, max_fields=16)
        content = await _file(form, "files", "file")
        session = secrets.token_hex(8)
        uploads[session] = await run_in_threadpool(project.add, f"session {session[:6]}", content)
        while len(uploads) > _MOST_SESSIONS:
            uploads.popitem(last=False)
        return {"session_id": session, "image": uploads[session]}

    @routes.get("/session/{session}", summary="Whether such a session is there")
    def upload_session_state(session: str) -> dict:
        if session not in uploads:
            raise Missing("the session has ended", fix="start a new one")
        return {"name": session, "image": uploads[session]}

    @routes.delete("/session/{session}", summary="End such a session")
    def end_upload_session(session: str) -> dict:
        uploads.pop(session, None)
        return {}

    @routes.post("/infer/{model}", summary="A model's answer for an image, to clicks or a box where it takes them")
    async def infer_image(request: Request, model: str, image: str = "", session_id: str = "", output: str = "all") -> Response:
        kind = request.headers.get("content-type", "")
        given = await (request.form(max_files=2, max_fields=16) if kind.startswith(("multipart/", "application/x-www")) else _json(request))
        params = given.get("params", {}) if isinstance(given, FormData) else given.get("params", given)
        params = _object(params)
        if session_id and session_id not in uploads:
            raise Missing("the session has ended", fix="start a new one")
        case = uploads[session_id] if session_id else case_of(image)
        mask, facts = await run_in_threadpool(_answer, desk, case, model, params)
        if output == "json":
            return JSONResponse(facts)
        body = encode(mask[None], project.geometry(case))
        return _sent(body, case) if output == "image" else _parts(facts, body, case)

    @routes.post("/activelearning/{strategy}", summary="The image to label next")
    def next_sample(strategy: str, given: _Any | None = None) -> dict:
        chosen = active.next_case(project.entries(), strategy if strategy in active.STRATEGIES else "order", project.read, desk.pictures)
        return {} if chosen is None else {"id": chosen, "name": chosen, "strategy": strategy, "ext": ".nii.gz"}

    @routes.post("/train/{model}", summary="Train on the cases that are done")
    def start_training(model: str, given: _Any | None = None) -> dict:
        from .. import catalog

        catalog.get(model)
        settings = (given.model_extra or {}) if given else {}
        settings = settings.get(model, settings)
        minutes = settings.get("minutes", 10) if isinstance(settings, dict) else 10
        if not isinstance(minutes, (int, float)) or not 0 < minutes <= 1440:
            raise UsageError("minutes are a number", found=str(minutes)[:20], allowed="up to 1440")
        return _training(jobs.start("train", lambda job: desk.train(job, model, minutes, None, None)).to_json())

    @routes.get("/train/", summary="How a training gets on")
    def training_state(check_if_running: bool = False) -> Response:
        trained = [j for j in jobs.list() if j.kind == "train"]
        running = next((j for j in trained if j.state in ("queued", "running")), None)
        if check_if_running and running is None:
            return JSONResponse({"error": "nothing is being trained", "fix": None}, 404)
        return JSONResponse(_training((running or trained[0]).to_json()) if trained else {})

    @routes.delete("/train/", summary="Stop the trainings")
    def stop_training() -> dict:
        stopped = [jobs.cancel(j.id).id for j in jobs.list() if j.kind == "train" and j.state in ("queued", "running")]
        return {"stopped": stopped}

    app.include_router(routes)


def _tags(head: str | None) -> dict:
    return {} if head is None else {"tags": {"final": {"ext": ".nii.gz", "info": {"version": head}}}}


def _training(job: dict) -> dict:
    states = {"queued": "PENDING", "running": "RUNNING", "done": "DONE", "failed": "ERROR", "cancelled": "CANCELED"}
    return {"id": job["id"], "status": states[job["state"]], "details": [job["text"]], "progress": job["fraction"], "result": job["result"]}


def _answer(desk: Desk, case: str, model: str, params: dict) -> tuple[np.ndarray, dict]:
    """(label values (*spatial), what else there is to say): the model's own answer, or that to the clicks and the box in ``params``."""
    known = desk.models.get(model)
    image = desk.project.read(case)
    names = {x.name: x.value for x in desk.project.labels}
    if not known.kinds:
        loaded = desk.models.load(model, image)
        return desk.project.to_values(infer(loaded.method, image, loaded.plan).label), {"label_names": names}
    wanted = params.get("label")
    name = wanted if isinstance(wanted, str) and wanted in names else next(iter(names))
    prompts = _prompts(params, name, image.geometry)
    session = desk.sessions.start(case, model)
    try:
        out = np.zeros(image.geometry.shape, np.uint16)
        for key, group in _by_slice(prompts, session.sliced, image.geometry).items():
            session.ask(name, group, key)
            plane, view = session.plane(key), session.view(key)
            on = np.asarray(view.answer().probability.data)[0] >= 0.5
            out[on if plane is None else plane.place(on)] = names[name]
        return out, {"label_names": {name: names[name]}}
    finally:
        desk.sessions.end(session.id)


def _prompts(params: dict, label: str, geometry: Geometry) -> list[Prompt]:
    prompts: list[Prompt] = []
    for key, positive in (("foreground", True), (label, True), ("background", False)):
        for index in _lists(params.get(key), geometry.ndim):
            prompts.append(Point(tuple(geometry.to_world(_ours(index, geometry))), positive))
    roi = params.get("roi")
    if roi is not None and len(roi) == 0:
        roi = None
    if roi is not None:
        if len(roi) != 6 and len(roi) != 2 * geometry.ndim:
            raise UsageError("a box is low and high along every axis", found=f"{len(roi)} numbers")
        ends = np.array(roi, float).reshape(-1, 2).T
        low, high = geometry.world_bounds(*(_ours(e, geometry) for e in ends))
        prompts.append(Box(tuple(low), tuple(high)))
    if not prompts:
        raise UsageError("this model answers to clicks or a box", fix="send 'foreground': [[i, j, k], ...] or 'roi'")
    return prompts


def _ours(index: np.ndarray, geometry: Geometry) -> np.ndarray:
    """An index of the image as it travels -> of our grid: a picture travels as (column, row, 0)."""
    return np.asarray(index, float)[:3] if geometry.ndim == 3 else np.asarray(index, float)[[1, 0]]


def _lists(value: Any, dims: int) -> list[list[float]]:
    try:
        rows = [] if value is None else [[float(x) for x in row] for row in value]
    except (TypeError, ValueError) as error:
        raise UsageError("clicks are lists of numbers") from error
    if any(len(row) < dims for row in rows):
        raise UsageError("a click has one number an axis", allowed=f"{dims} numbers")
    return rows


def _by_slice(prompts: list[Prompt], sliced: bool, geometry: Geometry) -> dict[tuple[int, int] | None, list[Prompt]]:
    """The prompts of each slice, across the coarsest axis, where the model looks at slices."""
    if not sliced:
        return {None: prompts}
    axis = coarsest(geometry.spacing)
    out: dict[tuple[int, int] | None, list[Prompt]] = {}
    for p in prompts:
        at = np.mean([p.low, p.high], 0) if isinstance(p, Box) else np.asarray(p.xyz)
        out.setdefault((axis, int(np.rint(geometry.to_index(at)[axis]))), []).append(p)
    return out


async def _file(form: FormData, *names: str) -> bytes:
    for name in names:
        found = form.get(name)
        if isinstance(found, UploadFile):
            return await found.read()
    raise DataError("there is no file in the request", allowed=", ".join(names))


async def _json(request: Request) -> dict:
    return _object((await request.body()).decode("utf-8", "replace") or "{}")


def _object(value: Any) -> dict:
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise UsageError("the parameters are no JSON") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError("the parameters are an object")
    return value


def _sent(body: bytes, case: str) -> Response:
    return Response(body, media_type=_MIME, headers={"content-disposition": f'attachment; filename="{case}.nii.gz"'})


def _parts(facts: dict, body: bytes, case: str) -> Response:
    """Parameters and mask as one multipart form, which MONAI Label's client takes apart."""
    border = secrets.token_hex(16)
    head = f'--{border}\r\nContent-Disposition: form-data; name="params"\r\nContent-Type: application/json\r\n\r\n{json.dumps(facts)}\r\n'
    file = f'--{border}\r\nContent-Disposition: form-data; name="file"; filename="{case}.nii.gz"\r\nContent-Type: {_MIME}\r\n\r\n'
    content = head.encode() + file.encode() + body + f"\r\n--{border}--\r\n".encode()
    return Response(content, media_type=f"multipart/form-data; boundary={border}")
