"""pyproject, constraints and the embedded packages say the same thing."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        if not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!-]+", line) for line in lines), lines
    return {canonical(name): version for name, _, version in (line.partition("==") for line in lines)}


def test_everything_that_is_installed_by_name_is_pinned() -> None:
    wanted = PROJECT["dependencies"] + [
        d for extra in PROJECT["optional-dependencies"].values() for d in extra
    ]
    names = {canonical(re.match(r"[\w.-]+", d)[0]) for d in wanted} - {"secateur"}
    assert names - pins().keys() == set()
    assert pins()["torch"] == "2.13.0"


def test_all_holds_every_extra_a_user_needs() -> None:
    extras = PROJECT["optional-dependencies"]
    inside = set(re.search(r"\[(.*)\]", extras["all"][0])[1].split(","))
    assert inside == extras.keys() - {"all", "docs", "dev"}


def test_every_extra_that_the_library_names_exists() -> None:
    named = set()
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text("utf-8")
        named |= set(re.findall(r"""require\(["'][\w.]+["'],\s*["'](\w+)["']\)""", text))
        named |= set(re.findall(r"secateur\[(\w+)\]", text))
    assert named, "the library asks for no extra: is the pattern of this test still right?"
    assert named <= PROJECT["optional-dependencies"].keys()


def test_embedded_packages_are_pinned_as_the_library_says() -> None:
    listed = set(
        re.findall(r"^[\w-]+==[\d.]+", (ROOT / "requirements-embedded.txt").read_text("utf-8"), re.M)
    )
    said = set(re.findall(r"[\w-]+==[\d.]+", (ROOT / "src/secateur/io/embedded.py").read_text("utf-8")))
    assert said and said == listed


def test_license_and_changelog_are_there() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")
    assert f"[{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")
