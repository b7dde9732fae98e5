"""Tokenizers as GGUF tables: what transformers builds from the tables cuts text as the tokenizer did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from secateur.errors import BadInput, Unsupported
from secateur.io.export_gguf import export_gguf
from secateur.io.export_vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER, vocabulary_of
from tests.io.ggufs import TEXTS
from tests.tinylm import tiny_llama, tiny_tokenizer

pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")
from tokenizers import normalizers, pre_tokenizers, processors  # noqa: E402

from tests.io.vocabularies import (  # noqa: E402
    BARE,
    END,
    LLAMA3,
    META,
    NEVER,
    PREFIXED,
    WHOLE,
    byte_level,
    sentencepiece,
    split,
)


@pytest.mark.parametrize(
    "cut,pre",
    [
        (WHOLE, "gpt-2"),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), WHOLE]), "smollm"),
        (pre_tokenizers.Sequence([split(LLAMA3), BARE]), "llama-bpe"),
        (pre_tokenizers.Sequence([split(LLAMA3.replace("{1,3}", "")), BARE]), "qwen2"),
    ],
)
def test_byte_level_tables(tmp_path: Path, cut: Any, pre: str) -> None:
    tokenizer = byte_level(cut)
    made = vocabulary_of(tokenizer, 512, "here")
    assert (made.model, made.pre) == ("gpt2", pre)
    assert len(made.tokens) == len(made.kinds) == 512 and not made.scores
    ids = tokenizer.get_vocab()
    assert all(made.tokens[at] == token for token, at in ids.items())
    assert made.kinds[ids[END]] == CONTROL and made.kinds[ids["<think>"]] == USER
    assert made.kinds[ids["a"]] == NORMAL and made.kinds[511] == UNUSED and made.tokens[511] == "[PAD511]"
    assert made.special == {"bos": 0, "eos": 0} and not (made.add_bos or made.add_eos or made.notes)
    assert len(made.merges) == 498 - 257
    back = read(tmp_path, tokenizer)
    for text in [*TEXTS, f"a{END}b<think>c"]:
        if pre == "smollm" and "  " in text:
            continue  # transformers reads it as gpt-2, which cuts spaces before digits otherwise
        assert back(text)["input_ids"] == tokenizer(text)["input_ids"], text
        assert back.decode(back(text)["input_ids"]) == text


@pytest.mark.parametrize(
    "normalizer,cut,prefix", [(PREFIXED, None, True), (None, META, True), (None, NEVER, False)]
)
def test_sentencepiece_tables(tmp_path: Path, normalizer: Any, cut: Any, prefix: bool) -> None:
    tokenizer = sentencepiece(normalizer, cut)
    made = vocabulary_of(tokenizer, 512, "here")
    assert made.model == "llama" and made.space_prefix == prefix and not made.merges
    assert bool(made.notes) == (cut is META)
    ids = tokenizer.get_vocab()
    assert [made.kinds[at] for at in (0, 1, 2, 3, 258)] == [UNKNOWN, CONTROL, CONTROL, BYTE, BYTE]
    assert made.kinds[ids["a"]] == NORMAL and made.special == {"unk": 0, "bos": 1, "eos": 2}
    learnt = [at for at in range(259, len(ids)) if len(made.tokens[at]) > 1]
    assert [made.scores[at] for at in learnt] == [-float(rank) for rank in range(len(learnt))]
    if cut is META:  # what transformers builds from such tables
        back = read(tmp_path, tokenizer)
        assert all(
            back(t, add_special_tokens=False) == tokenizer(t, add_special_tokens=False) for t in TEXTS[:4]
        )


def read(folder: Path, tokenizer: Any) -> Any:
    """The tokenizer that transformers builds from the file of a model that has this one."""
    tiny_llama(vocab_size=512).save_pretrained(folder / "m")
    tokenizer.save_pretrained(folder / "m")
    export_gguf(folder / "m", folder / "a.gguf", "f32")
    return transformers.AutoTokenizer.from_pretrained(folder, gguf_file="a.gguf")


def test_what_stands_round_a_text_is_told() -> None:
    for single, wanted in [
        ("$A", (False, False)),
        ("<s> $A", (True, False)),
        ("$A </s>", (False, True)),
        ("<s> $A </s>", (True, True)),
    ]:
        tokenizer = sentencepiece(PREFIXED)
        tokens = [("<s>", 1), ("</s>", 2), ("<unk>", 0)]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=tokens
        )
        made = vocabulary_of(tokenizer, 512, "here")
        assert (made.add_bos, made.add_eos) == wanted and not made.notes
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<unk> $A", special_tokens=tokens
    )
    made = vocabulary_of(tokenizer, 512, "here")
    assert not (made.add_bos or made.add_eos) and "puts other tokens" in made.notes[0]


def test_templates_and_normalised_text() -> None:
    tokenizer = byte_level(WHOLE, normalizers.NFC())
    tokenizer.chat_template = "{{ messages }}"
    made = vocabulary_of(tokenizer, 500, "here")
    assert made.template == "{{ messages }}" and "NFC" in made.notes[0]
    tokenizer.chat_template = {"default": "a", "tools": "b"}
    wanted = [{"name": "default", "template": "a"}, {"name": "tools", "template": "b"}]
    assert vocabulary_of(tokenizer, 500, "here").template == wanted


@pytest.mark.parametrize(
    "tokenizer,line",
    [
        (lambda: tiny_tokenizer(), "a WordLevel tokenizer"),
        (lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)), "cuts text by ByteLevel"),
        (
            lambda: byte_level(pre_tokenizers.Sequence([split(r"\w+"), BARE])),
            "cuts text by Split and ByteLevel",
        ),
        (
            lambda: byte_level(pre_tokenizers.Sequence([split(LLAMA3, "removed"), BARE])),
            "cuts text by Split and ByteLevel",
        ),
        (lambda: byte_level(WHOLE, normalizers.Lowercase()), r"changes text first \(Lowercase\)"),
        (lambda: sentencepiece(normalizers.NFKC()), "sentencepiece tokenizer with NFKC"),
        (lambda: sentencepiece(None, pre_tokenizers.Whitespace()), "sentencepiece tokenizer with Whitespace"),
    ],
)
def test_tokenizers_without_a_name_are_refused(tokenizer: Any, line: str) -> None:
    with pytest.raises(Unsupported, match=f"here: .*{line}.* has no name in a GGUF"):
        vocabulary_of(tokenizer(), 512, "here")


def test_a_token_beyond_the_embedding_is_refused() -> None:
    with pytest.raises(BadInput, match="the tokenizer has a token 498, the embedding 64 rows"):
        vocabulary_of(byte_level(WHOLE), 64, "here")
