"""The annotator as an application: the REST surface (``rest_*``), MONAI Label's (``monai_*``) and the page over one project. Case ids are
opaque ('c3'); names are only ever shown."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import python_multipart  # noqa: F401 - FastAPI reads forms with it: better missed here than at the first upload
from fastapi import FastAPI

from .. import __version__
from ..core.errors import UsageError
from .events import Hub
from .jobs import Jobs
from .models import Models
from .monai_label import add_routes
from .rest_cases import add_cases
from .rest_errors import add_errors
from .rest_jobs import add_jobs
from .rest_masks import add_masks
from .rest_page import add_page, public
from .rest_project import add_project
from .rest_sessions import add_sessions
from .security import Gate, Guard, new_token
from .sessions import Sessions
from .store import Project
from .work import Desk

PAGE = Path(__file__).parent / "page"


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
    app.add_middleware(Gate, guard=guard, public=public(page))
    add_errors(app)
    add_project(app, desk, hub)
    add_cases(app, desk, hub)
    add_masks(app, desk, hub)
    add_sessions(app, desk)
    add_jobs(app, desk, jobs, hub)
    add_routes(app, desk, jobs, guard)
    add_page(app, guard, hub, page)
    return app
