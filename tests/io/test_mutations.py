"""Sixty mutated files of every kind: a VesaliusError of one line or an image, never another exception, and quickly."""

import time
import warnings

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image as Picture

from vesalius.core.errors import VesaliusError
from vesalius.core.geometry import Geometry
from vesalius.io import header, read_image, write_image

from .made import ct_slice

DATA = np.random.default_rng(0).integers(0, 200, (7, 9, 11)).astype(np.int16)
KINDS = ("nii", "nii.gz", "mha", "nrrd", "npy", "npz", "h5", "png", "bmp", "pgm", "jpg", "tif", "dcm")


def make(path, kind):
    plane = DATA[0].astype(np.uint8)
    if kind == "h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=DATA, compression="gzip")
    elif kind == "tif":
        tifffile.imwrite(path, DATA[0])
    elif kind == "dcm":
        ct_slice(path, DATA[:, :, 0].T.copy(), (0, 0, 0))
    elif kind in ("png", "bmp", "pgm", "jpg"):
        Picture.fromarray(plane).save(path)
    else:
        write_image(path, DATA[None], Geometry.of(DATA.shape))
    return path.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_mutations(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    content, rng = make(path, kind), np.random.default_rng(3)
    for _ in range(60):
        broken = bytearray(content)
        for at in rng.integers(0, min(len(broken), 700), rng.integers(1, 5)):
            broken[at] = rng.integers(0, 256)
        if rng.random() < 0.2:
            broken = broken[: rng.integers(1, len(broken))]
        path.write_bytes(broken)
        for function in (read_image, header):
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    function(path)
                except VesaliusError as error:
                    assert "\n" not in str(error) and "CANARY" not in str(error)
            assert time.perf_counter() - start < 5
