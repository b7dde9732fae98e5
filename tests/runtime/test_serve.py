"""The server, over real sockets: what it answers, what it refuses, and that no client keeps more than its share."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from secateur.runtime.chat import Ask, prompt_ids
from secateur.runtime.decode import Decoder, pieces
from secateur.runtime.sample import Sampling
from secateur.runtime.serve import Server, words_of
from tests.runtime.server import Client, serving, tiny

MESSAGES = [{"role": "user", "content": "Say it"}]
COMPLETE, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return tiny(tmp_path_factory.mktemp("serve") / "tiny")


@pytest.fixture(scope="module")
def client(parts: tuple[Any, Any]) -> Iterator[Client]:
    """A server that all quick tests share."""
    with serving(*parts, body=2000, head_seconds=0.5, body_seconds=0.5) as made:
        yield made


def direct(parts: tuple[Any, Any], ids: list[int], count: int, **how: Any) -> tuple[str, str | None, int]:
    """Text, finish and count of the loop without a server."""
    found = list(pieces(Decoder(parts[0]), parts[1], ids, max_tokens=count, **how))
    return "".join(piece.text for piece in found), found[-1].finish, len(found)


# --- answers ----------------------------------------------------------------------------------------------------------


def test_a_completion_is_what_the_loop_writes(client: Client, parts: tuple[Any, Any]) -> None:
    ids = parts[1]("The license")["input_ids"]
    text, _, _ = direct(parts, ids, 24)
    status, found = client.complete("The license", max_tokens=24)
    assert status == 200 and found["choices"][0]["text"] == text and len(text) > 20
    assert found["choices"][0]["finish_reason"] == "length" and found["object"] == "text_completion"
    assert found["usage"] == {
        "prompt_tokens": len(ids),
        "completion_tokens": 24,
        "total_tokens": len(ids) + 24,
    }
    assert client.complete(ids, max_tokens=24)[1]["choices"][0]["text"] == text, "token ids instead of text"
    assert client.complete("The license")[1]["usage"]["completion_tokens"] == 16, "OpenAI's default"
    asked = {"prompt": ids, "max_tokens": 3, "seed": 0}
    assert client.stream(COMPLETE, asked)[-1] == "[DONE]" and client.complete("", max_tokens=3)[0] == 400
    said = [line.rsplit(" ", 2)[0] for line in client.lines if line.startswith("text")]
    assert said[:3] == [
        f"text 200 {len(ids)}+24 tokens",
        f"text 200 {len(ids)}+24 tokens",
        f"text 200 {len(ids)}+16 tokens",
    ]
    assert set(said[3:]) == {f"text 200 {len(ids)}+3 tokens", "text 400"}


def test_a_chat_goes_through_the_template(client: Client, parts: tuple[Any, Any]) -> None:
    ids = prompt_ids(Ask("chat", MESSAGES, None, Sampling(), (), False, False), parts[1])
    assert parts[1].decode(ids) == "[user] Say it\n[assistant]"
    status, found = client.chat("Say it", max_completion_tokens=20)
    assert status == 200 and found["object"] == "chat.completion" and found["model"] == "tiny"
    text, finish, count = direct(parts, ids, 20)
    assert found["choices"][0]["message"]["content"] == text
    assert (found["choices"][0]["finish_reason"], found["usage"]["completion_tokens"]) == (finish, count)


@pytest.mark.parametrize("how", [{"temperature": 0}, {"temperature": 1.5, "seed": 5, "top_p": 0.9}])
def test_a_stream_joins_to_the_whole(client: Client, how: dict[str, Any]) -> None:
    text = client.complete("The license", max_tokens=40, **how)[1]["choices"][0]["text"]
    fields = {"prompt": "The license", "max_tokens": 40, **how}
    *events, done = client.stream(COMPLETE, fields)
    assert done == "[DONE]" and "".join(event["choices"][0]["text"] for event in events) == text
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(events) - 1) + [
        "length"
    ]
    assert len({event["id"] for event in events}) == 1 and len(events) > 20

    said = client.chat("Say it", max_tokens=40, **how)[1]["choices"][0]["message"]["content"]
    asked = {"messages": MESSAGES, "max_tokens": 40, "stream_options": {"include_usage": True}, **how}
    first, *events, used, done = client.stream(CHAT, asked)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == said
    assert used["choices"] == [] and used["usage"]["completion_tokens"] == 40
    assert done == "[DONE]"


def test_a_seed_repeats_and_others_differ(client: Client) -> None:
    def drawn(**how: Any) -> str:
        return client.complete("The", max_tokens=30, temperature=1, **how)[1]["choices"][0]["text"]

    assert drawn(seed=1) == drawn(seed=1) != drawn(seed=2)
    assert drawn() != drawn()
    assert drawn(seed=1, top_p=1e-6) == client.complete("The", max_tokens=30)[1]["choices"][0]["text"]


def test_stop_strings_and_end_tokens(client: Client, parts: tuple[Any, Any]) -> None:
    text = client.complete("The license", max_tokens=40)[1]["choices"][0]["text"]
    stop = text[15:18]
    cut = text[: text.find(stop)]
    choice = client.complete("The license", max_tokens=40, stop=["never there", stop])[1]["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (cut, "stop")
    *events, _ = client.stream(
        COMPLETE, {"prompt": "The license", "temperature": 0, "max_tokens": 40, "stop": stop}
    )
    assert "".join(event["choices"][0]["text"] for event in events) == cut
    assert events[-1]["choices"][0]["finish_reason"] == "stop"

    ids = parts[1]("The license")["input_ids"]
    written = [piece.token for piece in pieces(Decoder(parts[0]), parts[1], ids, max_tokens=6)]
    config = parts[0].generation_config
    before, config.eos_token_id = config.eos_token_id, [written[5]]
    try:
        found = client.complete("The license", max_tokens=40)[1]
    finally:
        config.eos_token_id = before
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["usage"]["completion_tokens"] == written.index(written[5]) + 1


def test_answers_do_not_mix(client: Client) -> None:
    prompts = ["The", "license", "shall", "apply", "to", "you"]
    alone = {prompt: client.complete(prompt, max_tokens=30)[1]["choices"][0]["text"] for prompt in prompts}
    together: dict[str, str] = {}

    def ask(prompt: str) -> None:
        together[prompt] = client.complete(prompt, max_tokens=30)[1]["choices"][0]["text"]

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone and len(set(alone.values())) == 6


def test_models_health_and_unknown_paths(client: Client) -> None:
    (model,) = client.send("GET", "/v1/models")[1]["data"]
    assert (model["id"], model["object"]) == ("tiny", "model")
    assert client.send("GET", "/v1/models/tiny")[1] == model
    assert client.send("GET", "/v1/models/an/other")[0] == 404
    assert client.settles()
    status, health, _ = client.send("GET", "/health")
    assert status == 200 and health == {
        "status": "ok",
        "model": "tiny",
        "step": "lean",
        "running": 0,
        "inside": 0,
    }
    status, found, _ = client.send("GET", "/v2")
    assert status == 404 and found["error"]["message"] == "there is no /v2"
    assert client.send("GET", COMPLETE)[0] == 405 and client.send("DELETE", "/health")[0] == 405


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path,body,status,param,line",
    [
        (CHAT, b"{", 400, "body", "body: is no JSON"),
        (CHAT, b"[" * 1999, 400, "body", "nested too deep|is no JSON"),
        (CHAT, b"\xff\xfe", 400, "body", "is no JSON"),
        (CHAT, {"messages": "hi"}, 400, "messages", "messages: is no list"),
        (
            CHAT,
            {"messages": MESSAGES, "max_tokens": "many"},
            400,
            "max_tokens",
            "max_tokens: is no whole number",
        ),
        (CHAT, {"messages": MESSAGES, "logprobs": True}, 400, "logprobs", "logprobs: not supported"),
        (
            CHAT,
            {"messages": MESSAGES, "max_tokens": 8192},
            400,
            "max_tokens",
            "8192 positions; ask for at most 8",
        ),
        (CHAT, {"messages": [{"role": "assistant", "content": "x"}]}, 400, "messages", "a question"),
        (COMPLETE, {"prompt": [511, 512]}, 400, "prompt", r"a token outside 0\.\.511"),
        (COMPLETE, {"prompt": 5 * [0], "model": "gpt-4"}, 404, "model", "there is no 'gpt-4'"),
        (COMPLETE, {"prompt": "x" * 2000}, 413, None, "at most 2000 bytes"),
    ],
)
def test_bad_requests(
    client: Client, path: str, body: Any, status: int, param: str | None, line: str
) -> None:
    import re

    found_status, found, _ = client.send("POST", path, body)
    error = found["error"]
    assert (found_status, error["param"]) == (status, param), error
    assert re.search(line, error["message"]) and "\n" not in error["message"], error
    assert error["type"] == "invalid_request_error"
    assert error["code"] == ("model_not_found" if status == 404 else None)
    assert client.settles(), "a place was kept"
    assert client.complete("The", max_tokens=1)[0] == 200


def test_unknown_fields_are_ignored(client: Client) -> None:
    plain = client.complete("The", max_tokens=9)[1]["choices"]
    assert client.complete("The", max_tokens=9, user="me", whatever={"a": [1]})[1]["choices"] == plain


def test_only_json_is_read(client: Client) -> None:
    status, found, _ = client.send("POST", COMPLETE, '{"prompt": "a"}', {"Content-Type": "text/plain"})
    assert status == 415 and "Content-Type: application/json" in found["error"]["message"]


def test_a_model_without_a_template_completes_only(parts: tuple[Any, Any]) -> None:
    model, tokenizer = parts
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        with serving(model, tokenizer) as client:
            status, found = client.chat()
            assert status == 400 and found["error"]["param"] == "messages"
            assert found["error"]["message"] == (
                "messages: this model has no chat template; use /v1/completions with a prompt"
            )
            assert client.complete(max_tokens=2)[0] == 200 and client.settles()
    finally:
        tokenizer.chat_template = template


def test_an_answer_has_room_or_is_refused(parts: tuple[Any, Any]) -> None:
    with serving(*parts, max_tokens=11) as client:
        assert client.chat()[1]["usage"]["completion_tokens"] <= 11
        status, found = client.chat(max_tokens=12)
        assert status == 400 and found["error"]["message"].endswith("ask for at most 11")
        status, found = client.complete([5] * 8192)
        assert status == 400 and "8192 tokens leave no room" in found["error"]["message"]


# --- faults and the end -----------------------------------------------------------------------------------------------


def test_a_fault_in_decoding_is_told_and_survived(parts: tuple[Any, Any]) -> None:
    with serving(*parts) as client:
        step, client.decoder.step = client.decoder.step, None
        status, found = client.complete(max_tokens=3)
        assert status == 500 and found["error"]["type"] == "server_error"
        assert "not callable" in found["error"]["message"]
        *_, last = client.stream(COMPLETE, {"prompt": "The", "max_tokens": 3})
        assert last["error"]["type"] == "server_error"
        client.decoder.step = step
        assert client.settles() and client.complete(max_tokens=3)[0] == 200


def test_stopping_cuts_off_what_still_runs(parts: tuple[Any, Any]) -> None:
    found: list[Any] = []
    with serving(*parts, pause=0.02, grace=0.3) as client:

        def ask(stream: bool) -> None:
            if stream:
                found.append(client.stream(COMPLETE, {"prompt": "The", "max_tokens": 8000})[-1])
            else:
                found.append(client.complete("The", max_tokens=8000))

        threads = [threading.Thread(target=ask, args=(stream,)) for stream in (True, False)]
        for thread in threads:
            thread.start()
            time.sleep(0.3)
        client.server.stop()
        for thread in threads:
            thread.join(20)
        waited, cut = sorted(found, key=lambda item: isinstance(item, dict))
        assert waited[0] == 503 and waited[1]["error"]["message"] == "the server is stopping"
        assert cut["error"]["message"] == "the server is stopping"
    assert client.server.line.join(5), "the worker did not end"


def test_stopping_lets_a_short_answer_end(parts: tuple[Any, Any]) -> None:
    found: list[Any] = []
    with serving(*parts, pause=0.02, grace=20) as client:
        thread = threading.Thread(target=lambda: found.append(client.complete("The", max_tokens=40)))
        thread.start()
        while client.server.line.running is None:
            time.sleep(0.01)
        client.server.stop()
        thread.join(20)
    assert found[0][0] == 200 and found[0][1]["usage"]["completion_tokens"] == 40


def test_errors_are_one_line() -> None:
    assert words_of(ValueError("a\n  b")) == "a b" and words_of(KeyError()) == "KeyError"
    assert len(words_of(ValueError("x" * 999))) == 200


def test_a_server_that_was_never_run_can_be_stopped(parts: tuple[Any, Any]) -> None:
    server = Server(Decoder(parts[0]), parts[1], "tiny")
    server.stop()
    server.line.close(ConnectionAbortedError("over"))
    assert server.line.join(5)


def test_a_model_that_names_no_positions_has_an_end(parts: tuple[Any, Any]) -> None:
    decoder = Decoder(parts[0])
    decoder.positions = None
    server = Server(decoder, parts[1], "tiny")
    assert server.positions == 32768
    server.line.close(ConnectionAbortedError("over"))
    assert server.line.join(5)
