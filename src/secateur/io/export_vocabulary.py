"""A tokenizer as the tables of a GGUF: tokens, their kinds, merges or scores, special ids.

llama.cpp knows tokenizers by name, not by description: `pre` names the expression that cuts text before byte pairs are
merged. Only tokenizers whose expression has such a name are taken; any other would cut text in another way than the
model learned, so it is refused. Two families: "gpt2" (byte pairs over bytes, with merges) and "llama" (sentencepiece's
kind, spaces as U+2581 and unknown bytes as <0xNN>, with a score for each token: here minus the rank of the merge that
makes it, so that the best score is the first merge).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from secateur.errors import BadInput, Unsupported

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # gguf.TokenType
SPACE = "\u2581"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_START = r"[^\r\n\p{L}\p{N}]?"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# the expression of a Split before ByteLevel -> what llama.cpp calls it
_NAMES = {
    rf"{_CONTRACTIONS}|{_START}\p{{L}}+|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
    rf"{_CONTRACTIONS}|{_START}\p{{L}}+|\p{{N}}|{_REST}": "qwen2",
    rf"{_START}{_UPPER}*{_LOWER}+|{_START}{_UPPER}+{_LOWER}*|\p{{N}}|{_SLASHED}": "tekken",
}


@dataclass
class Vocabulary:
    """What `export_gguf` writes of a tokenizer; lists are by token id. `special` holds the ids of bos, eos, unk, pad;
    `add_bos` and `add_eos`: whether the tokenizer puts them round a text; `notes`: what llama.cpp does otherwise."""

    model: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    scores: list[float]
    special: dict[str, int]
    add_bos: bool = False
    add_eos: bool = False
    space_prefix: bool = False
    template: str | list[dict[str, str]] = ""
    notes: list[str] = field(default_factory=list)


def vocabulary_of(tokenizer: Any, rows: int, where: str) -> Vocabulary:
    """The tables of a transformers tokenizer for a model whose embedding has `rows` rows.

    Raises:
        Unsupported: no byte-pair tokenizer, or one that cuts text in a way that has no name in llama.cpp.
        BadInput: a token id beyond the embedding.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    model = parts["model"]
    if model.get("type") != "BPE":
        raise _refused(f"a {model.get('type')} tokenizer", where)
    names: dict[int, str] = {int(at): token for token, at in model["vocab"].items()}
    added = {int(token["id"]): token for token in parts.get("added_tokens") or []}
    names.update({at: token["content"] for at, token in added.items()})
    if max(names, default=0) >= rows:
        what = f"the tokenizer has a token {max(names)}, the embedding {rows} rows"
        raise BadInput(what, where=where, fix="the tokenizer and the weights are of two different models")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    made = (_sentencepiece if model.get("byte_fallback") else _bytes)(parts, where)
    unknown = tokenizer.unk_token_id if made.model == "llama" else None
    made.tokens = [names.get(at, f"[PAD{at}]") for at in range(rows)]
    made.kinds = [_kind(at, names, added, made.model, unknown) for at in range(rows)]
    if made.model == "llama":
        made.scores = _scores(made.tokens, merges)
        made.tokens = [
            token.replace(SPACE, " ") if kind == USER else token
            for token, kind in zip(made.tokens, made.kinds, strict=True)
        ]
    else:
        made.merges = merges
    held = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    made.special = {name: int(at) for name, at in held.items() if at is not None}
    _frame(made, tokenizer)
    template = getattr(tokenizer, "chat_template", None) or ""
    made.template = (
        [{"name": name, "template": text} for name, text in template.items()]
        if isinstance(template, dict)
        else template
    )
    return made


def _bytes(parts: dict[str, Any], where: str) -> Vocabulary:
    steps = _steps(parts.get("pre_tokenizer"), "pretokenizers")
    kinds = [step["type"] for step in steps]
    last = steps[-1] if steps else {}
    name = ""
    if last.get("type") == "ByteLevel" and not last.get("add_prefix_space"):
        if kinds == ["ByteLevel"] and last.get("use_regex", True):
            name = "gpt-2"
        elif (
            kinds == ["Digits", "ByteLevel"]
            and steps[0].get("individual_digits")
            and last.get("use_regex", True)
        ):
            name = "smollm"
        elif kinds == ["Split", "ByteLevel"] and not last.get("use_regex", True):
            whole = steps[0].get("behavior") == "Isolated" and not steps[0].get("invert")
            name = _NAMES.get(str(steps[0]["pattern"].get("Regex")), "") if whole else ""
    if not name:
        raise _refused(
            f"a tokenizer that cuts text by {' and '.join(kinds) or 'nothing'} in its own way", where
        )
    normal = [step["type"] for step in _steps(parts.get("normalizer"), "normalizers")]
    if any(kind != "NFC" for kind in normal):
        raise _refused(f"a tokenizer that changes text first ({', '.join(normal)})", where)
    notes = ["llama.cpp does not compose characters (NFC) before it reads text"] if normal else []
    return Vocabulary("gpt2", name, [], [], [], [], {}, notes=notes)


def _sentencepiece(parts: dict[str, Any], where: str) -> Vocabulary:
    prefix, notes = False, []
    for step in _steps(parts.get("normalizer"), "normalizers"):
        if step["type"] == "Prepend" and step.get("prepend") == SPACE:
            prefix = True
        elif step["type"] != "Replace" or step.get("content") != SPACE:
            raise _refused(f"a sentencepiece tokenizer with {step['type']}", where)
    for step in _steps(parts.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] == "Metaspace" and step.get("replacement") == SPACE and not step.get("split", True):
            prefix = step.get("prepend_scheme", "always") != "never"
            notes = ["llama.cpp puts a space before a text that begins with one, too"] if prefix else []
        elif step["type"] != "Split" or step.get("pattern") != {
            "String": " "
        }:  # Gemma's: no space is left by then
            raise _refused(f"a sentencepiece tokenizer with {step['type']}", where)
    return Vocabulary("llama", "default", [], [], [], [], {}, space_prefix=prefix, notes=notes)


def _steps(table: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if table is None:
        return []
    return list(table[key]) if table["type"] == "Sequence" else [table]


def _kind(
    at: int, names: dict[int, str], added: dict[int, dict[str, Any]], model: str, unknown: int | None
) -> int:
    if at not in names:
        return UNUSED
    if at == unknown:
        return UNKNOWN
    if at in added:
        return CONTROL if added[at].get("special") else USER
    return BYTE if model == "llama" and re.fullmatch(r"<0x[0-9A-F]{2}>", names[at]) else NORMAL


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Minus the rank of the first merge that makes a token; 0 for what no merge makes (single characters)."""
    first: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        first.setdefault(merge.replace(" ", "", 1), rank)
    return [-float(first.get(token, 0)) for token in tokens]


def _frame(made: Vocabulary, tokenizer: Any) -> None:
    """Set add_bos and add_eos to what the tokenizer does with a text."""
    bare, full = (tokenizer("a", add_special_tokens=flag)["input_ids"] for flag in (False, True))
    bos, eos = made.special.get("bos"), made.special.get("eos")
    for made.add_bos, made.add_eos in ((False, False), (True, False), (False, True), (True, True)):
        if [*[bos] * made.add_bos, *bare, *[eos] * made.add_eos] == full:
            return
    made.add_bos = made.add_eos = False
    made.notes.append(
        "the tokenizer puts other tokens round a text than bos and eos; llama.cpp will put none"
    )


def _refused(what: str, where: str) -> Unsupported:
    return Unsupported(f"{what} has no name in a GGUF", where=where, fix="export the model to safetensors")
