"""What the routes share: who asks, bodies without unknown fields, and answers that several of them give."""

from __future__ import annotations

import getpass
import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote

from fastapi import Depends, Header, Query
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, ConfigDict

from .labels import Label, labels_version
from .security import shown_name

MASK = "application/gzip"


class Given(BaseModel):
    """A body: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


def user_of(x_user: Annotated[str | None, Header()] = None) -> str:
    """Who works here: the header X-User (percent-encoded), else the account the server runs under."""
    return shown_name(unquote(x_user or "")) or _account()


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "someone"


User = Annotated[str, Depends(user_of)]
Name = Annotated[str, Query(max_length=300)]


def table(labels: Sequence[Label]) -> dict:
    """The labels with their table's version."""
    return {"labels": [asdict(x) for x in labels], "labels_version": labels_version(labels)}


def send(file: Path, known: str | None = None, name: str | None = None) -> Response:
    """A file of the project with its ETag, or 304."""
    stat = file.stat()
    tag = f'"{hashlib.sha256(f"{file.name}{stat.st_mtime_ns}{stat.st_size}".encode()).hexdigest()[:20]}"'
    headers = {"etag": tag, "cache-control": "private, no-cache"}
    if known is not None and tag in known:
        return Response(status_code=304, headers=headers)
    return FileResponse(file, media_type=MASK, headers=headers, filename=name)
