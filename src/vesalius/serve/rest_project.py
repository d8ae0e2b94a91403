"""The project, its table of labels, and the case to open next."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, FastAPI, Header
from starlette.exceptions import HTTPException

from .. import __version__
from . import active
from .events import Hub
from .rest import User, table
from .store import STATUSES
from .work import Desk

Rows = Annotated[list[dict[str, Any]], Body(max_length=1000)]


def add_project(app: FastAPI, desk: Desk, hub: Hub) -> None:
    project, routes = desk.project, APIRouter(tags=["Project"])

    @routes.get("/api/project", summary="The project: labels, models, statuses and how many cases have which")
    def project_facts(user: User) -> dict:
        entries = project.entries()
        return {
            "id": project.id,
            "name": project.manifest.name,
            "version": __version__,
            "dims": min(project.manifest.dims, 3),
            **table(project.labels),
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
        saved = table(project.set_labels(labels, if_match.strip(' "')))
        hub.publish("labels", labels_version=saved["labels_version"])
        return saved

    @routes.get("/api/next", summary="The case to open next: by order, uncertainty or diversity")
    def next_case(strategy: str = "order") -> dict:
        return {"case": active.next_case(project.entries(), strategy, project.read, desk.pictures)}

    app.include_router(routes)
