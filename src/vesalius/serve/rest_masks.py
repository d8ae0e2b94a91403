"""Masks: versions as files, what is saved as a new one, and slices filled in."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, FastAPI, Header, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from . import measure
from .events import Hub
from .imports import read_mask
from .labels import values_of
from .records import Missing
from .rest import MASK, Given, Name, User, send
from .security import shown_name
from .sessions import Sessions
from .wire import decode_mask, encode, in_folder
from .work import Desk


class Interpolation(Given):
    label: str
    axis: Literal[0, 1, 2]
    version: str | None = None


def add_masks(app: FastAPI, desk: Desk, hub: Hub) -> None:
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
        return Response(encode(values_of(label, project.labels)[None], label.geometry), media_type=MASK)

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
