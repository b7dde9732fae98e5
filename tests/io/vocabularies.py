"""Small tokenizers of the kinds that have a name in a GGUF, trained on this repository's licence."""

from __future__ import annotations

import json
from typing import Any

import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.docs.commands import ROOT

END = "<|end|>"
TRAINED = [(ROOT / "LICENSE").read_text("utf-8")]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BARE = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WHOLE = pre_tokenizers.ByteLevel(add_prefix_space=False)


def split(expression: str, behavior: str = "isolated") -> Any:
    return pre_tokenizers.Split(Regex(expression), behavior)


def byte_level(cut: Any, normalizer: Any = None, **names: Any) -> Any:
    """A byte-level tokenizer of 500 tokens, END and two added ones among them."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder, inner.normalizer = cut, decoders.ByteLevel(), normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        TRAINED,
        trainers.BpeTrainer(
            vocab_size=498, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
        ),
    )
    inner.add_tokens([AddedToken("<think>", normalized=False)])
    names = {"bos_token": END, "eos_token": END, **names}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def sentencepiece(normalizer: Any = None, cut: Any = None) -> Any:
    """Byte pairs over characters with <0xNN> for what is unknown, as Llama 2 has them."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    learner.train_from_iterator(TRAINED, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    parts = json.loads(learner.to_str())["model"]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learnt = sorted(parts["vocab"], key=parts["vocab"].get)
    merges = [
        tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in parts["merges"]
    ]
    vocabulary = {token: at for at, token in enumerate([*first, *learnt])}
    inner = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    inner.normalizer, inner.pre_tokenizer = normalizer, cut
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


PREFIXED = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
META = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
NEVER = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
