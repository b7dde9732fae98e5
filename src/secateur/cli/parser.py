"""Command lines: argparse, with mistakes told in one line that names the nearest flag, and help from what is declared.

Numbers are read here, not by argparse's types, whose complaints take two lines and name no remedy.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any, NoReturn

from secateur.errors import BadInput, NoMatch, nearest


class Parser(argparse.ArgumentParser):
    """A parser whose `error` raises one of the six errors instead of printing the usage and leaving."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", Help)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        verb = self.prog.split(" ")[-1]
        raise BadInput(_plain(message), where=verb, fix=f"see `{self.prog} --help`")

    def parse(self, argv: list[str]) -> argparse.Namespace:
        """Parse all of `argv`; a flag nobody declared is a NoMatch with the nearest ones."""
        known, extra = self.parse_known_args(argv)
        flags = [action for action in self._option_string_actions if action.startswith("--")]
        for word in extra:
            if word.startswith("-") and not _is_number(word):
                name = word.partition("=")[0]
                raise NoMatch(f"no flag {name}", where=self.prog.split(" ")[-1], fix=nearest(name, flags))
        if extra:
            raise BadInput(
                f"{extra[0]!r} is one word too many",
                where=self.prog.split(" ")[-1],
                fix=f"see `{self.prog} --help`",
            )
        return known


class Help(argparse.HelpFormatter):
    """Names and their help in two columns wide enough for both."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=110)


def whole(least: int = 1) -> Callable[[str], int]:
    """A converter for whole numbers of at least `least`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is below {least}")
        return value

    return convert


def number(text: str) -> float:
    """A converter for numbers; ranges are the business of whoever uses them."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def words(text: str) -> list[str]:
    """'a,b' to ['a', 'b']."""
    return [word.strip() for word in text.split(",") if word.strip()]


def shard_size(text: str) -> int:
    """'5GB', '500MB' or a number of bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKMG]?)B?", text.strip())
    size = (
        int(float(found[1]) * {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}[found[2]])
        if found
        else 0
    )
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, such as 5GB")
    return size


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _plain(message: str) -> str:
    """argparse's message without its framing: "argument --length: 'x' is no number" and the like."""
    message = message.removeprefix("argument ").replace("the following arguments are required:", "missing")
    return message.replace("expected one argument", "needs a value")
