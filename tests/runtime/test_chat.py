"""Requests are read strictly: what each field may be, what is refused by name, what is ignored; OpenAI's shapes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import BadInput, NoMatch, SecateurError, Unsupported
from secateur.runtime.chat import Ask, Reply, length_of, parse, prompt_ids, read
from secateur.runtime.sample import Sampling
from tests.tinylm import tiny_tokenizer

HELLO = [{"role": "user", "content": "w1 w2"}]
TEMPLATE = (
    "{% for m in messages %}w5 {{ m['content'] }} w6{% endfor %}{% if add_generation_prompt %} w7{% endif %}"
)
ASK = Ask("text", "w1", None, Sampling(), (), False, False)


def test_a_request_with_everything() -> None:
    fields = {
        "model": "tiny",
        "messages": [
            {"role": "developer", "content": "w1"},
            {"role": "user", "content": [{"type": "text", "text": "w2 "}, {"type": "text", "text": "w3"}]},
            {"role": "assistant", "content": None, "name": "x"},
        ],
        "max_completion_tokens": 7,
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0,
        "top_k": -1,
        "seed": -3,
        "stop": "end",
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 1,
        "logprobs": False,
        "tools": [],
        "user": {"anything": [1]},
        "store": None,
    }
    assert read("chat", fields, "tiny") == Ask(
        "chat",
        [
            {"role": "system", "content": "w1"},
            {"role": "user", "content": "w2 w3"},
            {"role": "assistant", "content": ""},
        ],
        7,
        Sampling(0.5, 1e-9, 0, -3),
        ("end",),
        True,
        True,
    )


def test_a_request_with_nothing() -> None:
    assert read("text", {"prompt": "w1"}, "tiny") == Ask("text", "w1", None, Sampling(1.0), (), False, False)
    null = dict.fromkeys(
        ("model", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "n", "logprobs")
    )
    assert read("text", {"prompt": ["w1"], **null}, "tiny") == read("text", {"prompt": "w1"}, "tiny")
    assert (
        read("text", {"prompt": [[5, 6]]}, "tiny").prompt
        == read("text", {"prompt": [5, 6]}, "tiny").prompt
        == [5, 6]
    )


BAD: list[tuple[str, Any, str]] = [
    ("model", 3, "is no string"),
    ("messages", None, "no list of at least one"),
    ("messages", [], "no list of at least one"),
    ("messages", ["hi"], "no object with a role"),
    ("messages", [{"content": "hi"}], "no object with a role"),
    ("messages", [{"role": "tool", "content": "hi"}], "is none of system, developer"),
    ("messages", [{"role": "user"}], "is no string"),
    ("messages", [{"role": "user", "content": 3}], "is no string"),
    ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "not text"),
    ("messages", [{"role": "user", "content": ["hi"]}], "not text"),
    ("messages", [{"role": "user", "content": "\ud800"}], "surrogate"),
    ("max_tokens", "7", "no whole number"),
    ("max_tokens", 7.5, "no whole number"),
    ("max_tokens", True, "no whole number"),
    ("max_tokens", 0, "is not in"),
    ("max_completion_tokens", -1, "is not in"),
    ("temperature", "hot", "no number"),
    ("temperature", 2.01, "is not in"),
    ("top_p", -0.1, "is not in"),
    ("top_k", 1.5, "no whole number"),
    ("seed", 2**63, "is not in"),
    ("seed", "x", "no whole number"),
    ("stop", ["a", ""], "none of them empty"),
    ("stop", "", "none of them empty"),
    ("stop", 3, "neither a string nor a list"),
    ("stop", list("abcde"), "5 strings; give at most 4"),
    ("stream", 1, "neither true nor false"),
    ("stream_options", [1], "is no object"),
]


@pytest.mark.parametrize("field,value,line", BAD)
def test_wrong_types_and_ranges_are_named(field: str, value: Any, line: str) -> None:
    with pytest.raises(BadInput) as caught:
        read("chat", {"messages": HELLO, field: value}, "tiny")
    assert line in str(caught.value) and caught.value.where.startswith(field)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "field,value",
    [
        ("n", 2),
        ("n", True),
        ("best_of", 3),
        ("logprobs", True),
        ("logprobs", 0),
        ("top_logprobs", 5),
        ("echo", True),
        ("suffix", "."),
        ("tools", [{"type": "function"}]),
        ("functions", [{}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
        ("logit_bias", {"5": -100}),
        ("frequency_penalty", 0.5),
        ("presence_penalty", -1),
    ],
)
def test_what_is_not_here_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(Unsupported, match=f"^{field}: not supported by this server; leave it out$"):
        read("text", {"prompt": "w1", field: value}, "tiny")


@pytest.mark.parametrize(
    "prompt,error",
    [
        (None, BadInput),
        ("", BadInput),
        ([], BadInput),
        (7, BadInput),
        ([1, True], BadInput),
        ([1, "a"], BadInput),
    ]
    + [(["a", "b"], Unsupported), ([[1], [2]], Unsupported), ("a\udfff", BadInput)],
)
def test_prompts(prompt: Any, error: type[SecateurError]) -> None:
    with pytest.raises(error, match=r"^prompt: "):
        read("text", {"prompt": prompt}, "tiny")


def test_another_model() -> None:
    with pytest.raises(NoMatch, match="there is no 'gpt-4'; this server has 'tiny'"):
        read("text", {"prompt": "a", "model": "gpt-4"}, "tiny")


@pytest.mark.parametrize(
    "body,line",
    [
        (b"", "is no JSON"),
        (b"{", "is no JSON"),
        (b"\xff{}", "is no JSON"),
        (b"[]", "no JSON object"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is no JSON"),
        (b"[" * 200_000, "nested too deep"),
        (b'{"a":' * 100_000, "nested too deep"),
    ],
)
def test_bodies_that_are_no_json_object(body: bytes, line: str) -> None:
    with pytest.raises(BadInput, match=line) as caught:
        parse(body)
    assert len(str(caught.value)) < 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    "messages",
    "prompt",
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "n",
]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON), st.sampled_from(["chat", "text"]))
def test_any_json_is_an_ask_or_one_of_our_errors(fields: dict[str, Any], kind: Any) -> None:
    try:
        ask = read(kind, parse(json.dumps(fields).encode()), "tiny")
    except SecateurError as error:
        assert "\n" not in str(error)
    else:
        assert ask.prompt and ask.max_tokens != 0 and 0 <= ask.sampling.temperature <= 2


def test_prompts_go_through_the_template_once() -> None:
    tokenizer = tiny_tokenizer()
    chat = Ask("chat", HELLO, None, Sampling(), (), False, False)
    with pytest.raises(Unsupported, match="no chat template; use /v1/completions"):
        prompt_ids(chat, tokenizer)
    tokenizer.chat_template = TEMPLATE
    assert prompt_ids(chat, tokenizer) == [9, 5, 6, 10, 11], "and no second BOS"
    assert prompt_ids(ASK, tokenizer) == [1, 5], "a text has its BOS"
    assert prompt_ids(Ask("text", [7, 8], None, Sampling(), (), False, False), tokenizer) == [7, 8]
    tokenizer.chat_template = "{{ raise_exception('users\nonly') }}"
    with pytest.raises(BadInput, match=r"template refuses them \(TemplateError: users only\)"):
        prompt_ids(chat, tokenizer)
    tokenizer.chat_template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(BadInput, match="SecurityError"):
        prompt_ids(chat, tokenizer)


@pytest.mark.parametrize(
    "kind,asked,prompt,positions,most,length",
    [
        ("text", None, 10, 100, None, 16),
        ("text", None, 10, 100, 5, 5),
        ("text", None, 90, 100, None, 10),
        ("chat", None, 10, 100, None, 90),
        ("chat", None, 10, 100, 50, 50),
        ("chat", 90, 10, 100, None, 90),
        ("chat", 50, 10, 100, 50, 50),
        ("chat", 91, 10, 100, None, "91 after a prompt of 10 tokens .* 100 positions; ask for at most 90"),
        ("chat", 51, 10, 100, 50, "51 is more than this server gives; ask for at most 50"),
        ("chat", None, 100, 100, None, "^messages: 100 tokens leave no room .* 100 positions; shorten it"),
        ("text", 1, 120, 100, None, "^prompt: 120 tokens leave no room"),
    ],
)
def test_length_of_an_answer(
    kind: Any, asked: int | None, prompt: int, positions: int, most: int | None, length: int | str
) -> None:
    ask = Ask(kind, "w1", asked, Sampling(), (), False, False)
    if isinstance(length, int):
        assert length_of(ask, prompt, positions, most) == length
    else:
        with pytest.raises(BadInput, match=length):
            length_of(ask, prompt, positions, most)


def test_shapes_of_answers() -> None:
    chat, text = Reply("chat", "tiny"), Reply("text", "tiny")
    whole = chat.whole("Hi", "stop", 3, 2)
    assert whole["id"].startswith("chatcmpl-") and whole["object"] == "chat.completion"
    assert whole["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hi", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    first = chat.first()
    assert first is not None and first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chat.chunk("Hi", None)["choices"][0]["delta"] == {"content": "Hi"}
    end = chat.chunk("", "length")
    assert end["object"] == "chat.completion.chunk" and end["id"] == whole["id"]
    assert end["choices"][0]["delta"] == {} and end["choices"][0]["finish_reason"] == "length"
    assert "usage" not in end and chat.counted(3, 2)["choices"] == []
    assert text.first() is None and text.chunk("Hi", None)["choices"][0]["text"] == "Hi"
    assert text.whole("Hi", "stop", 3, 2)["object"] == "text_completion"
