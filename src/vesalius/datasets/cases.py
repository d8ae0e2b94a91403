"""One row of a manifest -> a ``Case`` on its native grid, or one clear error about what does not fit together.

An address may end in '#k': channel k of a file of several (Decathlon). In a 2D dataset a label array of one axis more, and in a 4D one a
label over time, is a stack of maps, which become ``name[0]``, ``name[1]``, ...: the raters of one nodule, the frames of one cine; 4D images
keep their frames as channels. A volume of one slice in a 2D dataset is read as the picture it is; a grey picture called 'RGB' has three
equal channels, and a colour one called by a grey modality ('US', 'CXR', 'L_CC', ...) is read as its luma, with a note.

Files that carry no spacing get, in this order: the case's table column ``spacing_mm`` (array-axis order, '5 x 0.3 x 0.3'), ``spacing_xyz``
(the reverse order, for arrays of (z, y, x)) or ``pixel_mm`` (both axes of a picture); ``manifest.spacing_mm``; 1 mm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from .. import io
from ..core.case import IGNORE, Case, Image, LabelMap
from ..core.errors import DataError, GeometryError
from ..core.geometry import Geometry
from ..core.lazy import Lazy
from ..core.manifest import CaseRef, Manifest
from ..io.notes import note
from .marks import read_boxes, read_points

_CHANNEL = re.compile(r"^(?P<file>.+)#(?P<channel>\d{1,3})$")
_PICTURE = re.compile(r"\.(png|jpe?g|bmp)$", re.IGNORECASE)
_ARRAY = re.compile(r"\.(npz|npy|h5|hdf5)(:|$)")
_VIEW = re.compile(r"^((L|R|LEFT|RIGHT)[_ -]?)?(CC|MLO|ML|LM|XCCL|XCCM)$|^(L|R|LEFT|RIGHT)$", re.IGNORECASE)
_GREY = re.compile(r"^(US|ABUS|CXR|XR|X-?RAY|MG|CT|MR|((L|R|LEFT|RIGHT)[_ -]?)?(CC|MLO|ML|LM|XCCL|XCCM))$", re.IGNORECASE)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_CHOICES = (
    "if they belong together, resample the label onto the image (nearest neighbour) or copy the image's header into it; "
    "if not, correct the row"
)


def read_case(manifest: Manifest, case_id: str, *, labels: bool = True, cache: str | Path | None = None) -> Case:
    """The case ``case_id`` on its native grid: images (C, *spatial), labels as class indices with ``IGNORE``, points and boxes in world mm.

    ``labels=False`` leaves out what prediction may not see (labels, points, boxes). ``cache``: a folder for decoded voxels. Files that
    carry no spacing get the case's or the dataset's. The images of a case share one grid (2D: one shape), except the views of a breast
    examination and of two sides (L_CC, R_MLO, left, ...), which are different pictures; a label lies on the grid of the image with its
    name, or else of the first image, within 1e-3 of a voxel.
    Raises UsageError (unknown case), DataError (a file) and GeometryError (images or labels on different grids; names both files).
    """
    ref = manifest[case_id]
    if manifest.built_in is not None:
        case = manifest.built_in(ref)
        return case if labels else case.without_labels()
    images = _images(manifest, ref, cache)
    maps = _maps(manifest, ref, ref.labels if labels else {}, images, roi=False)
    rois = _maps(manifest, ref, ref.rois, images, roi=True)
    case = Case(
        ref.id,
        ref.patient,
        ref.exam,
        ref.source,
        images=images,
        labels=maps,
        rois=rois,
        text=dict(ref.text),
        table=dict(ref.table),
        answers=frozenset(manifest.targets) & set(ref.table),
    )
    if not labels or not (ref.points or ref.boxes):
        return case
    dims, grid = min(manifest.dims, 3) or 3, lambda: case.geometry
    return replace(
        case,
        points={n: read_points(cell, manifest.root, dims, grid) for n, cell in ref.points.items()},
        boxes={n: read_boxes(cell, manifest.root, dims, grid) for n, cell in ref.boxes.items()},
    )


def file_of(manifest: Manifest, address: str) -> tuple[str, int | None]:
    """The address as ``io`` reads it (absolute or from the manifest's root), and the channel after '#', if any."""
    hit = _CHANNEL.match(address)
    channel = None
    if hit and not (Path(manifest.root) / address).exists():
        address, channel = hit["file"], int(hit["channel"])
    return str(Path(manifest.root) / address), channel


def spacing_of(manifest: Manifest, ref: CaseRef) -> tuple[float, ...] | None:
    """The spacing (mm, array-axis order) for those files of a case that carry none; None when nobody said. Pictures among volumes take the
    first two numbers."""
    sides = min(manifest.dims, 3)
    for column in ("spacing_mm", "spacing_xyz", "pixel_mm"):
        said = ref.table.get(column)
        if said is None or said == "" or (column == "pixel_mm" and sides != 2):
            continue
        try:
            mm = [float(part) for part in re.split(r"[x,; ]+", str(said).strip())]
        except ValueError:
            mm = []
        mm = mm * sides if len(mm) == 1 else mm
        if len(mm) != sides or min(mm, default=0) <= 0:
            raise DataError(
                f"column '{column}' holds no spacing",
                where=f"case {ref.id}",
                found=repr(said),
                allowed=f"{sides} positive numbers: '1 x 1'",
            )
        return tuple(reversed(mm)) if column == "spacing_xyz" else tuple(mm)
    return manifest.spacing_mm


def header_of(file: str, spacing: tuple[float, ...] | None) -> tuple[tuple[int, ...], Geometry, np.dtype]:
    """``io.header``; a stack of maps has one axis more than the case's spacing, which then goes to the last axes."""
    try:
        return io.header(file, spacing=_for(file, spacing))
    except DataError:
        if spacing is None:
            raise
        return io.header(file, spacing=(1.0, *spacing))


def _for(file: str, spacing: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """The numbers of ``spacing`` that this file needs: two for a picture."""
    return spacing[:2] if spacing is not None and _PICTURE.search(file) else spacing


def is_view(name: str) -> bool:
    """Whether an image's name is that of a view or side ('L_CC', 'right'), so that it needs no common grid with the others."""
    return _VIEW.match(name) is not None


# ------------------------------------------------------------------------------------------------------------------------------- images
def _images(manifest: Manifest, ref: CaseRef, cache: str | Path | None) -> dict[str, Image]:
    read: dict[str, Image] = {}
    spacing = spacing_of(manifest, ref)
    out: dict[str, Image] = {}
    for name, address in ref.images.items():
        file, channel = file_of(manifest, address)
        if file not in read:
            read[file] = _as_dims(io.read_image(file, spacing=_for(file, spacing), cache=cache), manifest, file)
        image = replace(read[file], name=name)
        if channel is not None:
            if channel >= len(image.data):
                raise DataError(f"the file has no channel {channel}", where=file, found=f"{len(image.data)} channels (counted from 0)")
            image = replace(image, source=image.data[channel : channel + 1])
        elif manifest.dims == 2 and not isinstance(image.source, Lazy):
            image = replace(image, source=_picture(image.data, name, file))
        out[name] = image
    if len(out) < 2 or all(map(is_view, out)):
        return out
    first = next(iter(out))
    for name, image in out.items():
        if not _one_grid(image.geometry, out[first].geometry):
            raise GeometryError(
                f"images '{first}' and '{name}' lie on different grids",
                where=f"case {ref.id}",
                found=_both(
                    file_of(manifest, ref.images[first])[0], out[first].geometry, file_of(manifest, ref.images[name])[0], image.geometry
                ),
                fix="channels are stacked voxel by voxel: resample one onto the other first (registration, then a common grid)",
            )
        out[name] = replace(image, geometry=out[first].geometry)
    return out


def _picture(data: np.ndarray, name: str, file: str) -> np.ndarray:
    """A picture with the channels its name says: three for 'RGB', one for grey modalities (colours -> BT.601 luma, with a note)."""
    if name == "RGB" and len(data) == 1:
        return np.repeat(data, 3, axis=0)
    if channels_by_name(name) != 1 or len(data) != 3:
        return data
    if (data[0] == data[1]).all() and (data[0] == data[2]).all():
        return data[:1]
    note(f"a colour picture under '{name}', which is grey: read as its luma", file)
    luma = np.tensordot(_LUMA, data.astype(np.float32), 1)[None]
    return np.rint(luma).astype(data.dtype) if data.dtype.kind in "iu" else luma


def channels_by_name(name: str) -> int | None:
    """Channels of a picture of this name: 3 for 'RGB', 1 for grey modalities (US, CXR, MG, L_CC, ...), None: what its file has."""
    return 3 if name == "RGB" else 1 if _GREY.match(name) else None


def _as_dims(item: Image, manifest: Manifest, file: str) -> Image:
    """The image with as many sides as the dataset has dimensions; only a volume of one slice may lose one, and among volumes a picture is
    one slice."""
    geometry, dims = item.geometry, min(manifest.dims, 3)
    if geometry.ndim == dims:
        return item
    if (dims, geometry.ndim) == (3, 2) and not isinstance(item.source, Lazy):
        data = _picture(item.data, next(iter(manifest.channels), ""), file)
        return replace(item, source=data[..., None], geometry=_lifted(geometry))
    axis = _flat_axis(geometry)
    if dims == 2 and axis is not None:
        return replace(item, source=np.squeeze(item.data, axis + 1), geometry=_flattened(geometry, axis))
    raise GeometryError(
        f"a {geometry.ndim}D image in a {manifest.dims}D dataset", where=file, found=geometry.describe(), fix="correct 'dims', or the row"
    )


def _flat_axis(geometry: Geometry) -> int | None:
    """The last axis of one voxel of a volume, if it has one."""
    return next((a for a in (2, 1, 0) if geometry.ndim == 3 and geometry.shape[a] == 1), None)


def _lifted(geometry: Geometry) -> Geometry:
    """A picture's grid as that of a volume of one slice, as thick as a pixel is wide."""
    return Geometry.of((*geometry.shape, 1), (*geometry.spacing, max(geometry.spacing)))


def _flattened(geometry: Geometry, axis: int) -> Geometry:
    keep = [a for a in range(3) if a != axis]
    return Geometry.of([geometry.shape[a] for a in keep], [geometry.spacing[a] for a in keep])


def _one_grid(a: Geometry, b: Geometry) -> bool:
    return a.shape == b.shape if a.ndim == 2 and b.ndim == 2 else a.close(b)


def _both(file_a: str, a: Geometry, file_b: str, b: Geometry) -> str:
    return f"{file_a}: {a.describe()}, and {file_b}: {b.describe()}"


# --------------------------------------------------------------------------------------------------------------------- labels and ROIs
def _maps(manifest: Manifest, ref: CaseRef, addresses: Mapping[str, str], images: Mapping[str, Image], *, roi: bool) -> dict[str, LabelMap]:
    """Label maps or ROI masks by name, each on the grid of its image (of the first map where the case has no image)."""
    out: dict[str, LabelMap] = {}
    anchor: tuple[str, Geometry] | None = None
    spacing = spacing_of(manifest, ref)
    for name, address in addresses.items():
        file, _ = file_of(manifest, address)
        mm = _for(file, spacing)
        maps = _roi(manifest, name, file, mm) if roi else _labels(manifest, name, file, mm)
        image = name if name in images else next(iter(images), None)
        if image is not None:
            anchor = file_of(manifest, ref.images[image])[0], images[image].geometry
        for key, label in maps.items():
            anchor = anchor or (file, label.geometry)
            if label.geometry.shape != anchor[1].shape or not _one_grid(label.geometry, anchor[1]):
                kind = "ROI" if roi else "label"
                raise GeometryError(
                    f"{kind} '{name}' does not lie on the grid of its image",
                    where=f"case {ref.id}",
                    found=_both(file, label.geometry, *anchor),
                    allowed="the same shape, corners within 1e-3 of a voxel",
                    fix=_CHOICES,
                )
            out[key] = replace(label, geometry=anchor[1])
    return out


def _labels(manifest: Manifest, name: str, file: str, spacing: tuple[float, ...] | None) -> dict[str, LabelMap]:
    if not manifest.labels:
        raise DataError("the dataset has labels but no label table", where=file, fix="add a section [labels] to dataset.toml")
    if manifest.dims == 4 or manifest.dims == 2 and _ARRAY.search(file):
        stack = _stack(manifest, name, file, spacing)
        if stack:
            return stack
    table = {"values": manifest.values, "names": manifest.names, "ignore": manifest.ignore, "instances": manifest.instances}
    return {name: _flat_label(io.read_labels(file, **table, spacing=spacing), manifest)}


def _flat_label(label: LabelMap, manifest: Manifest) -> LabelMap:
    """In a 2D dataset, the picture in a label volume of one slice; in a 3D one, a picture as such a volume."""
    if manifest.dims == 3 and label.geometry.ndim == 2:
        return replace(label, source=np.asarray(label.data)[..., None], geometry=_lifted(label.geometry))
    axis = _flat_axis(label.geometry) if manifest.dims == 2 else None
    if axis is None:
        return label
    return replace(label, source=np.squeeze(label.data, axis), geometry=_flattened(label.geometry, axis))


def _roi(manifest: Manifest, name: str, file: str, spacing: tuple[float, ...] | None) -> dict[str, LabelMap]:
    """An ROI file: everything that is not 0 is inside."""
    label = io.read_labels(file, values=(), names=("background", name), instances=True, spacing=spacing)
    label = replace(label, source=(label.data > 0).astype(np.uint8), names=("background", name), instances=False)
    return {name: _flat_label(label, manifest)}


def _stack(manifest: Manifest, name: str, file: str, spacing: tuple[float, ...] | None) -> dict[str, LabelMap]:
    """A label file of one axis more than the dataset's grid as one map an entry; {} when it has none."""
    shape, geometry, _ = header_of(file, spacing)
    if manifest.dims == 2 and geometry.ndim == 3 and _flat_axis(geometry) is None:
        pixel = spacing or (1.0, 1.0)
        layers = io.read_image(file, spacing=(1.0, *pixel)).data[0]
        geometry = Geometry.of(geometry.shape[1:], pixel)
    elif manifest.dims == 4 and shape[0] > 1:
        image = io.read_image(file, spacing=spacing)
        layers, geometry = image.data, image.geometry
    else:
        return {}
    return {
        f"{name}[{k}]": LabelMap(_indices(layer, manifest, file), geometry, manifest.names, instances=manifest.instances)
        for k, layer in enumerate(layers)
    }


def _indices(layer: np.ndarray, manifest: Manifest, file: str) -> np.ndarray:
    """One layer's file values -> class indices (object ids stay)."""
    if layer.dtype.kind == "f" and not np.array_equal(layer, np.rint(layer)):
        raise DataError("a label map holds whole numbers", where=file, found=layer.dtype)
    ids = layer.astype(np.int32)
    if manifest.instances:
        return ids if manifest.ignore is None else np.where(ids == manifest.ignore, IGNORE, ids)
    out = np.full(ids.shape, -2, np.int16)
    for k, value in enumerate(manifest.values):
        out[ids == value] = k
    if manifest.ignore is not None:
        out[ids == manifest.ignore] = IGNORE
    if (out == -2).any():
        odd = ", ".join(map(str, np.unique(ids[out == -2])[:8]))
        raise DataError("values that are not in the label table", where=file, found=odd, allowed=", ".join(map(str, manifest.values)))
    return out
