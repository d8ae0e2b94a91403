"""Background jobs: models run on cases, objects carried on, trainings and exports; how they get on, and their files."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, FastAPI
from fastapi.responses import Response
from pydantic import Field

from ..core.errors import UsageError
from .events import Hub
from .export import check_format
from .jobs import Job, Jobs
from .models import Model
from .records import Missing
from .rest import Given, User, send
from .sessions import check_window
from .wire import in_folder
from .work import Desk


class NewRun(Given):
    model: str


class Propagation(Given):
    object: str
    from_: int = Field(alias="from", ge=0)
    axis: Literal[0, 1, 2]
    version: str | None = None
    model: str = "lite-medsam"
    window: tuple[float, float] | None = None


class Training(Given):
    method: str = "unet"
    minutes: float | None = Field(None, gt=0, le=24 * 60)
    iterations: int | None = Field(None, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)


class Exporting(Given):
    format: str
    cases: list[str] | None = None
    status: str | None = None


def add_jobs(app: FastAPI, desk: Desk, jobs: Jobs, hub: Hub) -> None:
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
