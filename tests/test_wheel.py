"""What is installed from a wheel: every module and the annotator's page, and nothing of the checkout beside them."""

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "src" / "vesalius" / "serve" / "page"
BUILD = "from setuptools.build_meta import build_wheel; build_wheel('.')"


@pytest.mark.skipif(not (PAGE / "index.html").exists(), reason="the page is not built: make setup")
def test_a_wheel_holds_every_module_and_the_page(tmp_path):
    shutil.copytree(ROOT / "src" / "vesalius", tmp_path / "src" / "vesalius", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {p.relative_to(tmp_path / "src").as_posix() for p in (tmp_path / "src" / "vesalius").rglob("*") if p.suffix == ".py"}
    page = {f"vesalius/serve/page/{p.relative_to(PAGE).as_posix()}" for p in PAGE.rglob("*") if p.is_file()}
    assert wanted | page == held
