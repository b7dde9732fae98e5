"""The house check: the rules of this repository that no linter knows, run by `make test`.

    python tools/house.py [ROOT]

Sizes (files, functions, the core), imports (the core's, and the one direction between folders), what the library never
uses (pickle, eval, YAML, tar), one test file for each method, an assertion in every test, no package registry named.
Prints `file:line: what is wrong` for each finding and leaves with status 1; otherwise one line and status 0.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILE_LINES, FUNCTION_LINES, CORE_LINES, DECISION_LINES = 400, 60, 1100, 40

# The one direction of imports: each folder of src/secateur (or file beside them) and what it may use.
_GROUND = {"errors", "core"}
_PARTS = _GROUND | {"registry", "sites", "signals", "apply", "recover", "losses"}
_METHODS = _PARTS | {"methods"}
_ENGINE = _METHODS | {"io", "engine", "runtime"}
_PROOF = _ENGINE | {"evaluate", "report", "robustness"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "registry": _GROUND,
    "core": _GROUND,
    "io": _GROUND | {"io"},
    **{folder: _PARTS for folder in ("sites", "signals", "apply", "recover", "losses")},
    "runtime": _PARTS | {"io", "runtime"},
    "methods": _METHODS,
    "engine": _ENGINE,
    **{folder: _PROOF for folder in ("evaluate", "report", "robustness")},
    "check": _PROOF | {"check"},
    "api": _PROOF,
    **{job: _PROOF | {"api"} for job in ("demo", "recipe")},
    "training": _PROOF | {"recipe"},
    "recovery": _PROOF,
    "features": _PROOF | {"features"},
    "estimator": _METHODS,
    "cli": _PROOF | {"check", "api", "demo", "recipe", "training", "recovery", "features", "cli", "__init__"},
    "__init__": _PROOF | {"check", "api", "training"},
    "__main__": {"cli"},
}

FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "tarfile",
    "yaml",
}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "torch.save"}
FORBIDDEN_KEYWORDS = {("weights_only", False), ("allow_pickle", True), ("trust_remote_code", True)}
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX)\b")
# Written in pieces, so that this file does not name what it forbids.
REGISTRY = re.compile(
    "|".join(
        [
            "pypi" + r"\.org",
            "python" + "hosted",
            "registry" + r"\.npmjs",
            "deb" + r"\.debian",
            "download" + r"\.pytorch",
        ]
    )
    + "|--(extra-)?index"
    + "-url|--find"
    + "-links|/opt/"
    + "wheels|/opt/"
    + "pypi"
)
TEXT = {".py", ".md", ".toml", ".txt", ".cfg", ".ini", ".yml", ".yaml", ".json", ".sh", ".html", ".css", ""}


@dataclass(frozen=True, order=True)
class Finding:
    """One broken rule: path relative to the root, line (1-based), and what is wrong in a few words."""

    path: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}"


def main(argv: list[str]) -> int:
    root = Path(argv[0] if argv else ".").resolve()
    findings, files = check(root)
    for finding in findings:
        print(finding)
    print(f"house: {files} files, {len(findings)} findings")
    return 1 if findings else 0


def check(root: Path) -> tuple[list[Finding], int]:
    """Every finding under `root`, in order, and how many files were read."""
    files = list(_files(root))
    findings: list[Finding] = []
    core_lines = 0
    for path in files:
        name = path.relative_to(root).as_posix()
        text = path.read_text(encoding="utf-8", errors="replace")
        findings += _text_rules(name, text)
        if path.suffix != ".py":
            continue
        try:
            tree = ast.parse(text, filename=str(path))
        except SyntaxError as error:
            findings.append(Finding(name, error.lineno or 1, f"is not Python: {error.msg}"))
            continue
        findings += _size_rules(name, text, tree)
        if name.startswith("src/secateur/"):
            findings += _library_rules(name, text, tree)
            findings += _import_rules(name, tree)
            findings += _mirror_rule(root, name)
            if not (path.parent / "__init__.py").is_file():
                findings.append(Finding(name, 1, "its folder has no __init__.py, so no wheel would hold it"))
        if path.name.startswith("test_"):
            findings += _assertion_rule(name, tree)
        if name.startswith("src/secateur/core/"):
            core_lines += len(text.splitlines())
    if core_lines > CORE_LINES:
        findings.append(Finding("src/secateur/core", 1, f"{core_lines} lines in all, at most {CORE_LINES}"))
    if not any(f.relative_to(root).as_posix().startswith("src/secateur/") for f in files):
        findings.append(
            Finding("src/secateur", 1, "nothing to check here: is this the root of the repository?")
        )
    return sorted(findings), len(files)


def _files(root: Path) -> Iterator[Path]:
    """Text files that git tracks or would track; without git, all those outside dot folders."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout.decode()
        paths = [root / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [
            p for p in root.rglob("*") if not any(s.startswith(".") for s in p.relative_to(root).parts[:-1])
        ]
    return (p for p in sorted(set(paths)) if p.is_file() and p.suffix in TEXT)


def _text_rules(name: str, text: str) -> Iterator[Finding]:
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        if REGISTRY.search(line):
            yield Finding(
                name,
                number,
                "names a package registry or a folder of this machine; pip's own settings do that",
            )
    if name.startswith("docs/decisions/") and len(lines) > DECISION_LINES:
        yield Finding(name, len(lines), f"{len(lines)} lines; a decision has at most {DECISION_LINES}")


def _size_rules(name: str, text: str, tree: ast.Module) -> Iterator[Finding]:
    count = len(text.splitlines())
    if count > FILE_LINES:
        yield Finding(name, FILE_LINES + 1, f"{count} lines; a file has at most {FILE_LINES}")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                yield Finding(name, node.lineno, f"{node.name} has {length} lines; at most {FUNCTION_LINES}")


def _library_rules(name: str, text: str, tree: ast.Module) -> Iterator[Finding]:
    if text.strip() and ast.get_docstring(tree) is None:
        yield Finding(name, 1, "no module docstring")
    for number, line in enumerate(text.splitlines(), 1):
        if UNFINISHED.search(line):
            yield Finding(name, number, "unfinished: a mark such as TODO is no place for work, an issue is")
    for line, module in _imported(tree, name):
        if module.split(".")[0] in FORBIDDEN_MODULES:
            yield Finding(name, line, f"imports {module}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in FORBIDDEN_CALLS:
                yield Finding(name, node.lineno, f"calls {called}")
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if (keyword.arg, value) in FORBIDDEN_KEYWORDS and isinstance(value, bool):
                    yield Finding(name, keyword.value.lineno, f"{keyword.arg}={value}")


def _import_rules(name: str, tree: ast.Module) -> Iterator[Finding]:
    parts = name.removeprefix("src/secateur/").removesuffix(".py").split("/")
    here = parts[0]
    for line, module in _imported(tree, name):
        top, _, rest = module.partition(".")
        if top != "secateur":
            if here == "core" and top != "torch" and top not in sys.stdlib_module_names:
                yield Finding(name, line, f"core imports {top}; it may import torch and the standard library")
            continue
        there = rest.split(".")
        if here not in MAY_IMPORT:
            yield Finding(name, line, f"the folder {here} has no place in MAY_IMPORT of tools/house.py")
        elif (there[0] or "__init__") not in MAY_IMPORT[here]:
            yield Finding(name, line, f"{here} imports {module}: against the direction of imports")
        elif here == "methods" == there[0] and len(parts) > 2 and len(there) > 1 and there[1] != parts[1]:
            yield Finding(
                name,
                line,
                f"methods/{parts[1]} imports {module}: groups do not import one another",
            )


def _mirror_rule(root: Path, name: str) -> Iterator[Finding]:
    parts = name.removeprefix("src/secateur/").split("/")
    if parts[0] != "methods" or parts[-1] == "__init__.py":
        return
    test = "/".join(["tests", *parts[:-1], f"test_{parts[-1]}"])
    if not (root / test).is_file():
        yield Finding(name, 1, f"a method without its test: {test} is missing")


def _assertion_rule(name: str, tree: ast.Module) -> Iterator[Finding]:
    """A test asserts by itself, or through a function of its own file that does."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    asserting = {f.name for f in functions if _asserts(f, frozenset())}
    for function in functions:
        if function.name.startswith("test_") and not _asserts(function, frozenset(asserting)):
            yield Finding(name, function.lineno, f"{function.name} asserts nothing")


def _asserts(function: ast.AST, helpers: frozenset[str]) -> bool:
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            last = called.rsplit(".", 1)[-1]
            if called in helpers or called in ("pytest.raises", "pytest.warns", "pytest.fail"):
                return True
            if last.startswith(("assert_", "check_")):
                return True
            if any(k.arg == "check" and getattr(k.value, "value", None) is True for k in node.keywords):
                return True  # subprocess.run(..., check=True) raises
    return False


def _imported(tree: ast.Module, name: str) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of each module that import statements use; relative ones are resolved from `name`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                package = name.removeprefix("src/").removesuffix(".py").split("/")[: -node.level]
                module = ".".join([*package, *([module] if module else [])])
            # `from secateur import io` names a folder: then that is what is used
            folders = [a.name for a in node.names if module == "secateur" and a.name in MAY_IMPORT]
            yield from ((node.lineno, f"secateur.{folder}") for folder in folders)
            if len(folders) < len(node.names):
                yield node.lineno, module


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
