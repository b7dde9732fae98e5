"""The method that CONTRIBUTING.md adds from nothing: its blocks as they stand there, its row, its card, its flags."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from secateur import registry
from secateur.check import check_method
from tests.docs.commands import ROOT, Block, blocks, in_process
from tools import cards

TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
OURS = "lint.isort.known-first-party = ['secateur', 'tests']"  # their files are not on the disk
FILES = {block.title: block for block in blocks(TEXT) if block.title}


def module(path: str, name: str) -> ModuleType:
    """The block with this title as an imported module."""
    made = ModuleType(name)
    made.__file__ = path
    sys.modules[name] = made
    exec(compile(FILES[path].text, path, "exec"), made.__dict__)
    return made


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Iterator[Block]:
    """The repository with the new method's file and its row in the table."""
    rows = re.findall(r'"(\w+)": "(secateur\.[\w.]+):(\w+)",', TEXT)
    assert len(rows) == 1
    name, path, cls = rows[0]
    title = f"src/{path.replace('.', '/')}.py"
    monkeypatch.setitem(sys.modules, path, ModuleType(path))  # taken out again afterwards
    module(title, path)
    monkeypatch.setitem(registry.TABLES["once"], name, f"{path}:{cls}")
    yield FILES[title]


def test_the_method_passes_its_own_test_and_the_battery(
    added: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "contributed_test", ModuleType("contributed_test"))
    test = module("tests/methods/weights/test_ria.py", "contributed_test")
    for name, value in list(vars(test).items()):
        if name.startswith("test_"):
            value()
    results = check_method("ria", oracle=test.oracle)
    assert [str(result) for result in results if result.status != "passed"] == []


def test_it_has_a_card_and_a_flag_and_is_listed(added: Block) -> None:
    assert "| `--power` | number | `0.5` | of the input norm" in cards.card("ria")
    assert "share of its row and of its column" in cards.index()
    status, said = in_process(["compress", "tiny", "ria", "--help"])
    assert status == 0 and "--power" in said
    status, said = in_process(["list"])
    assert status == 0 and re.search(r"^ria +weight +after +InputNorms", said, re.M)


def test_the_files_pass_the_linter() -> None:
    for path, block in FILES.items():
        command = [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--config",
            OURS,
            "--stdin-filename",
            str(ROOT / path),
            "-",
        ]
        done = subprocess.run(command, input=block.text + "\n", capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, f"{path}:\n{done.stdout}{done.stderr}"


def test_it_stays_short() -> None:
    code = sum(len(block.text.splitlines()) for block in blocks(TEXT))
    assert len(TEXT.splitlines()) - code <= 40
