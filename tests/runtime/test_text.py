"""Text in pieces: no half characters, the pieces join to the whole, stop strings are cut wherever pieces end."""

from __future__ import annotations

import functools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from secateur.runtime.text import HALF, Stops, Text


@functools.cache
def byte_tokenizer() -> Any:
    """Every byte a token, and some words: characters outside ASCII take several tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(["the cat sat on the mat", "ça va là"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")


@functools.cache
def word_tokenizer() -> Any:
    """Words with their space in front, as sentencepiece has them: its decoder eats the first space of a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<unk>", "▁Paris", "▁is", "▁a", "▁city", "s"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def pushed(tokenizer: Any, ids: list[int], context: list[int]) -> list[str]:
    text = Text(tokenizer, context)
    return [text.push(token) for token in ids] + [text.flush()]


@given(st.text(max_size=120), st.text(max_size=60))
def test_pieces_join_to_the_text_and_hold_whole_characters(text: str, before: str) -> None:
    tokenizer = byte_tokenizer()
    ids, context = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text, before))
    given_out = pushed(tokenizer, ids, context)
    assert "".join(given_out) == text
    assert sum(piece.count(HALF) for piece in given_out) == text.count(HALF)
    assert given_out[-1] == text[len(text.rstrip(HALF)) :][-3:], "only the sign itself is waited with"


@given(st.lists(st.integers(0, 299), max_size=80))
def test_any_bytes_come_out_without_a_fault(ids: list[int]) -> None:
    tokenizer = byte_tokenizer()
    ids = [token % len(tokenizer) for token in ids]
    joined = "".join(pushed(tokenizer, ids, []))
    clean = tokenizer.decode(ids, skip_special_tokens=True)
    assert joined.replace(HALF, "") == clean.replace(HALF, ""), "only broken bytes may be counted otherwise"
    assert (HALF in joined) == (HALF in clean)


def test_a_character_waits_for_its_last_byte() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("é🌍", add_special_tokens=False)["input_ids"]
    assert len(ids) == 6
    assert pushed(tokenizer, ids, []) == ["", "é", "", "", "", "🌍", ""]
    assert pushed(tokenizer, ids[:4], []) == ["", "é", "", "", HALF]
    sign = tokenizer(HALF, add_special_tokens=False)["input_ids"]
    assert "".join(pushed(tokenizer, sign + ids, [])) == HALF + "é🌍"


def test_spaces_between_words_stand_where_the_prompt_ends() -> None:
    tokenizer = word_tokenizer()
    assert tokenizer.decode([1, 2]) == "Paris is" and tokenizer.decode([2]) == "is"
    assert pushed(tokenizer, [2, 3, 4, 5], [1]) == [" is", " a", " city", "s", ""]
    assert "".join(pushed(tokenizer, [3, 4] * 40, [2])) == " a city" * 40, "far past the window"


def test_special_tokens_have_no_text() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("a b", add_special_tokens=False)["input_ids"]
    assert "".join(pushed(tokenizer, [0, *ids, 0], [0])) == "a b"


@given(
    st.text("abc", max_size=40),
    st.lists(st.text("abc", min_size=1, max_size=5), max_size=3),
    st.lists(st.integers(1, 4), min_size=1, max_size=40),
)
def test_stops_cut_where_the_whole_text_has_them(text: str, stops: list[str], lengths: list[int]) -> None:
    held, out, stopped, at = Stops(stops), "", False, 0
    ends: list[int] = []
    while at < len(text) and not stopped:
        size = lengths[len(ends) % len(lengths)]
        given_out, stopped = held.push(text[at : at + size])
        out += given_out
        at += size
        ends.append(min(at, len(text)))
    if not stopped:
        out += held.flush()
    # the oracle: the first moment at which the text so far holds a stop string, cut at its first
    for end in ends:
        found = [place for stop in stops if (place := text[:end].find(stop)) >= 0]
        if found:
            assert stopped and out == text[: min(found)] and end == ends[-1]
            return
    assert not stopped and out == text


def test_nothing_is_held_back_without_need() -> None:
    stops = Stops(["\n\nUser:"])
    assert stops.push("one\n") == ("one", False)
    assert stops.push("two") == ("\ntwo", False)
    assert stops.push("\n\nUs") == ("", False)
    assert stops.push("er: hi") == ("", True)
    assert Stops([]).push("all") == ("all", False)
