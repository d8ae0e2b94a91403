"""MONAI Label's trainings: jobs of the project."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from ..core.errors import UsageError
from .jobs import Jobs
from .work import Desk

TRAINER = "unet"


class Anything(BaseModel):
    """Whatever a client sends; what is not understood is left aside, as MONAI Label does."""

    model_config = {"extra": "allow"}


def add_training(app: FastAPI, desk: Desk, jobs: Jobs) -> None:
    """Start, watch and stop trainings; there is one trainer that clients are offered, and 'all' of them is that one."""
    routes = APIRouter(tags=["MONAI Label"])

    @routes.post("/train/", summary="Train all there is to train, on the cases that are done", name="start_all_trainings")
    @routes.post("/train/{model}", summary="Train on the cases that are done")
    def start_training(model: str = TRAINER, given: Anything | None = None) -> dict:
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
        stopped = [jobs.cancel(j.id) for j in jobs.list() if j.kind == "train" and j.state in ("queued", "running")]
        return _training(stopped[-1].to_json()) if stopped else {}

    app.include_router(routes)


def _training(job: dict) -> dict:
    states = {"queued": "PENDING", "running": "RUNNING", "done": "DONE", "failed": "ERROR", "cancelled": "CANCELED"}
    return {"id": job["id"], "status": states[job["state"]], "details": [job["text"]], "progress": job["fraction"], "result": job["result"]}
