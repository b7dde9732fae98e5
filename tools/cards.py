"""Write docs/cards/: one page for each registered method, and their table, from the registry and the docstrings.

    python tools/cards.py            writes the pages
    python tools/cards.py --check    writes nothing; status 1 where a page is not what would be written

The pages are checked in, so that the docs can be read without building them; a test holds them to the registry.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from pathlib import Path
from typing import Any

from secateur.apply.heads import Features
from secateur.apply.training import Training
from secateur.registry import find, names

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "cards"
MARK = "<!-- written by tools/cards.py from the method's file: change that, then run `make fix` -->"
INTRODUCTION = """\
`secateur list` prints this table, with filters. Every method passes [the battery](../check.md) and equals a slow
rendering of its formula; what each costs stands in [quality](../quality.md) and [speed](../speed.md)."""
SPECIAL = {"lottery_ticket": ", rounds=2", "cards": ", rounds=2"}  # 486 steps are three trainings
CHOSEN = "[choose features](../features.md)"
OPEN = {
    "slr_avd": ", lam=0.05",
    "linear_probe": ", C=1.0",
    "ridge_probe": ", alpha=0.01",
}  # else chosen on held-out shots
CHOOSE = """\
`secateur features fit --method {name} ...` fits it on a model's embeddings or on stored ones
([choose features](../features.md)). From Python:
"""
TRAINED = "[cut while training](../training.md)"
RECIPE = """\
A recipe has `[method]` with `name = "{name}"` and the settings above as keys; `secateur train RECIPE.toml` runs it
([cut while training](../training.md)). From Python:
"""
KINDS = {
    "Pattern": "pattern",
    "float": "number",
    "int": "whole number",
    "bool": "switch",
}  # first match in the annotation


def main(argv: list[str]) -> int:
    pages = render_all()
    stale = [
        n
        for n, text in pages.items()
        if not (FOLDER / n).is_file() or (FOLDER / n).read_text("utf-8") != text
    ]
    strays = [p.name for p in FOLDER.glob("*.md") if p.name not in pages]
    if "--check" in argv:
        for name in stale + strays:
            print(f"docs/cards/{name}: not what tools/cards.py writes; run `make fix`")
        return 1 if stale or strays else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (FOLDER / name).write_text(pages[name], encoding="utf-8")
    for name in strays:
        (FOLDER / name).unlink()
    print(f"cards: {len(pages)} pages, {len(stale)} written, {len(strays)} removed")
    return 0


def render_all() -> dict[str, str]:
    """File name -> text of every page."""
    return {"index.md": index(), **{f"{name}.md": card(name) for name in names()}}


def index() -> str:
    """The table of all methods."""
    rows = []
    for name in names():
        cls = find(name)
        title, _ = _module_docstring(cls)
        changes = "yes" if _updates(cls) else "no"
        facts = [f"[`{name}`]({name}.md)", _cell(title), cls.card.unit, cls.card.when, _needs(cls), changes]
        rows.append(f"| {' | '.join(facts)} |")
    head = ["| method | what it does | unit | when | needs | changes kept weights |", "|" + " --- |" * 6]
    return "\n".join([MARK, "# Methods", "", INTRODUCTION, "", *head, *rows, ""])


def card(name: str) -> str:
    """The page of one method."""
    cls = find(name)
    trains, chooses = issubclass(cls, Training), issubclass(cls, Features)
    measures = not trains and cls.needs is not None
    title, body = _module_docstring(cls)
    facts = [
        ("unit", str(cls.card.unit)),
        ("when", f"{cls.card.when} training"),
        ("needs", _needs(cls)),
        ("changes kept weights", "yes" if _updates(cls) else "no"),
        *(_measuring(cls) if measures else []),
        ("criterion", f"`{cls.card.criterion}`"),
        ("start, topology, purpose", f"{cls.card.start}, {cls.card.topology}, {cls.card.purpose}"),
        ("paper", cls.card.paper),
        (
            "measured",
            TRAINED if trains else CHOSEN if chooses else "[quality](../quality.md), [speed](../speed.md)",
        ),
        ("file", f"`src/{cls.__module__.replace('.', '/')}.py`"),
    ]
    lines = [MARK, f"# {name}", "", title[0].upper() + title[1:], "", "| | |", "| --- | --- |"]
    lines += [f"| {key} | {_cell(value)} |" for key, value in facts]
    lines += ["", "## The formula", "", "```text", body, "```", "", "## Settings", ""]
    lines += ["| flag | kind | default | meaning |", "| --- | --- | --- | --- |", *_settings(cls)]
    if trains:
        lines[-1:] = [lines[-1], "", "## Run it", "", RECIPE.format(name=name), *_python(name)]
        return "\n".join(lines)
    if chooses:
        return "\n".join([*lines, "", "## Run it", "", CHOOSE.format(name=name), *_choose(name)])
    lines += [
        "",
        "## Run it",
        "",
        "```bash",
        f"secateur compress smollm2-135m {name} --sparsity 0.5{' --samples 16' * measures} --out {name}-50",
        "```",
    ]
    call = f"secateur.{cls.__name__}(sparsity=0.5){', samples=16' * measures}"
    lines += ["", "```python", "import secateur", ""]
    lines += [f'secateur.compress("smollm2-135m", {call}, out="{name}-python")', "```", ""]
    return "\n".join(lines)


def _choose(name: str) -> list[str]:
    """A fit on the digits, whose pixels stand for embeddings, that the tests run."""
    return [
        "```python",
        "import torch",
        "import torch.nn.functional as F",
        "from secateur.apply.heads import Shots, Texts",
        "from secateur.io.images import load_images",
        "from secateur.registry import make",
        "",
        'data = load_images("digits", "train")',
        "rows = torch.from_numpy(data.images).flatten(1).float()",
        "middle, labels = rows.mean(0), torch.from_numpy(data.labels)",
        "shots = Shots(F.normalize(rows - middle, dim=1), labels)",
        "means = torch.stack([shots.embeddings[labels == digit].mean(0) for digit in range(10)])",
        "prompts = F.normalize(means, dim=1)",
        'words = tuple(f"looks like {digit}" for digit in range(10))',
        "texts = Texts(data.classes, prompts, words, prompts, torch.arange(10), scale=20.0)",
        f'head = make("{name}"{OPEN.get(name, "")}).fit(texts, shots)',
        "print((head.logits(shots.embeddings).argmax(1) == labels).float().mean())",
        "```",
        "",
    ]


def _python(name: str) -> list[str]:
    """A training of a few seconds that the tests run."""
    call = f'secateur.make("{name}", sparsity=0.8{SPECIAL.get(name, "")})'
    return [
        "```python",
        "import secateur",
        "from secateur.engine.train import Fit",
        "from secateur.training import TrainingRecipe",
        "",
        "how = Fit(epochs=6, batch=16, lr=0.02)",
        f"method = {call}",
        'done = secateur.train(TrainingRecipe("mlp-32", "digits", method, how))',
        'print(done.figures["accuracy"], done.figures["density"])',
        "```",
        "",
    ]


def _updates(cls: type[Any]) -> bool:
    return getattr(cls, "updates", True) and not issubclass(cls, Features)


def _module_docstring(cls: type[Any]) -> tuple[str, str]:
    """What the method's file says at its top: the sentence after the name, and the rest."""
    text = (importlib.import_module(cls.__module__).__doc__ or "").strip()
    first, _, rest = text.partition("\n")
    return first.partition(": ")[2].strip(), rest.strip("\n")


def _needs(cls: type[Any]) -> str:
    if issubclass(cls, Features):
        return "labelled images" if cls.learns else "nothing"
    if issubclass(cls, Training):
        return "dense gradients now and then" if cls.rewires else "nothing"
    return "nothing" if cls.needs is None else re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cls.needs.__name__).lower()


def _measuring(cls: type[Any]) -> list[tuple[str, str]]:
    """How a method that looks at data is fed unless one says otherwise."""
    products = "bfloat16 where the CPU has it, else float32" if cls.rounds else "float32"
    return [
        ("fed by default", f"`{cls.feed}` ([feeds](../feeds.md))"),
        ("calibration products by default", products),
    ]


def _settings(cls: type[Any]) -> list[str]:
    """One row for each field, in order, its meaning from the `Args:` of the class or of its bases."""
    meanings: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        meanings |= _arguments(base.__doc__ or "")
    rows = []
    for field in dataclasses.fields(cls):
        default = "" if field.default in (None, dataclasses.MISSING) else f"`{field.default}`"
        default = "off" if field.default is False else default
        kind = next((kind for word, kind in KINDS.items() if word in str(field.type)), "text")
        flag = "--" + field.name.replace("_", "-")
        rows.append(f"| `{flag}` | {kind} | {default} | {_cell(meanings.get(field.name, ''))} |")
    return rows


def _arguments(docstring: str) -> dict[str, str]:
    """The `name: meaning` entries of a Google-style `Args:` section; `a, b: meaning` stands for both."""
    section = re.search(r"^\s*Args:\n(.*?)(?=^\s*\w+:\n|\Z)", docstring, re.S | re.M)
    out: dict[str, str] = {}
    if section is None:
        return out
    body = section[1]
    indent = min((len(line) - len(line.lstrip()) for line in body.splitlines() if line.strip()), default=0)
    current: list[str] = []
    for line in body.splitlines():
        entry = re.match(rf" {{{indent}}}(\w+(?:, \w+)*): (.*)", line)
        if entry:
            current = entry[1].split(", ")
            out |= dict.fromkeys(current, entry[2])
        elif line.strip():
            out |= {name: f"{out[name]} {line.strip()}" for name in current}
    return out


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
