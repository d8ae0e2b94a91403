"""Arrays by name in .npz, .h5 and .npy: addressed, shaped, held against the file's size, and never unpickled."""

import io
import pickle
import warnings
import zipfile

import h5py
import numpy as np
import pytest

from vesalius.core.errors import DataError
from vesalius.core.geometry import Geometry
from vesalius.io import VesaliusNote, header, read_image, read_labels, sniff, write_labels

RNG = np.random.default_rng(0)
VOLUME = RNG.normal(size=(4, 5, 6)).astype(np.float32)


def read(address, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VesaliusNote)
        image = read_image(address, **options)
        assert header(address, **options) == (image.data.shape, image.geometry, image.data.dtype)
    return image


@pytest.fixture
def store(tmp_path):
    arrays = {
        "volume": VOLUME,
        "plane": VOLUME[0],
        "colour": RNG.integers(0, 255, (5, 6, 3)).astype(np.uint8),
        "many": RNG.integers(0, 255, (3, 5, 6)).astype(np.uint8),
        "channels": RNG.normal(size=(2, 4, 5, 6)),
        "big": VOLUME.astype(">f4"),
    }
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, array in arrays.items():
            file.create_dataset(f"group/{name}" if name == "plane" else name, data=array, compression="gzip")
    return tmp_path, arrays


@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_addresses_and_shapes(store, kind):
    folder, arrays = store
    at = lambda key: f"{folder}/a.{kind}:{key}"
    assert np.array_equal(read(at("volume")).data, VOLUME[None])
    assert read(at("volume"), spacing=(3, 2, 1)).geometry.spacing == (3, 2, 1)
    assert np.array_equal(read(at("plane" if kind == "npz" else "group/plane")).data, VOLUME[:1])
    assert np.array_equal(read(at("colour")).data, np.moveaxis(arrays["colour"], -1, 0))
    assert np.array_equal(read(at("many[2]")).data, arrays["many"][2:])
    assert np.array_equal(read(at("channels")).data, arrays["channels"]) and read(at("channels")).data.dtype == np.float64
    assert read(at("big")).data.dtype.isnative and np.array_equal(read(at("big")).data[0], VOLUME)
    for key, word in (("volum", "Did you mean 'volume'"), ("many[3]", "out of range")):
        with pytest.raises(DataError, match=word):
            read(at(key))
    with pytest.raises(DataError, match="several arrays"):
        read(f"{folder}/a.{kind}")
    with pytest.raises(DataError, match="another number of axes"):
        read(at("volume"), spacing=(1, 1))


def test_npy(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(VOLUME))
    assert np.array_equal(read(tmp_path / "a.npy").data[0], VOLUME) and sniff(tmp_path / "a.npy") == "npy"
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-5])
    with pytest.raises(DataError, match="truncated"):
        read(tmp_path / "a.npy")


def test_a_changed_file_is_read_anew(tmp_path):
    for k in range(3):
        np.savez(tmp_path / "a.npz", x=np.full((k + 2, 3), k))
        assert (read(f"{tmp_path}/a.npz:x").data == k).all()


class Evil:
    fired = False

    def __reduce__(self):
        return (_fire, ())


def _fire():
    Evil.fired = True


def test_objects_are_never_unpickled(tmp_path):
    evil = np.array([Evil()], dtype=object)
    np.save(tmp_path / "a.npy", evil, allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=evil)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Evil()))
    for address, word in ((tmp_path / "a.npy", "objects"), (f"{tmp_path}/a.npz:x", "objects"), (tmp_path / "a.pkl", "no format")):
        with pytest.raises(DataError, match=word):
            read(address)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=["text"], dtype=h5py.string_dtype())
    with pytest.raises(DataError, match="objects"):
        read(f"{tmp_path}/a.h5:x")
    assert not Evil.fired


def test_promises_beyond_the_file(tmp_path):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (32767, 32767, 32767)})
    (tmp_path / "a.npy").write_bytes(head.getvalue() + b"\0" * 64)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", head.getvalue() + b"\0" * 64)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", shape=(32767, 32767, 32767), chunks=(64, 64, 64), dtype="f8", compression="gzip")
    for address in (tmp_path / "a.npy", f"{tmp_path}/a.npz:x", f"{tmp_path}/a.h5:x"):
        with pytest.raises(DataError, match="promised"):
            read(address)


def test_damaged_containers(store):
    folder, _ = store
    for kind in ("npz", "h5"):
        path = folder / f"a.{kind}"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(DataError, match="damaged or truncated"):
            read(f"{path}:volume")


def test_a_flipped_bit_in_an_npz(store):
    folder, _ = store
    content = bytearray((folder / "a.npz").read_bytes())
    content[300] ^= 4
    (folder / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        read(f"{folder}/a.npz:volume")


def test_external_data_are_not_followed(tmp_path):
    (tmp_path / "outside.raw").write_bytes(b"\0" * 400)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", shape=(10, 10), dtype="f4", external=[(str(tmp_path / "outside.raw"), 0, 400)])
        file["y"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")
        file["z"] = h5py.SoftLink("/nowhere")
    for key, word in (("x", "another file"), ("y", "another file|no array"), ("z", "no array")):
        with pytest.raises(DataError, match=word):
            read(f"{tmp_path}/a.h5:{key}")


def test_our_npz_keeps_the_grid(tmp_path):
    label, geometry = RNG.integers(0, 3, (4, 5, 6)), Geometry.of((4, 5, 6), (1, 2, 3), (7, 8, 9))
    write_labels(tmp_path / "a.npz", label, geometry, names="abc")
    back = read_labels(tmp_path / "a.npz", values=range(3), names="abc")
    assert back.geometry == geometry and np.array_equal(back.data, label)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert archive["vesalius_names"].tolist() == ["a", "b", "c"]
