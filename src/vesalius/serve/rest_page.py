"""The page: its files, the link that signs in, the events that keep it up to date, and the reference of the REST surface."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles

from .events import Hub
from .rest import Name, User
from .security import Guard, cookie_name, shown_name


def public(page: Path) -> tuple[str, ...]:
    """What the browser may fetch before it signed in: the page's own files."""
    names = [f"/{p.name}" for p in page.glob("*") if p.is_file()] if page.is_dir() else []
    return ("/assets/", *names)


def add_page(app: FastAPI, guard: Guard, hub: Hub, page: Path) -> None:
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
