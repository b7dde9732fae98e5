"""Tokens to text while they come: whole characters only, and an end at given strings.

`Text` decodes a short window of the last tokens each time and gives out what is new; a window that ends inside a
character (byte-level tokenizers cut them) gives nothing until the rest is there. `Stops` holds back what may be the
beginning of a stop string.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HALF = "\ufffd"  # what decoders write for bytes that are no character (yet)
LONGEST = 3  # bytes of a character that is not complete; some decoders write HALF for each
KEPT, WINDOW = 8, 32


class Text:
    """The text of tokens that follow `context` (the prompt: some tokenizers write a space only between words)."""

    def __init__(self, tokenizer: Any, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(context)[-KEPT:]
        self._told = len(self._decode())

    def push(self, token: int) -> str:
        """What one more token adds, or "" while a character is not complete."""
        self._ids.append(token)
        whole = self._decode()
        sure = _sure(whole)
        new = whole[self._told : sure]
        self._told = max(self._told, sure)
        if len(self._ids) > WINDOW:
            self._ids = self._ids[-KEPT:]
            self._told = _sure(self._decode())
        return new

    def flush(self) -> str:
        """What still waits, at the end of an answer: half a character comes out as HALF."""
        whole = self._decode()
        new, self._told = whole[self._told :], len(whole)
        return new

    def _decode(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _sure(text: str) -> int:
    """How many of the first characters will stay, whatever bytes follow.

    >>> _sure("ab"), _sure("a" + HALF), _sure(5 * HALF)
    (2, 1, 2)
    """
    return len(text) - next((n for n in range(LONGEST) if text[-1 - n : len(text) - n] != HALF), LONGEST)


class Stops:
    """Cuts a text that comes in pieces before the first of these strings."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """(what may be given out now, whether a stop string was reached)."""
        if not self._stops:
            return piece, False
        text = self._held + piece
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of `text` are the first of `stop`, its whole left out.

    >>> _overlap("the en", "end"), _overlap("the end", "end"), _overlap("abab", "ababa")
    (2, 0, 4)
    """
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
