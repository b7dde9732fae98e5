"""Each house rule is broken once in a small repository, and must be found at its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import house

HEAD = '"""What this file is for."""\n\nfrom __future__ import annotations\n\n'


def found(root: Path, name: str, text: str) -> list[str]:
    """Findings in a repository that holds one good file and `name`."""
    good = {"src/secateur/errors.py": HEAD, "src/secateur/__init__.py": ""}
    if name.startswith("src/"):
        good |= {str(Path(name).parent / "__init__.py"): ""}
    for path, content in {**good, name: text}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content, encoding="utf-8")
    return [str(f) for f in house.check(root)[0]]


def test_a_good_file_passes(tmp_path):
    assert (
        found(
            tmp_path,
            "src/secateur/core/select.py",
            HEAD + "import torch\nfrom secateur.errors import BadInput\n",
        )
        == []
    )


BROKEN = {
    "long file": ("src/secateur/io/a.py", HEAD + "x = 1\n" * 400, ":401: 404 lines"),
    "long function": ("tools/a.py", "def f():\n" + "    x = 1\n" * 60, ":1: f has 61 lines"),
    "large core": (
        "src/secateur/core/a.py",
        HEAD + "x = 1\n" * 1100,
        "src/secateur/core:1: 1104 lines in all",
    ),
    "core imports numpy": ("src/secateur/core/a.py", HEAD + "import numpy as np\n", ":5: core imports numpy"),
    "core imports engine": (
        "src/secateur/core/a.py",
        HEAD + "from secateur.engine import run\n",
        ":5: core imports secateur.engine",
    ),
    "io imports engine": (
        "src/secateur/io/a.py",
        HEAD + "def f():\n    import secateur.engine.run\n",
        ":6: io imports",
    ),
    "relative import": (
        "src/secateur/signals/a.py",
        HEAD + "from ..cli import main\n",
        ":5: signals imports secateur.cli",
    ),
    "import of a folder": (
        "src/secateur/engine/a.py",
        HEAD + "from secateur import cli\n",
        ":5: engine imports secateur.cli",
    ),
    "unplaced folder": (
        "src/secateur/extra/a.py",
        HEAD + "import secateur.core\n",
        ":5: the folder extra has no place",
    ),
    "pickle": ("src/secateur/io/a.py", HEAD + "import pickle\n", ":5: imports pickle"),
    "yaml inside a function": (
        "src/secateur/io/a.py",
        HEAD + "def f():\n    from yaml import load\n",
        ":6: imports yaml",
    ),
    "eval": ("src/secateur/io/a.py", HEAD + "x = eval('1')\n", ":5: calls eval"),
    "torch.load": (
        "src/secateur/io/a.py",
        HEAD + "import torch\nx = torch.load('f')\n",
        ":6: calls torch.load",
    ),
    "weights_only": (
        "src/secateur/io/a.py",
        HEAD + "x = f(\n    weights_only=False)\n",
        ":6: weights_only=False",
    ),
    "not Python": ("tools/a.py", "def f():\nx = 1\n", ":2: is not Python"),
    "unfinished": ("src/secateur/io/a.py", HEAD + "x = 1  # TO" + "DO later\n", ":5: unfinished"),
    "no docstring": ("src/secateur/io/a.py", "x = 1\n", ":1: no module docstring"),
    "method without test": ("src/secateur/methods/weights/a.py", HEAD, ":1: a method without its test"),
    "test without assertion": (
        "tests/test_a.py",
        "def test_a():\n    print(1)\n",
        ":1: test_a asserts nothing",
    ),
    "registry": ("README.md", "\nsee https://pypi" + ".org/simple\n", ":2: names a package registry"),
    "index option": ("Makefile", "pip install --index" + "-url x\n", ":1: names a package registry"),
    "long decision": ("docs/decisions/001-a.md", "x\n" * 41, ":41: 41 lines"),
}


@pytest.mark.parametrize("name,text,expected", BROKEN.values(), ids=BROKEN)
def test_each_rule_bites(tmp_path, name, text, expected):
    lines = found(tmp_path, name, text)
    assert any(expected in line for line in lines), lines
    assert all(line.startswith((name + ":", "src/secateur/core:")) for line in lines), lines


def test_groups_of_methods_do_not_import_one_another(tmp_path):
    text = HEAD + "from secateur.methods.channels import flap\nfrom secateur.methods.weights import wanda\n"
    lines = found(tmp_path, "src/secateur/methods/weights/a.py", text)
    assert [line for line in lines if "groups" in line] == [
        "src/secateur/methods/weights/a.py:5: methods/weights imports secateur.methods.channels: "
        "groups do not import one another"
    ]


@pytest.mark.parametrize(
    "body",
    [
        "assert f()",
        "torch.testing.assert_close(a, b)",
        "with pytest.raises(ValueError):\n        f()",
        "helper(3)",
        "subprocess.run(command, check=True)",
    ],
)
def test_what_counts_as_an_assertion(tmp_path, body):
    text = f"def helper(x):\n    assert x\n\ndef test_a():\n    {body}\n"
    assert found(tmp_path, "tests/test_a.py", text) == []


def test_model_eval_and_words_about_pickle_are_fine(tmp_path):
    text = '"""No pickle, no eval(), no yaml here."""\n\nfrom __future__ import annotations\n\nmodel.eval()\n'
    assert found(tmp_path, "src/secateur/io/a.py", text) == []


def test_a_folder_that_no_wheel_would_hold(tmp_path):
    (tmp_path / "src/secateur/io").mkdir(parents=True)
    (tmp_path / "src/secateur/io/a.py").write_text(HEAD)
    assert [str(f) for f in house.check(tmp_path)[0]] == [
        "src/secateur/io/a.py:1: its folder has no __init__.py, so no wheel would hold it"
    ]


def test_the_wrong_folder_is_not_a_pass(tmp_path, capsys):
    assert house.main([str(tmp_path)]) == 1
    assert "is this the root" in capsys.readouterr().out
