"""The REST surface of the annotator, and the page. ``create_app(project)`` for tests and servers of one's own; ``serve`` for the command.

Errors are {"error": one sentence, "fix": what to do or null}: 400 what was sent is wrong, 401 no token, 403 another site or host, 404 an
unknown id, 408 too slow, 409 someone else saved first, 413 too large, 428 not said what is to be changed, 507 the disk is full. Case ids
are opaque ('c3'); names are only ever shown.
"""

from __future__ import annotations

import errno
import getpass
import hashlib
import html
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote

import numpy as np
import python_multipart  # noqa: F401 - FastAPI reads forms with it: better missed here than at the first upload
import uvicorn
from fastapi import APIRouter, Body, Depends, FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from .. import __version__
from ..core.errors import ResourceError, RunError, UsageError, VesaliusError
from ..engine.record import Lock
from . import active, measure
from .events import Hub
from .export import check_format
from .imports import read_mask
from .jobs import Job, Jobs, sentence
from .models import Model, Models, add_model, checked_model, checkpoint_of
from .monai_label import add_routes
from .patience import Impatient
from .security import LOCAL, Gate, Guard, cookie_name, log, new_token, shown_name
from .sessions import Sessions, check_window, prompts_from, state_of
from .store import STATUSES, Conflict, Entry, Label, LabelsChanged, Missing, Project, labels_version, manifest_of
from .wire import decode_mask, encode, in_folder
from .work import Desk

PAGE = Path(__file__).parent / "page"
MASK = "application/gzip"


class Given(BaseModel):
    """A body: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class Slice(Given):
    axis: Literal[0, 1, 2]
    index: int = Field(ge=0)


class NewSession(Given):
    case: str
    model: str
    window: tuple[float, float] | None = None
    slice: Slice | None = None


class Asking(Given):
    object: str = Field("", max_length=100)
    label: str = Field("", max_length=100)
    prompts: list[dict[str, Any]] = Field(min_length=1, max_length=256)
    slice: Slice | None = None


class NewStatus(Given):
    status: str


class NewComment(Given):
    text: str


class NewRun(Given):
    model: str


class Propagation(Given):
    object: str
    from_: int = Field(alias="from", ge=0)
    axis: Literal[0, 1, 2]
    version: str | None = None
    model: str = "lite-medsam"
    window: tuple[float, float] | None = None


class Interpolation(Given):
    label: str
    axis: Literal[0, 1, 2]
    version: str | None = None


class Training(Given):
    method: str = "unet"
    minutes: float | None = Field(None, gt=0, le=24 * 60)
    iterations: int | None = Field(None, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)


class Exporting(Given):
    format: str
    cases: list[str] | None = None
    status: str | None = None


def user_of(x_user: Annotated[str | None, Header()] = None) -> str:
    """Who works here: the header X-User (percent-encoded), else the account the server runs under."""
    return shown_name(unquote(x_user or "")) or _account()


User = Annotated[str, Depends(user_of)]


Rows = Annotated[list[dict[str, Any]], Body(max_length=1000)]
Name = Annotated[str, Query(max_length=300)]


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "someone"


def create_app(
    project: Project,
    *,
    guard: Guard | None = None,
    models: Models | None = None,
    page: Path = PAGE,
) -> FastAPI:
    """The application for an open project. ``guard`` holds the token (None: a new one); ``page`` is the built page's folder."""
    guard, models, hub = guard or Guard(new_token()), models or Models(project), Hub()
    sessions = Sessions(project, models)
    jobs = Jobs(lambda job: hub.publish("job", **job.to_json()))
    desk = Desk(project, models, sessions)

    def score_with(model: str) -> None:
        with suppress(UsageError):  # too many jobs wait: the order of the cases is not worth more
            jobs.start("score", lambda job: desk.score(job, model))

    desk.trained = score_with

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        jobs.close()
        sessions.close()

    app = FastAPI(
        title="Vesalius annotator",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.guard, app.state.desk, app.state.jobs, app.state.hub = guard, desk, jobs, hub
    app.add_middleware(Gate, guard=guard, public=_public(page))
    _add_errors(app)
    _add_project(app, desk, hub)
    _add_cases(app, desk, hub)
    _add_masks(app, desk, hub)
    _add_sessions(app, desk)
    _add_jobs(app, desk, jobs, hub)
    add_routes(app, desk, jobs, guard)
    _add_page(app, guard, hub, page)
    return app


def _public(page: Path) -> tuple[str, ...]:
    """What the browser may fetch before it signed in: the page's own files."""
    names = [f"/{p.name}" for p in page.glob("*") if p.is_file()] if page.is_dir() else []
    return ("/assets/", *names)


# ----------------------------------------------------------------------------------------------------------------------------- errors
def _add_errors(app: FastAPI) -> None:
    def refused(status: int, error: str, fix: str | None = None, **more: Any) -> JSONResponse:
        return JSONResponse({"error": error, "fix": fix, **more}, status)

    @app.exception_handler(VesaliusError)
    async def foreseen(_: Request, error: VesaliusError) -> JSONResponse:
        if isinstance(error, Conflict):
            return refused(409, sentence(error), error.fix, version=error.head, yours=error.yours)
        if isinstance(error, LabelsChanged):
            return refused(409, sentence(error), error.fix, **_table(error.labels))
        kinds = ((Missing, 404), (ResourceError, 507), (RunError, 409))
        return refused(next((status for kind, status in kinds if isinstance(error, kind)), 400), sentence(error), error.fix)

    @app.exception_handler(RequestValidationError)
    async def not_understood(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"] if p != "body")
        return refused(400, f"What was sent is not understood: {where[:80]}: {first['msg']}.")

    @app.exception_handler(HTTPException)
    async def no_such_route(_: Request, error: HTTPException) -> JSONResponse:
        return refused(error.status_code, f"{error.detail}.")

    @app.exception_handler(MemoryError)
    async def no_memory(_: Request, error: MemoryError) -> JSONResponse:
        return refused(507, "There is not enough memory for this.", "close other programs, or use a smaller image")

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> JSONResponse:
        log.error("a request failed: %s", type(error).__name__)
        return refused(500, f"This should not have happened: {type(error).__name__}.", "try again, and please report it")


# ---------------------------------------------------------------------------------------------------------------------------- project
def _add_project(app: FastAPI, desk: Desk, hub: Hub) -> None:
    project, routes = desk.project, APIRouter(tags=["Project"])

    @routes.get("/api/project", summary="The project: labels, models, statuses and how many cases have which")
    def project_facts(user: User) -> dict:
        entries = project.entries()
        return {
            "id": project.id,
            "name": project.manifest.name,
            "version": __version__,
            "dims": min(project.manifest.dims, 3),
            **_table(project.labels),
            "models": [m.to_json() for m in desk.models.list()],
            "statuses": STATUSES,
            "user": user,
            "cases": len(entries),
            "counts": {s: sum(e.status == s for e in entries) for s in STATUSES},
        }

    @routes.put("/api/labels", summary="Replace the table of labels")
    def set_labels(labels: Rows, if_match: Annotated[str | None, Header()] = None) -> dict:
        if if_match is None:
            raise HTTPException(428, "Say which table you change: its labels_version in the header If-Match")
        saved = _table(project.set_labels(labels, if_match.strip(' "')))
        hub.publish("labels", labels_version=saved["labels_version"])
        return saved

    @routes.get("/api/next", summary="The case to open next: by order, uncertainty or diversity")
    def next_case(strategy: str = "order") -> dict:
        return {"case": active.next_case(project.entries(), strategy, project.read, desk.pictures)}

    app.include_router(routes)


def _table(labels: Sequence[Label]) -> dict:
    return {"labels": [asdict(x) for x in labels], "labels_version": labels_version(labels)}


def _summary(desk: Desk, entry: Entry) -> dict:
    grid = desk.project.glance(entry)
    record = {"id": entry.id, "name": entry.name, "status": entry.status, "latest": entry.head, "updated": entry.updated}
    record |= {"priority": entry.priority, "channels": list(desk.project.channels(entry)), "dims": min(desk.project.manifest.dims, 3)}
    return record | {"shape": list(grid.shape) if grid else None, "spacing": list(grid.spacing) if grid else None}


# ------------------------------------------------------------------------------------------------------------------------------ cases
def _add_cases(app: FastAPI, desk: Desk, hub: Hub) -> None:
    project, routes = desk.project, APIRouter(tags=["Cases"])

    @routes.get("/api/cases", summary="All cases")
    def list_cases() -> list[dict]:
        return [_summary(desk, e) for e in project.entries()]

    @routes.get("/api/cases/{case}", summary="One case with its grid, versions and comments")
    def show_case(case: str) -> dict:
        grid, entry = project.geometry(case), project.entry(case)
        versions = [asdict(v) for v in entry.versions]
        more = {"geometry": grid.to_json(), "versions": versions, "comments": list(entry.comments)}
        return _summary(desk, entry) | more | {"reference": project.brings_label(entry)}

    @routes.get("/api/cases/{case}/image/{channel}", summary="An image on its own grid, as NIfTI")
    def case_image(case: str, channel: str, if_none_match: Annotated[str | None, Header()] = None) -> Response:
        return send(desk.images.whole(case, channel), if_none_match)

    @routes.get("/api/cases/{case}/image/{channel}/coarse", summary="Every n-th voxel of an image, n an axis in X-Every: sooner there")
    def coarse_image(case: str, channel: str, if_none_match: Annotated[str | None, Header()] = None) -> Response:
        file, every = desk.images.coarse(case, channel)
        answer = send(file, if_none_match)
        answer.headers["X-Every"] = ",".join(map(str, every))
        return answer

    @routes.put("/api/cases/{case}/status", summary="Mark a case as todo, draft, done or reviewed")
    def set_status(case: str, given: NewStatus) -> dict:
        project.set_status(case, given.status)
        hub.publish("status", case=case, status=given.status)
        return {"status": given.status}

    @routes.post("/api/cases/{case}/comments", summary="Comment on a case", status_code=201)
    def add_comment(case: str, given: NewComment, user: User) -> list[dict]:
        project.comment(case, user, given.text)
        return list(project.entry(case).comments)

    @routes.get("/api/cases/{case}/measure", summary="Volume, axes and components of every structure of a version")
    def measure_case(case: str, version: str | None = None) -> list[dict]:
        return measure.measure(project.label_map(case, version))

    @routes.get("/api/cases/{case}/compare", summary="DSC, HD95 and volumes of two versions")
    def compare_versions(case: str, a: str, b: str) -> list[dict]:
        return measure.compare(project.label_map(case, a), project.label_map(case, b))

    @routes.get("/api/cases/{case}/compare/map", summary="Where two versions differ, as NIfTI: 1 only the first, 2 only the second, 3 both")
    def difference_map(case: str, a: str, b: str, label: str | None = None) -> Response:
        value = None if label is None else desk.value_of(label)
        shown = measure.difference(project.mask(case, a), project.mask(case, b), value)
        return Response(encode(shown[None], project.geometry(case)), media_type=MASK)

    app.include_router(routes)


def send(file: Path, known: str | None = None, name: str | None = None) -> Response:
    """A file of the project with its ETag, or 304."""
    stat = file.stat()
    tag = f'"{hashlib.sha256(f"{file.name}{stat.st_mtime_ns}{stat.st_size}".encode()).hexdigest()[:20]}"'
    headers = {"etag": tag, "cache-control": "private, no-cache"}
    if known is not None and tag in known:
        return Response(status_code=304, headers=headers)
    return FileResponse(file, media_type=MASK, headers=headers, filename=name)


# ------------------------------------------------------------------------------------------------------------------------------ masks
def _add_masks(app: FastAPI, desk: Desk, hub: Hub) -> None:
    project, routes = desk.project, APIRouter(tags=["Masks"])

    @routes.get("/api/cases/{case}/label", summary="A version's label values, as NIfTI")
    def case_label(case: str, version: str | None = None, if_none_match: Annotated[str | None, Header()] = None) -> Response:
        file = project.mask_path(case, version)
        if project.geometry(case).ndim == 3:
            return send(in_folder(file, project.folder), if_none_match)
        return Response(encode(project.mask(case, version)[None], project.geometry(case)), media_type=MASK)

    @routes.get("/api/cases/{case}/uncertainty", summary="How unsure the model was that a version began with, in percent, as NIfTI")
    def case_uncertainty(case: str, version: str | None = None, if_none_match: Annotated[str | None, Header()] = None) -> Response:
        return send(in_folder(project.doubt_path(case, version), project.folder), if_none_match)

    @routes.put("/api/cases/{case}/label", summary="Save a mask as a new version; 409 where someone else saved first", status_code=201)
    async def save_label(request: Request, case: str, parent: str, user: User, note: str = "") -> dict:
        body = await request.body()
        shape, kind = request.headers.get("x-shape", ""), request.headers.get("x-dtype", "")

        def save() -> str:
            mask = decode_mask(body, project.geometry(case), project.folder / "uploads", shape, kind)
            origin = _origin(request, desk.sessions, case)
            return project.save(case, mask, None if parent == "none" else parent, user=user, origin=origin, note=note[:200]).id

        version = await run_in_threadpool(save)
        hub.publish("version", case=case, version=version, user=user)
        return {"version": version}

    @routes.post(
        "/api/cases/{case}/mask-file", summary="Save a NIfTI or PNG label map as a new version, on the image's grid", status_code=201
    )
    async def import_mask(request: Request, case: str, parent: str, user: User, name: Name) -> dict:
        body = await request.body()

        def save() -> str:
            mask, named = read_mask(body, name, project.geometry(case), project.folder / "uploads"), shown_name(name)
            origin = {"kind": "file", "file": named}
            return project.save(case, mask, None if parent == "none" else parent, user=user, origin=origin, note=f"from file {named}").id

        version = await run_in_threadpool(save)
        hub.publish("version", case=case, version=version, user=user)
        return {"version": version}

    @routes.get("/api/cases/{case}/reference", summary="The label that the data set brings, as NIfTI")
    def case_reference(case: str) -> Response:
        label = project.reference(case)
        if label is None:
            raise Missing("the data set brings no label for this case that the project's labels can show")
        return Response(encode(project.to_values(label)[None], label.geometry), media_type=MASK)

    @routes.post("/api/cases/{case}/interpolate", summary="Fill the slices between drawn ones, as a new version", status_code=201)
    def interpolate_slices(case: str, given: Interpolation, user: User) -> dict:
        mask, value = project.mask(case, given.version), desk.value_of(given.label)
        filled = measure.interpolate(mask == value, given.axis, project.geometry(case).spacing)
        new = np.where(filled & (mask == 0), value, mask)
        parent = given.version or project.entry(case).head
        version = project.save(case, new, parent, user=user, origin={"kind": "interpolated", "axis": given.axis}).id
        hub.publish("version", case=case, version=version, user=user)
        return {"version": version}

    app.include_router(routes)


def _origin(request: Request, sessions: Sessions, case: str) -> dict[str, Any]:
    """What the page says a mask came from, in the headers X-Origin-Kind, X-Origin-Model and X-Session: the prompts are those that the
    session was told, or where it is known no more their number, in X-Origin-Prompts."""
    given = {k: request.headers.get(f"x-origin-{k}", "")[:60] for k in ("kind", "model", "prompts")}
    kind = given["kind"] if given["kind"] in ("manual", "model", "prompts", "interpolated", "propagated") else "manual"
    origin: dict[str, Any] = {"kind": kind} | ({"model": given["model"]} if given["model"] else {})
    said = sessions.prompts_of(request.headers.get("x-session", ""), case)
    return origin | ({"prompts": said} if said else {"prompts": int(given["prompts"])} if given["prompts"].isdecimal() else {})


# --------------------------------------------------------------------------------------------------------------------------- sessions
def _add_sessions(app: FastAPI, desk: Desk) -> None:
    sessions, routes = desk.sessions, APIRouter(tags=["Sessions"])

    @routes.post(
        "/api/sessions", summary="Start a session with a promptable model; its image is embedded in the background", status_code=201
    )
    def start_session(given: NewSession) -> dict:
        key = (given.slice.axis, given.slice.index) if given.slice else None
        session = sessions.start(given.case, given.model, window=given.window, slice=key)
        return {"session": session.id, "kinds": list(desk.models.get(given.model).kinds), "sliced": session.sliced}

    @routes.get("/api/sessions/{session}", summary="Whether a session is ready")
    def session_state(session: str) -> dict:
        return state_of(sessions.get(session))

    @routes.post("/api/sessions/{session}/prompts", summary="Answer to clicks, boxes, scribbles, lassos and masks with an object's mask")
    def ask_session(session: str, given: Asking) -> dict:
        found = sessions.get(session)
        key = (given.slice.axis, given.slice.index) if given.slice else None
        return found.ask(given.object, prompts_from(given.prompts, found.case.geometry), key, given.label)

    @routes.post("/api/sessions/{session}/undo", summary="Take the last prompts back")
    def undo_prompts(session: str) -> dict:
        return {"objects": sessions.get(session).undo()}

    @routes.post("/api/sessions/{session}/redo", summary="Give the prompts again that were taken back")
    def redo_prompts(session: str) -> dict:
        return {"objects": sessions.get(session).redo()}

    @routes.delete("/api/sessions/{session}", summary="End a session", status_code=204)
    def end_session(session: str) -> None:
        sessions.end(session)

    app.include_router(routes)


# ------------------------------------------------------------------------------------------------------------------------------- jobs
def _add_jobs(app: FastAPI, desk: Desk, jobs: Jobs, hub: Hub) -> None:
    project, routes = desk.project, APIRouter(tags=["Jobs"])

    def told(job: Job, case: str, user: str, result: dict) -> dict:
        hub.publish("version", case=case, version=result["version"], user=user)
        return result

    @routes.post("/api/cases/{case}/run", summary="Run a model on a case: a new version, as a job", status_code=202)
    def run_model(case: str, given: NewRun, user: User) -> dict:
        project.entry(case)
        model: Model = desk.models.get(given.model)
        if model.kinds:
            raise UsageError("this model answers to prompts", found=model.id, fix="start a session with it")
        return {"job": jobs.start("run", lambda job: told(job, case, user, desk.run(job, case, model.id, user))).id}

    @routes.post("/api/cases/{case}/propagate", summary="Carry an object from one slice through the others, as a job", status_code=202)
    def propagate_object(case: str, given: Propagation, user: User) -> dict:
        project.mask_path(case, given.version)
        desk.value_of(given.object)
        desk.models.get(given.model)
        check_window(given.window)

        def work(job: Job) -> dict:
            done = desk.propagate(job, case, given.model, given.object, given.version, given.from_, given.axis, user, given.window)
            return told(job, case, user, done)

        return {"job": jobs.start("propagate", work).id}

    @routes.post("/api/train", summary="Train on the cases that are done, as a job", status_code=202)
    def train_model(given: Training) -> dict:
        from .. import catalog

        catalog.coerce(given.method, given.options)  # refuse what cannot be before anything is written
        return {"job": jobs.start("train", lambda job: desk.train(job, given.method, given.minutes, given.iterations, given.options)).id}

    @routes.post("/api/export", summary="Write saved masks as files of other programs, as a job", status_code=202)
    def export_masks(given: Exporting) -> dict:
        check_format(given.format)
        chosen = [project.entry(c) for c in given.cases] if given.cases is not None else project.entries()
        chosen = [e for e in chosen if given.status in (None, e.status)]
        return {"job": jobs.start("export", lambda job: desk.export(job, given.format, chosen)).id}

    @routes.get("/api/jobs", summary="All jobs, the newest first")
    def list_jobs() -> list[dict]:
        return [job.to_json() for job in jobs.list()]

    @routes.get("/api/jobs/{job}", summary="One job")
    def show_job(job: str) -> dict:
        return jobs.get(job).to_json()

    @routes.delete("/api/jobs/{job}", summary="Stop a job")
    def cancel_job(job: str) -> dict:
        return jobs.cancel(job).to_json()

    @routes.get("/api/jobs/{job}/file", summary="What an export wrote, as a zip")
    def job_file(job: str) -> Response:
        found = jobs.get(job)
        if found.file is None or not found.file.exists():
            raise Missing("this job has no file")
        return send(in_folder(found.file, project.folder), name=f"vesalius-{found.kind}.zip")

    app.include_router(routes)


# ------------------------------------------------------------------------------------------------------------------------------- page
def _add_page(app: FastAPI, guard: Guard, hub: Hub, page: Path) -> None:
    @app.get("/open", include_in_schema=False)
    def sign_in_by_link(request: Request, token: Annotated[str, Query(max_length=200)] = "") -> Response:
        if not guard.accepts(token):
            return JSONResponse({"error": "sign in with the link that was printed", "fix": None}, guard.refused())
        answer = RedirectResponse("/", 303, headers={"cache-control": "no-store"})
        answer.set_cookie(cookie_name(request.headers.get("host", "")), guard.cookie, httponly=True, samesite="strict", path="/")
        return answer

    @app.get("/api/events", tags=["Project"], summary="What changes, as server-sent events")
    async def stream_events(account: User, user: Name = "", tab: Name = "") -> StreamingResponse:
        told = hub.stream(shown_name(user) or account, tab)
        return StreamingResponse(told, media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    @app.get("/docs", include_in_schema=False)
    def rest_reference() -> HTMLResponse:
        return HTMLResponse(_reference(app.openapi()))

    if (page / "index.html").exists():
        app.mount("/", StaticFiles(directory=page, html=True, follow_symlink=False), name="page")
    else:

        @app.get("/", include_in_schema=False)
        def no_page() -> HTMLResponse:
            return HTMLResponse("<!doctype html><title>Vesalius</title><p>The page was not built: run <code>make setup</code>.</p>")


def _reference(schema: Mapping[str, Any]) -> str:
    """The OpenAPI description as one plain page, by tags; /openapi.json is the same for programs."""
    groups: dict[str, list[str]] = {}
    for path, verbs in schema["paths"].items():
        for verb, what in verbs.items():
            given = ", ".join(p["name"] for p in what.get("parameters", ()) if p["in"] != "header")
            body = next(iter(what.get("requestBody", {}).get("content", {}).values()), {}).get("schema", {}).get("$ref", "")
            takes = ", ".join(x for x in (given, body.rpartition("/")[2]) if x)
            cells = (verb.upper(), f"<code>{html.escape(path)}</code>", html.escape(what["summary"]), html.escape(takes))
            groups.setdefault(what["tags"][0], []).append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    tables = "".join(f"<h2>{html.escape(tag)}</h2><table>{''.join(rows)}</table>" for tag, rows in groups.items())
    link = "<p>For programs: <a href='/openapi.json'>openapi.json</a></p>"
    return f"<!doctype html><html lang='en'><title>Vesalius annotator: REST</title><h1>REST</h1>{link}{tables}</html>"


# ------------------------------------------------------------------------------------------------------------------------------ serving
def serve(
    data: str | Path | Sequence[str | Path],
    *,
    project: Path | None = None,
    model: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8421,
    show: bool = False,
    page: Path = PAGE,
) -> Path:
    """Open ``data`` in a project folder (None: ``vesalius-project`` here) and serve it until Ctrl-C or SIGTERM; the folder.

    Prints the link with the token once; ``show``: in a browser too. ``port`` 0: any free one. Raises UsageError (model, host, port, another
    data's project), DataError (the data), RunError (another annotator holds the project), ResourceError (the folder cannot be written)."""
    given = checkpoint_of(model) if model is not None else None
    if model is not None and given is None:
        checked_model(model)
    manifest, folder, hosts = manifest_of(data), Path(project or "vesalius-project"), _hosts(host)
    guard = Guard(new_token(), LOCAL | set(hosts))
    with _listening(host, port) as listener, _held(folder), closing(Project(folder, manifest)) as opened:
        first = given.id if given else add_model(opened, model) if model is not None else ""
        shown = f"[{hosts[0]}]" if ":" in hosts[0] else hosts[0]
        link = f"http://{shown}:{listener.getsockname()[1]}/open?token={quote(guard.token, safe='')}"
        print(f"{manifest.name}: {len(manifest)} cases in the project {folder}. Open {link}", flush=True)
        if host not in LOCAL:
            print("note: whoever reaches this machine and has the link may work here; the way there is not encrypted", file=sys.stderr)
        if not (page / "index.html").exists():
            print("note: the page is not built (REST and 3D Slicer's plugin work); build it: make setup", file=sys.stderr)
        limits = {"limit_concurrency": 128, "timeout_keep_alive": 10, "h11_max_incomplete_event_size": 65536}
        app = create_app(opened, guard=guard, models=Models(opened, given=given, first=first), page=page)
        level = "error" if os.environ.get("VESALIUS_DEBUG") else "critical"
        config = uvicorn.Config(app, access_log=False, log_level=level, timeout_graceful_shutdown=3, http=Impatient, **limits)
        with _shown(link, folder) if show else nullcontext(), suppress(KeyboardInterrupt):  # uvicorn hands it on when it has closed all
            _Server(config).run(sockets=[listener])
    return folder


class _Server(uvicorn.Server):
    """Ends the pages' event streams first, which would stay open for ever."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.app.state.hub.close()
        await super().shutdown(sockets)


def _hosts(host: str) -> list[str]:
    """The names that a server bound to ``host`` goes by, the one to show first: of all addresses, this machine's name and addresses."""
    if host not in ("0.0.0.0", "::", ""):
        return [host.lower()]
    name = socket.gethostname().lower()
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(name, None)}
    except OSError:
        found = set()
    return [name, *sorted(found)]


def _listening(host: str, port: int) -> socket.socket:
    """A socket at which browsers can already knock."""
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else small answers wait 40 ms; asyncio sets it only on its own
        return listener
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            what = "the port is in use" if error.errno == errno.EADDRINUSE else "you may not use this port"
            fix = "stop what holds it, or choose another --port; 0 takes any free one"
            raise UsageError(what, where="--port", found=port, fix=fix) from error
        raise UsageError("this is no address of this machine", where="--host", found=host, allowed="127.0.0.1, 0.0.0.0 (all)") from error


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The project folder for this process alone."""
    lock = Lock(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.__enter__()
    except OSError as error:
        raise ResourceError("the project folder cannot be written", where=folder, found=error.strerror, fix="choose --project") from error
    except RunError as error:
        fix = "open its link, or choose another --project"
        raise RunError("another annotator has this project open", where=folder, found=error.found, fix=fix) from error
    try:
        yield
    finally:
        lock.__exit__()


@contextmanager
def _shown(link: str, folder: Path) -> Iterator[None]:
    """The link in a browser, by a file that only this user can read: the token is on no command line. The file goes in the end."""
    import webbrowser

    way = folder.resolve() / "open.html"
    with suppress(OSError):
        way.unlink(missing_ok=True)
        with open(os.open(way, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(f'<!doctype html><meta http-equiv="refresh" content="0;url={html.escape(link)}">')
        threading.Thread(target=webbrowser.open, args=(way.as_uri(),), daemon=True).start()
    try:
        yield
    finally:
        way.unlink(missing_ok=True)
