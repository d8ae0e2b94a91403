"""Errors are {"error": one sentence, "fix": what to do or null}: 400 what was sent is wrong, 401 no token, 403 another site or host, 404 an
unknown id, 408 too slow, 409 someone else saved first, 413 too large, 428 not said what is to be changed, 507 the disk is full."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ..core.errors import ResourceError, RunError, VesaliusError
from .jobs import sentence
from .labels import LabelsChanged
from .records import Conflict, Missing
from .rest import table
from .security import log


def add_errors(app: FastAPI) -> None:
    def refused(status: int, error: str, fix: str | None = None, **more: Any) -> JSONResponse:
        return JSONResponse({"error": error, "fix": fix, **more}, status)

    @app.exception_handler(VesaliusError)
    async def foreseen(_: Request, error: VesaliusError) -> JSONResponse:
        if isinstance(error, Conflict):
            return refused(409, sentence(error), error.fix, version=error.head, yours=error.yours)
        if isinstance(error, LabelsChanged):
            return refused(409, sentence(error), error.fix, **table(error.labels))
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
