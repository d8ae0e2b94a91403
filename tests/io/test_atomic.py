"""Half a file never exists: after a failure, a kill or a full disk the old content is there, whole."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from vesalius.core.errors import DataError, ResourceError
from vesalius.core.geometry import Geometry
from vesalius.io import atomic, atomic_write_bytes, atomic_write_json, atomic_write_text, write_image


def test_success_and_failure(tmp_path):
    path = tmp_path / "new" / "a.txt"
    atomic_write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".txt"
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
    with pytest.raises(KeyboardInterrupt), atomic(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"new" and list(path.parent.iterdir()) == [path]


def test_json_is_strict(tmp_path):
    atomic_write_json(tmp_path / "a.json", {"ä": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ä": [1, 2.5, None]}
    for bad in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises(DataError, match="JSON"):
            atomic_write_json(tmp_path / "a.json", bad)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ä": [1, 2.5, None]}


def test_a_folder_in_the_way(tmp_path):
    with pytest.raises(DataError, match="folder stands"):
        atomic_write_text(tmp_path, "x")


def test_too_little_space_is_said_beforehand(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(ResourceError, match=r"disk is full.*MB free, 1000000000\.0 MB needed"), atomic(path, size=10**15):
        raise AssertionError("never entered")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


LIMITED = """
import resource, sys, numpy as np
from vesalius.core.errors import ResourceError
from vesalius.core.geometry import Geometry
from vesalius.io import write_image
data = np.random.default_rng(0).integers(0, 60000, (1, 40, 40, 40)).astype(np.uint16)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    write_image(sys.argv[1], data, Geometry.of((40, 40, 40)))
except ResourceError as error:
    print(error)
"""


@pytest.mark.parametrize("extension", [".nii.gz", ".nii", ".npz", ".npy", ".mha", ".nrrd"])
@pytest.mark.parametrize("limit", [0, 1000, 60000])
def test_a_disk_that_fills_up(tmp_path, extension, limit):
    """The file size limit stands for a full disk: the write fails in its first, a middle or its last part."""
    path = tmp_path / f"a{extension}"
    write_image(path, np.ones((1, 2, 2, 2), np.uint8), Geometry.of((2, 2, 2)))
    old = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path), str(limit)], capture_output=True, text=True)
    assert ("could not be written" if extension in (".mha", ".nrrd") else "disk is full") in done.stdout and done.returncode == 0, (
        done.stderr
    )
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


LOOP = """
import sys
from vesalius.io import atomic_write_bytes
k = 0
print("ready", flush=True)
while True:
    k = (k + 1) % 256
    atomic_write_bytes(sys.argv[1], bytes([k]) * 300_000)
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_killed_at_any_moment(tmp_path):
    path = tmp_path / "a.bin"
    for k in range(6):
        process = subprocess.Popen([sys.executable, "-c", LOOP, str(path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.02 + 0.013 * k)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if path.exists():
            content = path.read_bytes()
            assert len(content) == 300_000 and len(set(content)) == 1


def test_import_is_light():
    heavy = ("torch", "SimpleITK", "nibabel", "pydicom", "h5py", "PIL", "scipy")
    code = f"import sys, vesalius.io; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
