"""What MONAI Label's clients send and are sent: forms whose header has a stale border, label values of their own, NIfTI and NRRD."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
from fastapi import Request
from fastapi.responses import Response
from isal import igzip
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from ..core.errors import DataError, UsageError
from ..core.geometry import Geometry
from .labels import Label
from .wire import encode, shown_affine

GZIP, BYTES = "application/gzip", "application/octet-stream"
_LONGEST_BORDER = 128


async def form_of(request: Request) -> FormData:
    """A multipart form by the border in its first line: the header of MONAI Label's client may still be that of another request."""
    stream, start = request.stream(), b""
    async for chunk in stream:
        start += chunk
        if b"\r\n" in start or len(start) > _LONGEST_BORDER:
            break
    line = start[:_LONGEST_BORDER].partition(b"\r\n")[0].decode("latin-1")

    async def whole() -> AsyncIterator[bytes]:
        yield start
        async for chunk in stream:
            yield chunk

    kind = f'multipart/form-data; boundary="{line[2:]}"' if line.startswith("--") else request.headers.get("content-type", "")
    try:
        return await MultiPartParser(Headers({"content-type": kind}), whole(), max_files=2, max_fields=16).parse()
    except (MultiPartException, KeyError) as error:
        raise DataError("the form cannot be read", allowed="multipart/form-data") from error


async def file_in(form: FormData, *names: str) -> bytes:
    """The first of the files that is there. Raises DataError."""
    for name in names:
        found = form.get(name)
        if isinstance(found, UploadFile):
            return await found.read()
    raise DataError("there is no file in the request", allowed=", ".join(names))


async def params_of(request: Request) -> dict:
    """The parameters of a form's field 'params', or of a body that is JSON."""
    kind = request.headers.get("content-type", "")
    if kind.startswith("multipart/"):
        return params_in(await form_of(request))
    if kind.startswith("application/x-www"):
        return params_in(await request.form(max_files=0, max_fields=16))
    given = _object((await request.body()).decode("utf-8", "replace") or "{}")
    return _object(given.get("params", given))


def params_in(form: FormData) -> dict:
    return _object(form.get("params", {}))


def _object(value: Any) -> dict:
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise UsageError("the parameters are no JSON") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError("the parameters are an object")
    return value


def with_our_values(mask: np.ndarray, named: Any, labels: Sequence[Label]) -> np.ndarray:
    """A mask whose values count a client's own segments, which ``named`` lists ('label_info': name and idx) -> the project's values, by
    name; as it is where nothing is listed. Raises DataError for segments that are no label of the project's."""
    listed = [row for row in named if isinstance(row, dict)] if isinstance(named, list) else []
    names = {row["idx"]: str(row.get("name")) for row in listed if isinstance(row.get("idx"), int) and 0 < row["idx"] < 65536}
    if not names:
        return mask
    known, there = {x.name: x.value for x in labels}, [v for v in np.unique(mask).tolist() if v]
    odd = [names.get(v, f"value {v}") for v in there if names.get(v) not in known]
    if odd:
        fix = "name the segments like the project's labels, or add these labels on the page"
        raise DataError("segments that are no label", found=", ".join(odd[:8]), allowed=", ".join(known), fix=fix)
    table = np.zeros(65536, np.uint16)
    for value in there:
        table[value] = known[names[value]]
    return table[mask]


def written(mask: np.ndarray, geometry: Geometry, params: dict) -> tuple[bytes, str, str]:
    """(a mask's file, its ending, its media type): NRRD where 'result_extension' asks for it, else NIfTI."""
    if params.get("result_extension") == ".nrrd":
        return nrrd(mask, geometry, params.get("result_compress") is not False), ".nrrd", BYTES
    return encode(mask[None], geometry), ".nii.gz", GZIP


def nrrd(mask: np.ndarray, geometry: Geometry, compressed: bool) -> bytes:
    """A mask as the volume that it travels as in NIfTI, as NRRD; one byte a voxel where the values fit, as OHIF's plugin takes them."""
    data = mask.astype(np.uint8 if mask.max() < 256 else "<u2")
    data = data.T[..., None] if geometry.ndim == 2 else data
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ shown_affine(geometry)
    vectors = ["(" + ",".join(f"{x:.12g}" for x in v) + ")" for v in affine[:3].T]
    raw = np.ascontiguousarray(data.transpose(2, 1, 0)).tobytes()
    head = ["NRRD0004", f"type: {data.dtype.name}", "dimension: 3", "space: left-posterior-superior"]
    head += [f"sizes: {' '.join(map(str, data.shape))}", f"space directions: {' '.join(vectors[:3])}", "kinds: domain domain domain"]
    head += ["endian: little", f"encoding: {'gzip' if compressed else 'raw'}", f"space origin: {vectors[3]}", "", ""]
    return "\n".join(head).encode() + (igzip.compress(raw, 1) if compressed else raw)


def sent(body: bytes, name: str, media: str) -> Response:
    return Response(body, media_type=media, headers={"content-disposition": f'attachment; filename="{name}"'})


def parts(facts: dict, body: bytes, name: str, media: str) -> Response:
    """Parameters and mask as one multipart form, which MONAI Label's client takes apart."""
    border = secrets.token_hex(16)
    head = f'--{border}\r\nContent-Disposition: form-data; name="params"\r\nContent-Type: application/json\r\n\r\n{json.dumps(facts)}\r\n'
    file = f'--{border}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: {media}\r\n\r\n'
    content = head.encode() + file.encode() + body + f"\r\n--{border}--\r\n".encode()
    return Response(content, media_type=f"multipart/form-data; boundary={border}")
