"""Files that somebody brings, read with every check that files get: a label map, put on an image's own grid, and an image."""

from __future__ import annotations

import secrets
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np

from .. import io
from ..core.case import Image
from ..core.errors import DataError, GeometryError, UsageError, VesaliusError
from ..core.geometry import Geometry, resample
from ..core.manifest import Manifest
from .wire import check_weight

ENDINGS = (".nii.gz", ".nii", ".png")
_WHERE = "the file"


def read_mask(content: bytes, name: str, geometry: Geometry, folder: Path) -> np.ndarray:
    """(*spatial) the file's values on ``geometry``, nearest neighbour where it lies on another grid; a picture has the image's size.
    ``folder``: where it may lie meanwhile. Raises UsageError (what is no NIfTI or PNG), DataError (what is no label map), GeometryError
    (another size, or beside the image) and ResourceError (disk, memory)."""
    ending = next((e for e in ENDINGS if name.lower().endswith(e)), None)
    if ending is None:
        raise UsageError("a mask comes as NIfTI or PNG", found=Path(name).suffix[:10] or "no ending", allowed=", ".join(ENDINGS))
    folder.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=folder, prefix="upload-", suffix=ending) as file:
        file.write(content)
        file.flush()
        try:
            if io.sniff(file.name) not in ("nifti", "nifti.gz", "png"):
                raise DataError("the file is not what its name says", allowed="NIfTI, PNG")
            sides, grid, dtype = io.header(file.name, spacing=geometry.spacing if ending == ".png" else None)
            check_weight(sides, dtype)
            _check_sides(grid, geometry)
            label = io.read_labels(file.name, values=(), names=("background", "object"), instances=True, spacing=grid.spacing)
        except VesaliusError as error:
            raise type(error)(error.what, where=_WHERE, found=error.found, allowed=error.allowed, fix=error.fix) from error
    values = np.asarray(label.data)
    if values.min() < 0 or values.max() > 65535:
        raise DataError("a mask's values are 0 to 65535", where=_WHERE, found=f"{values.min()} to {values.max()}")
    values = values.astype(np.uint16)
    if geometry.ndim == 2:
        return values if grid.ndim == 2 else values[..., 0].T
    return _on(values, grid, geometry)


def _check_sides(grid: Geometry, geometry: Geometry) -> None:
    """A volume for a volume; for a picture one of its size, or a volume of one slice as pictures travel here."""
    if geometry.ndim == 2:
        if grid.shape not in (geometry.shape, (*reversed(geometry.shape), 1)):
            raise GeometryError("the mask is of another size than the image", found=grid.shape, allowed=geometry.shape)
    elif grid.ndim != 3:
        raise GeometryError("a mask of a volume is a volume", found=f"{grid.ndim}D", fix="bring it as NIfTI")


def _on(values: np.ndarray, grid: Geometry, geometry: Geometry) -> np.ndarray:
    if grid.shape == geometry.shape and grid.close(geometry, 1e-2):
        return values
    ends = np.array(geometry.index_bounds(*grid.world_bounds(np.full(3, -0.5), np.array(grid.shape) - 0.5)))
    out = resample(values[None], grid, geometry, "nearest")[0]
    if (ends[1] < -0.5).any() or (ends[0] > np.array(geometry.shape) - 0.5).any() or values.any() and not out.any():
        fix = "choose the mask that was drawn on this image"
        raise GeometryError(
            "the mask does not overlap the image", where=_WHERE, found=grid.describe(), allowed=geometry.describe(), fix=fix
        )
    return out


def taken_in(content: bytes, folder: Path, manifest: Manifest) -> tuple[Path, Image]:
    """The file that an uploaded NIfTI becomes, and its image, which fits the data; one that cannot be read leaves no file."""
    path = folder / (secrets.token_hex(8) + (".nii.gz" if content[:2] == b"\x1f\x8b" else ".nii"))
    io.atomic_write_bytes(path, content)
    try:
        sides, grid, dtype = io.header(path)
        check_weight(sides, dtype)
        if grid.ndim != min(manifest.dims, 3):
            raise GeometryError("the image has other dimensions than this project's", found=f"{grid.ndim}D")
        return path, io.read_image(path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
