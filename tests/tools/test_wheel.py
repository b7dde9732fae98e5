"""The wheel holds every module, the templates, py.typed and the licence, the kernels where they could be compiled, and
nothing else of this repository.
"""

from __future__ import annotations

import os
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


KERNELS = "secateur/runtime/kernels/libsecateur_kernels.so"


def build(folder: Path, **environment: str) -> Path:
    """A wheel built with what is installed (nothing is downloaded) from a copy without what git ignores."""
    copy = folder / "copy"
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
    shutil.copytree(ROOT / "src", copy / "src", ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE", "CMakeLists.txt"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "-w", str(folder), str(copy)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """As on a machine whose C compiler does not work, which is quick."""
    path = build(tmp_path_factory.mktemp("wheel"), CC="/bin/false")
    assert path.name == f"secateur-{PROJECT['version']}-py3-none-any.whl"
    return zipfile.ZipFile(path)


def ours() -> set[str]:
    """Every file of the package but the sources of the kernels and what was compiled of them."""
    source = ROOT / "src"
    found = (p for p in (source / "secateur").rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(source).as_posix() for p in found if p.suffix not in (".c", ".h", ".so")}


def held(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def test_it_holds_every_file_of_the_package_and_no_other(wheel: zipfile.ZipFile) -> None:
    assert held(wheel) == ours()
    assert {"secateur/py.typed", "secateur/report/templates/page.html"} <= held(wheel)


@pytest.mark.slow
def test_with_a_compiler_it_holds_the_kernels_too(tmp_path: Path) -> None:
    if shutil.which(os.environ.get("CC", "cc")) is None:
        pytest.skip("no C compiler here")
    path = build(tmp_path)
    assert path.name.startswith(f"secateur-{PROJECT['version']}-py3-none-") and "-any" not in path.name
    with zipfile.ZipFile(path) as wheel:
        assert held(wheel) == ours() | {KERNELS}
        assert wheel.read(KERNELS)[:4] in (b"\x7fELF", b"\xcf\xfa\xed\xfe")


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
