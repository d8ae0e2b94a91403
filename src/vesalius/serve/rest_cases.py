"""Cases: their images, statuses and comments, and what can be measured on their versions."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, FastAPI, Header
from fastapi.responses import Response

from . import measure
from .events import Hub
from .records import Entry
from .rest import MASK, Given, User, send
from .store import Project
from .wire import encode
from .work import Desk


class NewStatus(Given):
    status: str


class NewComment(Given):
    text: str


def add_cases(app: FastAPI, desk: Desk, hub: Hub) -> None:
    project, routes = desk.project, APIRouter(tags=["Cases"])

    @routes.get("/api/cases", summary="All cases")
    def list_cases() -> list[dict]:
        return [_summary(project, e) for e in project.entries()]

    @routes.get("/api/cases/{case}", summary="One case with its grid, versions and comments")
    def show_case(case: str) -> dict:
        grid, entry = project.geometry(case), project.entry(case)
        versions = [asdict(v) for v in entry.versions]
        more = {"geometry": grid.to_json(), "versions": versions, "comments": list(entry.comments)}
        return _summary(project, entry) | more | {"reference": project.originals.brings_label(entry)}

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


def _summary(project: Project, entry: Entry) -> dict:
    grid = project.glance(entry)
    record = {"id": entry.id, "name": entry.name, "status": entry.status, "latest": entry.head, "updated": entry.updated}
    record |= {"priority": entry.priority, "channels": list(project.originals.channels(entry)), "dims": min(project.manifest.dims, 3)}
    return record | {"shape": list(grid.shape) if grid else None, "spacing": list(grid.spacing) if grid else None}
