"""Sessions with promptable models."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, FastAPI
from pydantic import Field

from .rest import Given
from .sessions import prompts_from, state_of
from .work import Desk


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


def add_sessions(app: FastAPI, desk: Desk) -> None:
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
