"""A model's answer to what MONAI Label's clients send: clicks as voxel indices of the image ('foreground', 'background', a label's name), a
box as 'roi' [low i, high i, low j, high j, ...]."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np

from ..core.case import Case
from ..core.errors import UsageError
from ..core.geometry import Geometry, coarsest
from ..core.prompt import Box, Point, Prompt
from ..engine.infer import infer
from .labels import values_of
from .sessions import Prompted
from .work import Desk


def answer(desk: Desk, key: str, image: Case, model: str, params: dict) -> tuple[np.ndarray, dict]:
    """(label values (*spatial), the names and values of the structures that are in it): the model's own answer, or that to the clicks and
    the box in ``params``. ``key`` names the image: what the model made of it is kept by that."""
    known, names = desk.models.get(model), {x.name: x.value for x in desk.project.labels}
    if known.carries or known.listens:
        raise UsageError("this model answers neither by itself nor to clicks or a box", found=model, fix="ask one that /info/ lists")
    if known.kinds:
        wanted = params.get("label")
        name = wanted if isinstance(wanted, str) and wanted in names else next(iter(names))
        return _to_prompts(desk, key, image, model, params, name, names[name]), {"label_names": {name: names[name]}}
    loaded = desk.models.load(model, image)
    mask = values_of(infer(loaded.method, image, loaded.plan).label, desk.project.labels)
    there = set(np.unique(mask).tolist())
    return mask, {"label_names": {name: value for name, value in names.items() if value in there}}  # the client counts them


def _to_prompts(desk: Desk, key: str, image: Case, model: str, params: dict, name: str, value: int) -> np.ndarray:
    prompts = _prompts(params, name, image.geometry)
    session = Prompted(secrets.token_hex(8), image, key, model, desk.models.load(model, image), None, desk.sessions.cache)
    out = np.zeros(image.geometry.shape, np.uint16)
    for where, group in _by_slice(prompts, session.sliced, image.geometry).items():
        session.ask(name, group, where)
        plane, view = session.plane(where), session.view(where)
        on = np.asarray(view.answer().probability.data)[0] >= 0.5
        out[on if plane is None else plane.place(on)] = value
    return out


def _prompts(params: dict, label: str, geometry: Geometry) -> list[Prompt]:
    prompts: list[Prompt] = []
    for key, positive in (("foreground", True), (label, True), ("background", False)):
        for index in _lists(params.get(key), geometry.ndim):
            prompts.append(Point(tuple(geometry.to_world(_ours(index, geometry))), positive))
    roi = _lists([params.get("roi") or []], 0)[0]
    if roi:
        if len(roi) != 6 and len(roi) != 2 * geometry.ndim:
            raise UsageError("a box is low and high along every axis", found=f"{len(roi)} numbers")
        ends = np.array(roi).reshape(-1, 2).T
        low, high = geometry.world_bounds(*(_ours(e, geometry) for e in ends))
        prompts.append(Box(tuple(low), tuple(high)))
    if not prompts:
        raise UsageError("this model answers to clicks or a box", fix="send 'foreground': [[i, j, k], ...] or 'roi'")
    return prompts


def _ours(index: np.ndarray, geometry: Geometry) -> np.ndarray:
    """An index of the image as it travels -> of our grid: a picture travels as (column, row, 0)."""
    return np.asarray(index, float)[:3] if geometry.ndim == 3 else np.asarray(index, float)[[1, 0]]


def _lists(value: Any, dims: int) -> list[list[float]]:
    try:
        rows = [] if value is None else [[float(x) for x in row] for row in value]
    except (TypeError, ValueError) as error:
        raise UsageError("clicks and boxes are lists of numbers") from error
    if not all(np.isfinite(row).all() for row in rows):
        raise UsageError("clicks and boxes are lists of finite numbers")
    if any(len(row) < dims for row in rows):
        raise UsageError("a click has one number an axis", allowed=f"{dims} numbers")
    return rows


def _by_slice(prompts: list[Prompt], sliced: bool, geometry: Geometry) -> dict[tuple[int, int] | None, list[Prompt]]:
    """The prompts of each slice, across the coarsest axis, where the model looks at slices."""
    if not sliced:
        return {None: prompts}
    axis = coarsest(geometry.spacing)
    out: dict[tuple[int, int] | None, list[Prompt]] = {}
    for p in prompts:
        at = np.mean([p.low, p.high], 0) if isinstance(p, Box) else np.asarray(p.xyz)
        out.setdefault((axis, int(np.rint(geometry.to_index(at)[axis]))), []).append(p)
    return out
