"""MONAI Label's REST, as 3D Slicer's and OHIF's plugins and its own client class speak it, over the same project.

Images are the project's cases by their opaque ids, models the project's models; a saved label becomes a version of its case, made from the
one that the client was given. Signing in goes by ``/auth/token``: any user name, and the server's token as the password; or by
``Authorization: Bearer``. ``monai_forms`` takes apart what clients send, ``monai_answer`` answers it, ``monai_clients`` remembers them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from .. import __version__
from . import active
from .events import Hub
from .jobs import Jobs
from .monai_answer import answer
from .monai_clients import Clients, Uploads, who
from .monai_forms import GZIP, file_in, form_of, params_in, params_of, parts, sent, with_our_values, written
from .monai_training import TRAINER, Anything, add_training
from .records import Conflict
from .security import LOCAL, Guard
from .wire import decode_mask, encode
from .work import Desk

_USER = "MONAI Label client"


def add_routes(app: FastAPI, desk: Desk, jobs: Jobs, guard: Guard) -> None:
    """Add the surface to the annotator's application, whose ``state.hub`` tells the pages what clients did."""
    hub, clients, uploads = app.state.hub, Clients(desk.project), Uploads(desk.project)
    _add_facts(app, desk, guard)
    _add_datastore(app, desk, hub, clients)
    _add_answers(app, desk, clients, uploads)
    add_training(app, desk, jobs)


def _add_facts(app: FastAPI, desk: Desk, guard: Guard) -> None:
    project, models, routes = desk.project, desk.models, APIRouter(tags=["MONAI Label"])

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
                "type": "deepgrow" if m.kinds else "segmentation",  # 'deepedit' with labels has no negative clicks in Slicer
                "labels": [] if m.kinds else labels,
                "dimension": max(m.dims),
                "description": m.title,
                "config": {},
            }
            for m in models.list()
            if not m.listens and not m.carries
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
            "trainers": {TRAINER: {"description": "U-Net trained on the cases that are done", "config": {"minutes": 10}}},
            "strategies": strategies,
            "scoring": {},
            "train_stats": {},
            "datastore": {"total": len(entries), "completed": saved},
            "config": {},
        }

    app.include_router(routes)


def _add_datastore(app: FastAPI, desk: Desk, hub: Hub, clients: Clients) -> None:
    project, routes = desk.project, APIRouter(tags=["MONAI Label"])

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
    def datastore_image(request: Request, image: str) -> Response:
        case = clients.case_of(image, who(request))
        return FileResponse(_image(desk, case), media_type=GZIP, filename=f"{case}.nii.gz")

    @routes.get("/datastore/image/info", summary="An image's name and status")
    def datastore_image_info(request: Request, image: str) -> dict:
        entry = project.entry(clients.case_of(image, who(request)))
        return {"name": entry.id, "status": entry.status}

    @routes.put("/datastore/", summary="A new case from an uploaded NIfTI; the case that there is for the same image under the same name")
    async def datastore_add_image(request: Request, image: str = "") -> dict:
        form = await form_of(request)
        content, client = await file_in(form, "file", "files"), who(request, params_in(form).get("client_id"))
        case, new = await run_in_threadpool(clients.bring, client, image, content)
        entry = project.entry(case)
        if new:
            hub.publish("status", case=case, status=entry.status)
        return {"image": case, "name": entry.name}

    @routes.get("/datastore/label", summary="An image's newest label, as NIfTI")
    def datastore_label(request: Request, label: str, tag: str = "final") -> Response:
        client = who(request)
        case = clients.case_of(label, client)
        head = project.entry(case).head
        body = encode(project.mask(case, head)[None], project.geometry(case))
        clients.gave(client, case, head)
        return sent(body, f"{case}.nii.gz", GZIP)

    @routes.put("/datastore/label", summary="Save a label as a new version; 409 where someone else saved first")
    async def datastore_save_label(request: Request, image: str, tag: str = "final") -> dict:
        form = await form_of(request)
        content, params = await file_in(form, "label", "file"), params_in(form)
        client = who(request, params.get("client_id"))

        def save() -> tuple[str, str]:
            case, user = clients.case_of(image, client), client[1] or _USER
            mask = decode_mask(content, project.geometry(case), project.folder / "uploads")
            mask = with_our_values(mask, params.get("label_info"), project.labels)
            origin, parent = {"kind": "manual", "client": "monai label"}, clients.parent(client, case)
            try:
                version = project.save(case, mask, parent, user=user, origin=origin, note=tag[:100]).id
            except Conflict as beside:
                clients.gave(client, case, beside.head)  # it is told of that one now: what it saves next goes on top
                hub.publish("version", case=case, version=beside.yours, user=user)
                raise
            clients.gave(client, case, version)
            hub.publish("version", case=case, version=version, user=user)
            return case, version

        case, version = await run_in_threadpool(save)
        return {"image": image, "label": case, "tag": tag, "version": version}

    app.include_router(routes)


def _add_answers(app: FastAPI, desk: Desk, clients: Clients, uploads: Uploads) -> None:
    project, routes = desk.project, APIRouter(tags=["MONAI Label"])

    @routes.put("/session/", summary="A session that brings its own image")
    async def upload_session(request: Request) -> dict:
        content = await file_in(await form_of(request), "files", "file")
        session = await run_in_threadpool(uploads.add, content)
        return {"session_id": session, "session_info": {"name": session}}

    @routes.get("/session/{session}", summary="Whether such a session is there")
    def upload_session_state(session: str) -> dict:
        uploads.file(session)
        return {"name": session}

    @routes.delete("/session/{session}", summary="End such a session; its image goes")
    def end_upload_session(session: str) -> dict:
        uploads.end(session)
        return {}

    @routes.post("/infer/{model}", summary="A model's answer for an image, to clicks or a box where it takes them")
    async def infer_image(request: Request, model: str, image: str = "", session_id: str = "", output: str = "all") -> Response:
        params = await params_of(request)

        def work() -> Response:
            if session_id:
                key, shown = session_id, uploads.read(session_id)
            else:
                client = who(request, params.get("client_id"))
                key = clients.case_of(image, client)
                clients.gave(client, key, project.entry(key).head, anew=False)
                shown = project.read(key)
            mask, facts = answer(desk, key, shown, model, params)
            if output == "json":
                return JSONResponse(facts)
            body, ending, media = written(mask, shown.geometry, params)
            return sent(body, key + ending, media) if output == "image" else parts(facts, body, key + ending, media)

        return await run_in_threadpool(work)

    @routes.post("/activelearning/{strategy}", summary="The image to label next")
    def next_sample(request: Request, strategy: str, given: Anything | None = None) -> dict:
        chosen = active.next_case(project.entries(), strategy if strategy in active.STRATEGIES else "order", project.read, desk.pictures)
        if chosen is None:
            return {}
        clients.offer(who(request, (given.model_extra or {}).get("client_id") if given else None), chosen)
        sample = {"id": chosen, "name": f"{chosen}.nii.gz", "strategy": strategy, "ext": ".nii.gz"}
        here = request.client is not None and request.client.host in LOCAL  # Slicer fetches images without the token: it opens the file
        return sample | ({"path": str(_image(desk, chosen).resolve())} if here else {})

    app.include_router(routes)


def _image(desk: Desk, case: str) -> Path:
    return desk.images.whole(case, desk.project.originals.channels(desk.project.entry(case))[0])


def _tags(head: str | None) -> dict:
    return {} if head is None else {"final": {"ext": ".nii.gz", "info": {"version": head}}}
