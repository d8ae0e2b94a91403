"""Files made for these tests: an asymmetric object, NIfTI bytes with patched fields, DICOM slices."""

import gzip
import struct
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SHARED = Path(__file__).resolve().parents[2].parent / "shared"

# name -> (offset, struct format) of NIfTI-1 header fields
FIELDS = {
    "dim": (40, "8h"),
    "datatype": (70, "h"),
    "bitpix": (72, "h"),
    "pixdim": (76, "8f"),
    "vox_offset": (108, "f"),
    "scl_slope": (112, "f"),
    "scl_inter": (116, "f"),
    "xyzt_units": (123, "B"),
    "qform_code": (252, "h"),
    "sform_code": (254, "h"),
    "quatern_b": (256, "f"),
}


def asymmetric(shape=(7, 9, 11)) -> np.ndarray:
    """An object without any symmetry: a body, a nose, an ear, in int16; every marked voxel has its own value."""
    data = np.zeros(shape, np.int16)
    data[1:5, 2:6, 3:9] = 10
    data[4, 3, 8], data[5, 3, 8], data[1, 7, 4], data[0, 0, 1], data[6, 1, 0] = 101, 102, 103, 104, 105
    return data


def marks(data: np.ndarray, geometry) -> np.ndarray:
    """World positions of the marked voxels (101..105) and of the centre of mass: (6, 3)."""
    at = [np.argwhere(data == v)[0] for v in range(101, 106)]
    where = np.argwhere(data > 0)
    mass = data[data > 0].astype(float)
    return geometry.to_world(np.array([*at, (where * mass[:, None]).sum(0) / mass.sum()]))


def nifti_bytes(data=None, affine=None, **fields) -> bytes:
    """A plain NIfTI-1 file (int16 by default) with header fields overwritten."""
    data = asymmetric() if data is None else data
    affine = np.diag([1.0, 1.5, 2.0, 1.0]) if affine is None else affine
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    content = bytearray(image.to_bytes())
    for name, value in fields.items():
        offset, fmt = FIELDS[name]
        struct.pack_into("<" + fmt, content, offset, *(value if isinstance(value, (tuple, list)) else (value,)))
    return bytes(content)


def put(path: Path, content: bytes) -> Path:
    """Write, gzipped when the name says so."""
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def ct_slice(path: Path, pixels: np.ndarray, position, axes=(1, 0, 0, 0, 1, 0), spacing=(0.8, 0.6), series="1.2.3", **attributes) -> Path:
    """One CT slice as DICOM; ``pixels`` (rows, columns) 16 bit; an attribute of None is left out."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.Modality, ds.SeriesInstanceUID, ds.PatientName = "CT", series, "ZZPHI^CANARY"
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelSpacing, ds.SliceThickness = list(spacing), 2.0
    ds.ImagePositionPatient = None if position is None else [f"{p:.8g}" for p in position]
    ds.ImageOrientationPatient = None if axes is None else [f"{a:.8g}" for a in axes]
    ds.PixelData = pixels.astype("<" + pixels.dtype.str[1:]).tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, value in attributes.items():
            if value is None:
                delattr(ds, name)
            else:
                setattr(ds, name, value)
        for name in ("ImagePositionPatient", "ImageOrientationPatient"):
            if name in ds and ds.get(name) is None:
                delattr(ds, name)
        pydicom.dcmwrite(path, ds)
    return path


def ct_series(folder: Path, volume: np.ndarray, step=2.0, names=None, **attributes) -> Path:
    """A series of axial slices from ``volume`` (column, row, slice)."""
    folder.mkdir(exist_ok=True)
    for k in range(volume.shape[2]):
        name = names[k] if names else f"s{k:03d}.dcm"
        ct_slice(folder / name, volume[:, :, k].T.copy(), (-10.0, -20.0, 30.0 + step * k), **{"InstanceNumber": k + 1, **attributes})
    return folder
