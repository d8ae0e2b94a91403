"""MHA and NRRD: promises are held against the bytes before ITK allocates, and detached data stay in the folder."""

import re
import tracemalloc

import numpy as np
import pytest
import SimpleITK as sitk

from vesalius.core.errors import DataError, GeometryError
from vesalius.core.geometry import Geometry
from vesalius.io import read_image, write_image

from .made import asymmetric

MHA = "ObjectType = Image\nNDims = 3\nDimSize = {sides}\nElementSpacing = {spacing}\nElementType = MET_UCHAR\nElementDataFile = {file}\n"
NRRD = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: {sides}\nspacings: {spacing}\nencoding: raw\n{file}\n"


def made(folder, kind, sides="2 3 4", spacing="1 1 1", file=None, body=bytes(range(24))):
    if kind == "mha":
        text = MHA.format(sides=sides, spacing=spacing, file=file or "LOCAL")
    else:
        text = NRRD.format(sides=sides, spacing=spacing, file=f"data file: {file}\n" if file else "")
    (folder / f"a.{kind}").write_bytes(text.encode() + body)
    return folder / f"a.{kind}"


@pytest.mark.parametrize("kind", ["mha", "nrrd"])
def test_raw_and_detached(tmp_path, kind):
    assert np.array_equal(read_image(made(tmp_path, kind)).data[0], np.arange(24).reshape(4, 3, 2).T)
    (tmp_path / "b.raw").write_bytes(bytes(range(24)))
    assert np.array_equal(read_image(made(tmp_path, kind, file="b.raw", body=b"")).data[0], np.arange(24).reshape(4, 3, 2).T)


@pytest.mark.parametrize("kind", ["mha", "nrrd"])
@pytest.mark.parametrize("file", ["../../etc/passwd", "/etc/passwd", "LIST", "slice%03d.raw 1 4 1"])
def test_detached_data_outside(tmp_path, kind, file):
    folder = tmp_path / "in"
    folder.mkdir()
    with pytest.raises(DataError, match="outside|several files"):
        read_image(made(folder, kind, file=file, body=b""))
    (folder / "link.raw").symlink_to("/etc/passwd")
    with pytest.raises(DataError, match="outside"):
        read_image(made(folder, kind, file="link.raw", body=b""))


@pytest.mark.parametrize("kind", ["mha", "nrrd"])
def test_promises_beyond_the_file(tmp_path, kind):
    tracemalloc.start()
    for sides in ("32767 32767 32767", "2 3 5"):
        with pytest.raises(DataError, match="promised"):
            read_image(made(tmp_path, kind, sides=sides))
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()
    for sides in ("2 -3 4", "2 0 4", "", "a b c"):
        with pytest.raises(DataError, match="impossible"):
            read_image(made(tmp_path, kind, sides=sides))


@pytest.mark.parametrize("kind", ["mha", "nrrd"])
@pytest.mark.parametrize("spacing", ["1 0 1", "1 nan 1", "1 1 1e9"])
def test_impossible_spacing(tmp_path, kind, spacing):
    with pytest.raises((DataError, GeometryError)):
        read_image(made(tmp_path, kind, spacing=spacing))


@pytest.mark.parametrize("kind", ["mha", "nrrd"])
def test_damaged_compressed_data(tmp_path, kind):
    data = np.random.default_rng(0).integers(0, 99, (1, 20, 21, 22)).astype(np.int16)
    path = tmp_path / f"a.{kind}"
    write_image(path, data, Geometry.of((20, 21, 22)))
    whole = path.read_bytes()
    start = whole.index(b"LOCAL\n") + 6 if kind == "mha" else whole.index(b"\n\n") + 2
    for at in np.random.default_rng(1).integers(start + 12, len(whole), 25):
        broken = bytearray(whole)
        broken[at] ^= 0x20
        path.write_bytes(broken)
        with pytest.raises(DataError):
            read_image(path)
    for keep in (0.5, 0.99):
        path.write_bytes(whole[: int(start + (len(whole) - start) * keep)])
        with pytest.raises(DataError):
            read_image(path)


def test_asymmetric_object_from_text_header(tmp_path):
    """LPS+ in the file: x and y change sign, z does not."""
    data = asymmetric().astype(np.uint8)
    head = MHA.format(sides="7 9 11", spacing="1 2 3", file="LOCAL").replace("ElementType", "Offset = 10 20 30\nElementType")
    (tmp_path / "a.mha").write_bytes(head.encode() + data.T.tobytes())
    image = read_image(tmp_path / "a.mha")
    assert np.array_equal(image.data[0], data)
    assert np.allclose(image.geometry.affine, [[-1, 0, 0, -10], [0, -2, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]])


@pytest.mark.parametrize("size", [b"= 10", b"= 0", b"x= 10"])
def test_a_wrong_compressed_size_changes_nothing(tmp_path, size):
    """ITK answers it with zeros or noise."""
    write_image(tmp_path / "a.mha", asymmetric()[None], Geometry.of((7, 9, 11)))
    content = re.sub(rb"CompressedDataSize = \d+", b"CompressedDataSize " + size, (tmp_path / "a.mha").read_bytes())
    (tmp_path / "a.mha").write_bytes(content)
    assert np.array_equal(read_image(tmp_path / "a.mha").data[0], asymmetric())


@pytest.mark.parametrize("kind", [sitk.sitkInt8, sitk.sitkUInt16, sitk.sitkInt32, sitk.sitkInt64, sitk.sitkFloat64, sitk.sitkVectorUInt8])
@pytest.mark.parametrize("compress", [False, True])
def test_types_written_by_itk(tmp_path, kind, compress):
    image = sitk.Image([3, 4, 5], kind)
    for k in range(60):
        index = (k % 3, k // 3 % 4, k // 12)
        image[index] = (k, k + 1, k + 2) if kind == sitk.sitkVectorUInt8 else k
    sitk.WriteImage(image, str(tmp_path / "a.mha"), useCompression=compress)
    array, data = sitk.GetArrayFromImage(image), read_image(tmp_path / "a.mha").data
    assert data.dtype == array.dtype and np.array_equal(data[0], (array[..., 0] if array.ndim == 4 else array).T)


def test_big_endian(tmp_path):
    data = asymmetric()
    head = (
        MHA.format(sides="7 9 11", spacing="1 2 3", file="LOCAL")
        .replace("UCHAR", "SHORT")
        .replace("ElementT", "BinaryDataByteOrderMSB = True\nElementT")
    )
    (tmp_path / "a.mha").write_bytes(head.encode() + data.T.astype(">i2").tobytes())
    read = read_image(tmp_path / "a.mha").data
    assert read.dtype.isnative and np.array_equal(read[0], data)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.mha"))).T, data)
