"""Every command and every Python block that README.md and docs/ show is run, and must succeed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.commands import ROOT, Block, Session, blocks, commands, documents, output, promise
from tests.docs.tiny import tiny_model

DOCUMENTS = documents()
NAMES = [p.relative_to(ROOT).as_posix() for p in DOCUMENTS]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("docs") / "tiny")


@pytest.fixture
def empty_folder(tmp_path: Path) -> Iterator[Path]:
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_document_with_the_tiny_model(document: Path, empty_folder: Path, tiny: Path) -> None:
    session, ran = Session(empty_folder, tiny), 0
    for block in blocks(document.read_text("utf-8")):
        if not block.slow and not block.not_run:
            session.run(block)
            ran += 1
    assert ran or all(b.slow or b.not_run for b in blocks(document.read_text("utf-8")))


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_document_as_printed(document: Path, empty_folder: Path) -> None:
    session = Session(empty_folder, None)
    todo = [b for b in blocks(document.read_text("utf-8")) if not b.not_run]
    assert todo
    for block in todo:
        session.run(block)


TEXT = """Words.

```bash
secateur list  # all of them
secateur compress smollm2-135m wanda \\
    --out cut
```

<!-- slow -->

```console
$ secateur demo
a line of output
```
<!-- not run: needs a hub -->
```python
1 / 0
```

1. in a list

    ```toml title="recipe.toml"
    model = "smollm2-135m"
    name = "smollm2-135m-cut"
    ```
"""


def test_blocks_are_found_with_their_lines_and_notes() -> None:
    bash, console, python, recipe = blocks(TEXT)
    assert commands(bash) == [
        (4, "secateur list  # all of them"),
        (5, "secateur compress smollm2-135m wanda --out cut"),
    ]
    assert console.slow and commands(console) == [(12, "secateur demo")]
    assert python.not_run == "needs a hub" and not python.slow
    assert recipe.title == "recipe.toml" and recipe.text.startswith("model =") and not recipe.slow


def test_the_tiny_model_stands_for_the_name_only(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    Session(tmp_path / "work", tmp_path).run(blocks(TEXT)[-1])
    assert (tmp_path / "work" / "recipe.toml").read_text() == 'model = "tiny"\nname = "smollm2-135m-cut"\n'


def test_a_failing_block_fails_and_says_its_line(tmp_path: Path) -> None:
    session = Session(tmp_path, None)
    session.run(Block("python", "x = 1", 3))
    with pytest.raises(AssertionError, match=r"line 7(.|\n)*ZeroDivisionError"):
        session.run(Block("python", "x / 0", 7))
    with pytest.raises(AssertionError, match=r"line 9: rm -r x left with 1"):
        session.run(Block("bash", "rm -r x", 9))


ERRORS = """<!-- leaves with 2 -->
```console
$ secateur list --unit wieght
secateur: list: no method has unit 'wieght'; did you mean 'weight'?
$ secateur lst
secateur: no command 'lst'; did you mean 'list'?
```
"""


def test_what_a_failing_command_prints_is_compared(tmp_path: Path) -> None:
    session = Session(tmp_path, None)
    (block,) = blocks(ERRORS)
    assert block.status == 2 and output(block, 5).endswith("'list'?")
    session.run(block)
    with pytest.raises(AssertionError, match=r"shows\n.*'lost'"):
        session.run(blocks(ERRORS.replace("'list'", "'lost'"))[0])
    with pytest.raises(AssertionError, match="left with 2"):
        session.run(blocks(ERRORS.replace("leaves with 2", "leaves with 0"))[0])


@pytest.mark.parametrize(
    "line,status",
    [
        ("make demo", 0),
        ("make demo QUICK=1", 0),
        ("make nothing", 1),
        ("pip install -c constraints.txt .[hf,cli]", 0),
        ("pip install secateur[nothing]", 1),
        ("pip install -r missing.txt", 1),
        ("curl somewhere", 1),
    ],
)
def test_lines_that_set_up_a_machine_name_real_things(line: str, status: int) -> None:
    assert promise(line.split())[0] == status
