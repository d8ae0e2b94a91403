"""NIfTI: what is damaged or contradicts itself is refused in one sentence that names the file; what is only odd is noted."""

import gzip
import os
import struct
import tracemalloc
import warnings

import nibabel as nib
import numpy as np
import pytest

from vesalius.core.errors import DataError, GeometryError
from vesalius.core.geometry import Geometry
from vesalius.io import VesaliusNote, header, read_image, read_labels, sniff, write_image, write_labels

from .made import asymmetric, nifti_bytes, put


def refused(path, *words, error=DataError, **options):
    with pytest.raises(error) as caught:
        read_image(path, **options)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text
    for word in words:
        assert word.lower() in text.lower(), f"'{word}' is not in: {text}"
    return text


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(-1000, 1000, (40, 41, 42)).astype(np.int16)


# ------------------------------------------------------------------------------------------------------------------- damaged streams
@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_truncated(tmp_path, noise, keep):
    whole = gzip.compress(nifti_bytes(noise))
    (tmp_path / "a.nii.gz").write_bytes(whole[: int(len(whole) * keep)])
    refused(tmp_path / "a.nii.gz", "truncated", "0.1 MB promised", "found")
    plain = nifti_bytes(noise)
    (tmp_path / "a.nii").write_bytes(plain[: int(len(plain) * keep)])
    refused(tmp_path / "a.nii", "truncated", "MB promised")


@pytest.mark.parametrize("lost", [1, 4, 8])
def test_last_bytes_gone(tmp_path, noise, lost):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(nifti_bytes(noise))[:-lost])
    refused(tmp_path / "a.nii.gz", "truncated")


def test_any_flipped_bit_of_the_payload(tmp_path, noise):
    whole = gzip.compress(nifti_bytes(noise))
    for at in np.random.default_rng(1).integers(10, len(whole) - 8, 60):
        broken = bytearray(whole)
        broken[at] ^= 1 << int(at) % 8
        (tmp_path / "a.nii.gz").write_bytes(broken)
        with pytest.raises(DataError):
            read_image(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("at", [-8, -5, -4, -1])
def test_wrong_crc_or_isize(tmp_path, noise, at):
    whole = bytearray(gzip.compress(nifti_bytes(noise)))
    whole[at] ^= 0x10
    (tmp_path / "a.nii.gz").write_bytes(whole)
    refused(tmp_path / "a.nii.gz", "CRC-32")


def test_members_padding_and_garbage(tmp_path, noise):
    content = nifti_bytes(noise)
    members = b"".join(gzip.compress(content[a : a + 30000]) for a in range(0, len(content), 30000))
    path = tmp_path / "a.nii.gz"
    path.write_bytes(members + b"\0" * 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read_image(path).data[0], noise)
    path.write_bytes(members + b"garbage")
    with pytest.warns(VesaliusNote, match="garbage"):
        assert np.array_equal(read_image(path).data[0], noise)
    second = bytearray(members)
    second[-6] ^= 1  # the last member's CRC
    path.write_bytes(second)
    refused(path, "CRC-32")


def test_bomb_is_stopped_early(tmp_path):
    path = put(tmp_path / "a.nii.gz", nifti_bytes() + b"\0" * 50_000_000)
    tracemalloc.start()
    refused(path, "more than its header promises")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_some_bytes_too_many_are_noted(tmp_path):
    for name in ("a.nii.gz", "a.nii"):
        with pytest.warns(VesaliusNote, match="after the last voxel"):
            assert np.array_equal(read_image(put(tmp_path / name, nifti_bytes() + b"xyz")).data[0], asymmetric())


def test_misnamed(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(nifti_bytes())
    (tmp_path / "b.nii").write_bytes(gzip.compress(nifti_bytes()))
    for name, kind in (("a.nii.gz", "nifti"), ("b.nii", "nifti.gz")):
        assert sniff(tmp_path / name) == kind
        with pytest.warns(VesaliusNote, match="named as"):
            assert np.array_equal(read_image(tmp_path / name).data[0], asymmetric())


def test_five_ways_of_no_file(tmp_path):
    (tmp_path / "empty.nii.gz").touch()
    (tmp_path / "folder.nii.gz").mkdir()
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    (tmp_path / "text.nii.gz").write_text("hello")
    texts = {
        refused(tmp_path / "empty.nii.gz", "empty"),
        refused(tmp_path / "folder.nii.gz", "no DICOM image in this folder"),
        refused(tmp_path / "link.nii.gz", "link points to nothing"),
        refused(tmp_path / "missing.nii.gz", "no such file"),
        refused(tmp_path / "text.nii.gz", "no format that Vesalius reads"),
    }
    assert len(texts) == 5
    with pytest.raises(DataError, match="folder, not a file"):
        sniff(tmp_path / "folder.nii.gz")
    with pytest.raises(DataError, match="may not read"):
        _as_nobody(put(tmp_path / "secret.nii.gz", nifti_bytes()))


def _as_nobody(path):
    """Open a file without permission; as root, permissions do not bind, so the refusal is simulated."""
    path.chmod(0)
    if os.geteuid():
        return sniff(path)
    import builtins
    from unittest import mock

    real = builtins.open
    denied = lambda p, *a, **k: (_ for _ in ()).throw(PermissionError(13, "denied")) if str(p) == str(path) else real(p, *a, **k)
    with mock.patch("builtins.open", denied):
        return sniff(path)


# --------------------------------------------------------------------------------------------------------------------------- headers
def test_giant_dimensions_allocate_nothing(tmp_path):
    content = nifti_bytes(dim=(3, 32767, 32767, 32767, 1, 1, 1, 1))[:377]
    tracemalloc.start()
    refused(put(tmp_path / "a.nii", content), "32767", "promised")
    refused(put(tmp_path / "a.nii.gz", content), "32767", "promised")
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    "field, value, word",
    [
        ("dim", (3, -7, 9, 11, 1, 1, 1, 1), "zero or negative"),
        ("dim", (3, 7, 0, 11, 1, 1, 1, 1), "zero or negative"),
        ("dim", (0, 7, 9, 11, 1, 1, 1, 1), "dim[0]"),
        ("dim", (9, 7, 9, 11, 1, 1, 1, 1), "dim[0]"),
        ("dim", (5, 7, 9, 1, 1, 11, 1, 1), None),  # a vector image: channels
        ("dim", (5, 7, 1, 1, 9, 11, 1, 1), "more than four dimensions"),
        ("bitpix", 8, "bitpix"),
        ("datatype", 32, "complex"),
        ("datatype", 1536, "float128"),
        ("datatype", 1, "1-bit"),
        ("datatype", 77, "unknown voxel type"),
        ("vox_offset", float("nan"), "vox_offset"),
        ("vox_offset", 12.0, "vox_offset"),
        ("xyzt_units", 5, "unit of length"),
    ],
)
def test_impossible_fields(tmp_path, field, value, word):
    path = put(tmp_path / "a.nii.gz", nifti_bytes(**{field: value}))
    if word is None:
        assert read_image(path).data.shape == (11, 7, 9, 1)
    else:
        refused(path, word)


@pytest.mark.parametrize("pixdim", [0.0, float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (1, 1)])
def test_impossible_spacing(tmp_path, pixdim, codes):
    fields = {"pixdim": (1, 1, pixdim, 1, 1, 1, 1, 1), "qform_code": codes[0], "sform_code": codes[1]}
    refused(put(tmp_path / "a.nii.gz", nifti_bytes(**fields)), "spacing is zero, negative or not a number", "pixdim", error=GeometryError)


@pytest.mark.parametrize("spacing", [1e-12, 1e6])
def test_implausible_spacing(tmp_path, spacing):
    path = put(tmp_path / "a.nii", nifti_bytes(affine=np.diag([1, 1, spacing, 1])))
    refused(path, "", error=GeometryError)


def test_no_form_follows_the_declared_policy(tmp_path):
    path = put(tmp_path / "a.nii.gz", nifti_bytes(qform_code=0, sform_code=0))
    with pytest.warns(VesaliusNote, match="both unset"):
        geometry = read_image(path).geometry
    assert np.allclose(geometry.affine, nib.load(path).affine) and geometry.orientation == "LAS"


def test_conflicting_forms(tmp_path):
    flipped = np.diag([-1.0, 1.5, 2.0, 1.0])
    image = nib.Nifti1Image(asymmetric(), np.diag([1.0, 1.5, 2.0, 1.0]))
    image.set_qform(flipped, 1)
    image.set_sform(image.affine, 1)
    nib.save(image, path := tmp_path / "a.nii.gz")
    refused(path, "disagree", "sform [[", "qform [[", "prefer=", error=GeometryError)
    assert read_image(path, prefer="sform").geometry.orientation == "RAS"
    assert read_image(path, prefer="qform").geometry.orientation == "LAS"
    assert header(path, prefer="qform")[1].orientation == "LAS"
    refused(path, "unknown form", prefer="aform")


@pytest.mark.parametrize("voxels, agree", [(5e-4, True), (5e-3, False)])
def test_conflict_tolerance(tmp_path, voxels, agree):
    moved = np.eye(4)
    moved[0, 3] = voxels
    image = nib.Nifti1Image(asymmetric(), np.eye(4))
    image.set_qform(moved, 1)
    image.set_sform(np.eye(4), 1)
    nib.save(image, path := tmp_path / "a.nii.gz")
    if agree:
        assert np.allclose(read_image(path).geometry.affine, np.eye(4))
    else:
        refused(path, "disagree", error=GeometryError)


@pytest.mark.parametrize("unit, factor, word", [(1, 1000.0, "metre"), (3, 0.001, "micron")])
def test_units_become_mm(tmp_path, unit, factor, word):
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    affine[:3] /= factor
    with pytest.warns(VesaliusNote, match=word):
        geometry = read_image(put(tmp_path / "a.nii.gz", nifti_bytes(affine=affine, xyzt_units=unit))).geometry
    assert np.allclose(geometry.spacing, (1.0, 1.5, 2.0), rtol=1e-6)


def test_shear(tmp_path):
    def sheared(amount):
        affine = np.eye(4)
        affine[0, 1] = amount
        affine[:3, 3] = 5, 6, 7
        nib.save(nib.Nifti1Image(asymmetric(), affine), path := tmp_path / "a.nii.gz")  # nibabel leaves the qform unset
        return path, Geometry((7, 9, 11), affine)

    path, truth = sheared(5e-4)
    with pytest.warns(VesaliusNote, match="shear"):
        geometry = read_image(path).geometry
    axes = geometry.direction
    assert np.abs(axes.T @ axes - np.eye(3)).max() < 1e-12
    centre = (np.array(truth.shape) - 1) / 2
    assert np.allclose(geometry.to_world(centre), truth.to_world(centre)) and geometry.corner_distance(truth) < 5e-3
    path, _ = sheared(0.01)
    refused(path, "shear", "resample", error=GeometryError)


def test_singular(tmp_path):
    content = bytearray(nifti_bytes(qform_code=0))
    struct.pack_into("<12f", content, 280, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0)
    refused(put(tmp_path / "a.nii", bytes(content)), "", error=GeometryError)


# ---------------------------------------------------------------------------------------------------------------------------- voxels
@pytest.mark.parametrize(
    "slope, inter, scaled", [(0, 5, False), (float("nan"), 0, False), (float("inf"), 0, False), (1, 0, False), (0.5, -3, True)]
)
def test_rescaling(tmp_path, slope, inter, scaled):
    path = put(tmp_path / "a.nii.gz", nifti_bytes(scl_slope=slope, scl_inter=inter))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VesaliusNote)
        data, dtype = read_image(path).data, header(path)[2]
    assert data.dtype == dtype == (np.float32 if scaled else np.int16)
    assert np.array_equal(data[0], asymmetric() * slope + inter if scaled else asymmetric())


def test_huge_slope_is_refused_not_infinite(tmp_path):
    refused(put(tmp_path / "a.nii.gz", nifti_bytes(scl_slope=3e38, scl_inter=0)), "float32")


def test_rescaled_beyond_int16(tmp_path):
    data = np.full((2, 2, 2), 30000, np.int16)
    image = read_image(put(tmp_path / "a.nii.gz", nifti_bytes(data, scl_slope=2, scl_inter=0)))
    assert (image.data == 60000).all()


def test_big_endian(tmp_path):
    image = nib.Nifti1Image(asymmetric().astype(">i2"), np.eye(4), nib.Nifti1Header(endianness=">"))
    image.set_data_dtype(">i2")
    nib.save(image, tmp_path / "a.nii.gz")
    read = read_image(tmp_path / "a.nii.gz").data
    assert read.dtype == np.dtype(np.int16) and read.dtype.isnative and np.array_equal(read[0], asymmetric())


def test_nan_and_infinity(tmp_path):
    data = np.ones((4, 4, 4), np.float32)
    data[0, 0, :3], data[1, 1, 1] = (np.nan, np.inf, -np.inf), -7
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.warns(VesaliusNote, match="3 voxels are NaN or infinite"):
        read = read_image(tmp_path / "a.nii.gz").data[0]
    assert (read[0, 0, :3] == -7).all() and (np.isfinite(data) <= (read == data)).all()
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), np.nan, np.float32), np.eye(4)), tmp_path / "b.nii.gz")
    refused(tmp_path / "b.nii.gz", "no voxel")


def test_colour_and_singletons(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 255, (3, 4, 5, 3)).astype(np.uint8)
    packed = rgb.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nib.save(nib.Nifti1Image(packed, np.eye(4)), tmp_path / "a.nii.gz")
    assert np.array_equal(read_image(tmp_path / "a.nii.gz").data, np.moveaxis(rgb, -1, 0))
    nib.save(nib.Nifti1Image(asymmetric()[..., None, None], np.eye(4)), tmp_path / "b.nii.gz")
    assert read_image(tmp_path / "b.nii.gz").data.shape == (1, 7, 9, 11)


def test_extension_bytes_are_skipped(tmp_path):
    image = nib.Nifti1Image(asymmetric(), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"ZZPHI"))
    nib.save(image, tmp_path / "a.nii.gz")
    assert np.array_equal(read_image(tmp_path / "a.nii.gz").data[0], asymmetric())


def test_random_headers_are_refused_or_right(tmp_path):
    """Two hundred mutated headers: a VesaliusError or nibabel's voxels, never anything else."""
    rng, content, path = np.random.default_rng(2), nifti_bytes(), tmp_path / "a.nii"
    for _ in range(200):
        broken = bytearray(content)
        for at in rng.integers(0, 348, 3):
            broken[at] = rng.integers(0, 256)
        path.write_bytes(broken)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = read_image(path)
            except DataError:
                continue
            reference = np.asarray(nib.load(path).dataobj)
        assert np.allclose(np.nan_to_num(image.data[0], posinf=0, neginf=0).squeeze(), np.nan_to_num(reference).squeeze(), rtol=1e-5)


# ----------------------------------------------------------------------------------------------------------------------------- cache
def test_cache(tmp_path):
    path = put(tmp_path / "a.nii.gz", nifti_bytes())
    for _ in range(2):
        image = read_image(path, cache=tmp_path / "cache")
        assert np.array_equal(image.data[0], asymmetric()) and len(list((tmp_path / "cache").iterdir())) == 1
    assert isinstance(image.data, np.memmap) and not image.data.flags.writeable
    entry = next((tmp_path / "cache").iterdir())
    assert "a.nii" not in entry.name
    entry.write_bytes(entry.read_bytes()[:200])  # a broken entry is read anew
    assert np.array_equal(read_image(path, cache=tmp_path / "cache").data[0], asymmetric())
    put(path, nifti_bytes(asymmetric() + 1))
    assert np.array_equal(read_image(path, cache=tmp_path / "cache").data[0], asymmetric() + 1)


# --------------------------------------------------------------------------------------------------------------------------- writing
def test_written_label_table_and_no_private_bytes(tmp_path):
    label = np.zeros((4, 4, 4), np.int64)
    label[1:3, 1:3, 1:3] = 1
    write_labels(tmp_path / "a.nii.gz", label, Geometry.of((4, 4, 4)), values=[0, 300], names=["background", "liver & <spleen>"])
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.get_data_dtype() == np.int16 and sorted(np.unique(image.dataobj)) == [0, 300]
    head = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())[348:1000]
    assert b'Key="300"' in head and b"liver &amp; &lt;spleen&gt;" in head
    assert np.array_equal(read_labels(tmp_path / "a.nii.gz", values=[0, 300], names="ab").data, label)
    raw = (tmp_path / "a.nii.gz").read_bytes()
    assert raw[4:8] == b"\0\0\0\0" and raw[3] == 0  # no time stamp and no name in the gzip header


def test_same_bytes_twice(tmp_path):
    for name in "ab":
        write_image(tmp_path / f"{name}.nii.gz", asymmetric()[None], Geometry.of((7, 9, 11)))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_like_copies_the_grid_and_code(tmp_path):
    image = nib.Nifti1Image(asymmetric(), np.diag([1.0, 1.5, 2.0, 1.0]))
    image.set_sform(image.affine, 4)
    image.set_qform(image.affine, 4)
    nib.save(image, tmp_path / "image.nii.gz")
    near = Geometry.of((7, 9, 11), (1.0, 1.5, 2.0 + 1e-6))
    write_labels(tmp_path / "a.nii.gz", asymmetric() // 100, near, like=tmp_path / "image.nii.gz")
    back = nib.load(tmp_path / "a.nii.gz")
    assert np.array_equal(back.affine, image.affine) and int(back.header["sform_code"]) == 4
    with pytest.raises(GeometryError, match="grid is not that of"):
        write_labels(tmp_path / "a.nii.gz", asymmetric(), Geometry.of((7, 9, 11)), like=tmp_path / "image.nii.gz")


def test_sheared_grids_are_not_written(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.1
    for name in ("a.nii.gz", "a.mha", "a.nrrd"):
        with pytest.raises(GeometryError, match="shear"):
            write_image(tmp_path / name, asymmetric()[None], Geometry((7, 9, 11), affine))
        assert not (tmp_path / name).exists()
