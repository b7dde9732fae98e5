"""The wheel holds every module, the templates, py.typed and the licence, and nothing else of this repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built with what is installed (nothing is downloaded), from a copy, since setuptools writes beside its sources."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(copy),
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    done = subprocess.run([*command, "-w", str(out)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    assert path.name == f"secateur-{PROJECT['version']}-py3-none-any.whl"
    return zipfile.ZipFile(path)


def test_it_holds_every_file_of_the_package_and_no_other(wheel: zipfile.ZipFile) -> None:
    source = ROOT / "src"
    ours = {
        p.relative_to(source).as_posix()
        for p in (source / "secateur").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == ours
    assert {"secateur/py.typed", "secateur/report/templates/page.html"} <= held


def test_its_metadata_is_complete(wheel: zipfile.ZipFile) -> None:
    info = f"secateur-{PROJECT['version']}.dist-info"
    said = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert (
        said["License-Expression"] == "Apache-2.0" and said["Requires-Python"] == PROJECT["requires-python"]
    )
    assert set(said.get_all("Provides-Extra") or []) == set(PROJECT["optional-dependencies"])
    assert said["Description-Content-Type"] == "text/markdown" and "# secateur" in str(said.get_payload())
    assert "secateur = secateur.cli.main:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert f"{info}/licenses/LICENSE" in wheel.namelist()


def test_the_version_is_said_once_and_twice_the_same(wheel: zipfile.ZipFile) -> None:
    import secateur

    assert secateur.__version__ == PROJECT["version"]
    assert "__version__" in wheel.read("secateur/__init__.py").decode()
