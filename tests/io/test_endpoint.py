"""The endpoint against a real server that behaves well and badly: patience, one clear line, a key that never shows."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from secateur.errors import BadInput, Damaged, NoMatch, SecateurError
from secateur.io import endpoint
from secateur.io.endpoint import LIMIT, Endpoint, turns
from tests.chatserver import Act, cuts, drips, fails, floods, hangs, raw, says, serving

KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """How long was waited between tries, without waiting; and no proxy or key from outside."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    waited: list[float] = []
    monkeypatch.setattr(endpoint, "_sleep", waited.append)
    yield waited


def asked(*script: Act, **changes: object) -> tuple[str | SecateurError, int]:
    """What comes of one question, and how many requests it took."""
    with serving(*script) as server:
        try:
            got = Endpoint(server.url, "tiny", **changes).answer("why?", 7)  # type: ignore[arg-type]
        except SecateurError as error:
            got = error
            assert "\n" not in str(error) and len(str(error)) < 300
        return got, len(server.seen)


def test_a_question_is_asked_as_the_protocol_says():
    with serving(says("- red\n- blue")) as server:
        who = Endpoint(server.url, "tiny", temperature=0.5, max_tokens=33)
        assert who.answer("why?", 7) == "- red\n- blue"
    path, headers, body = server.seen[0]
    assert path == "/v1/chat/completions" and headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers
    assert body == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "why?"}],
        "seed": 7,
        "temperature": 0.5,
        "max_tokens": 33,
    }
    assert who.name == f"tiny at {server.url[7:]} (temperature 0.5, 33 tokens)"


def test_what_the_server_shall_choose_is_left_out():
    with serving(says("- red")) as server:
        who = Endpoint(server.url, "tiny", temperature=None, max_tokens=None)
        who.answer("why?", 7)
    assert set(server.seen[0][2]) == {"model", "messages", "seed"}
    assert who.name.endswith("(server, server's length)")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("", "/v1/chat/completions"),
        ("/", "/v1/chat/completions"),
        ("/v1", "/v1/chat/completions"),
        ("/api/v2/", "/api/v2/chat/completions"),
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/openai?version=2", "/openai/chat/completions?version=2"),
    ],
)
def test_addresses_are_completed(url: str, path: str):
    with serving(says("- red")) as server:
        Endpoint(server.url + url, "tiny").answer("why?", 0)
    assert server.seen[0][0] == path


def test_the_key_is_sent_and_nothing_else_holds_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    caplog.set_level(logging.DEBUG)
    with serving(says(f"- your key is {KEY}")) as server:
        who = Endpoint(server.url, "tiny")
        assert who.answer("why?", 0) == "- your key is ***"
        escaped = '{"choices": [{"message": {"content": "it is \\u0073' + KEY[1:] + '"}}]}'
        server.script[:] = [raw(escaped.encode())]
        assert who.answer("why?", 0) == "it is ***"
    assert server.seen[0][1]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in repr(who) + who.name + str(vars(who)) + caplog.text


@pytest.mark.parametrize(
    "act",
    [
        fails(400, "x" * 100 + KEY + " is bad"),
        fails(401, f"key {KEY} is wrong"),
        fails(429, f"slow down, {KEY}"),
        fails(302, Location=f"http://{KEY}.example/"),
        raw(b'{"error": "' + KEY.encode() + b'"}'),
        raw(b'{"error": "sk-very-\\u0073ecret-0123456789"}'),
        raw(b'{"' + KEY.encode() + b'": 1, "' + KEY.encode() + b'": 2}'),
        raw(KEY.encode()),
    ],
)
def test_no_error_shows_the_key_or_a_part_of_it(monkeypatch: pytest.MonkeyPatch, act: Act):
    monkeypatch.setenv("MY_KEY", KEY)
    got, _ = asked(act, key_variable="MY_KEY")
    assert isinstance(got, SecateurError)
    assert "very-secret" not in str(got) and "sk-very" not in str(got)


def test_a_key_that_is_none_is_refused_before_a_library_prints_it(monkeypatch: pytest.MonkeyPatch):
    for key in ("sk-a\nX-Evil: 1", "sk-ä", "sk a", "sk\x7f"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        got, requests = asked(says("- red"))
        assert str(got) == "variable OPENAI_API_KEY: holds characters that no key has" and requests == 0


def test_a_key_does_not_cross_the_network_in_the_clear(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(BadInput, match=r"^far\.invalid: the key in OPENAI_API_KEY would cross .* https"):
        Endpoint("http://far.invalid/v1", "tiny").answer("why?", 0)


def test_500_then_fine(waits: list[float]):
    assert asked(fails(500), fails(503, "busy"), says("- red")) == ("- red", 3)
    assert len(waits) == 2 and 0.5 <= waits[0] <= 1 and 1 <= waits[1] <= 2, "it doubles, with jitter"


def test_busy_for_too_long_is_one_line(waits: list[float]):
    got, requests = asked(fails(503, "the model\nis loading"), retries=7)
    assert isinstance(got, BadInput) and requests == 8 and len(waits) == 7
    assert "answers 503: the model is loading, 8 times; try again later" in str(got)
    bounds = zip((0.5, 1, 2, 4, 8, 16, 30), (1, 2, 4, 8, 16, 32, 60), strict=True)
    assert all(low <= wait <= high for wait, (low, high) in zip(waits, bounds, strict=True))
    got, requests = asked(fails(500), retries=0)
    assert "answers 500: Internal Server Error, 1 time;" in str(got) and requests == 1


def test_retry_after_is_honoured_within_bounds(waits: list[float]):
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    acts = [fails(429, Retry_After=text) for text in ("2", "0.25", "9999", "-3", soon, "nan", "soon")]
    assert asked(*acts, says("- red"), retries=9) == ("- red", 8)
    assert waits[:4] == [2, 0.25, 60, 0] and 25 < waits[4] <= 30
    assert 16 <= waits[5] <= 32 and 30 <= waits[6] <= 60, "one that says nothing of use: back-off"


@pytest.mark.parametrize(
    ("act", "says_"),
    [
        (raw(b"<html>hello</html>"), "is not valid JSON"),
        (raw(b""), "is not valid JSON"),
        (raw(b"\xff\xfe"), "is not valid JSON"),
        (raw(b"[" * 100_000), "is not valid JSON"),
        (raw(b"[]"), "answers without choices"),
        (raw(b'{"choices": []}'), "answers without choices"),
        (raw(b'{"choices": {}, "error": {"message": "no such\\tmodel"}}'), "without choices: no such model"),
        (raw(b'{"choices": [1]}'), "answers without text"),
        (raw(b'{"choices": [{"message": {"content": null}}]}'), "answers without text"),
        (raw(b'{"choices": [{"message": {"content": " \\n"}}]}'), "answers without text"),
        (floods(LIMIT + (1 << 17)), f"answers more than {LIMIT} bytes"),
    ],
)
def test_rubbish_is_asked_for_again_twice_then_one_line(act: Act, says_: str, waits: list[float]):
    got, requests = asked(act)
    assert isinstance(got, Damaged) and says_ in str(got) and requests == 3 and len(waits) == 2
    assert asked(act, says("- red")) == ("- red", 2)


def test_a_server_that_hangs_is_left_and_asked_again(waits: list[float]):
    started = time.monotonic()
    assert asked(hangs(3), says("- red"), timeout=0.3) == ("- red", 2)
    assert time.monotonic() - started < 2.5
    got, requests = asked(hangs(1), timeout=0.1, retries=1)
    assert isinstance(got, BadInput) and requests == 2
    assert "gives no answer in 0.1 s, 2 times; give it more time" in str(got)


def test_a_server_that_drips_does_not_hold_us_for_ever():
    started = time.monotonic()
    got, _ = asked(drips(0.05, 1000), timeout=0.3, retries=0)
    assert "gives no answer in 0.3 s" in str(got) and time.monotonic() - started < 3


@pytest.mark.parametrize("act", [cuts(), cuts(b'{"choices": [')])
def test_a_cut_connection_is_tried_again(act: Act):
    assert asked(act, says("- red")) == ("- red", 2)
    got, requests = asked(act, retries=2)
    assert isinstance(got, NoMatch) and requests == 3
    assert "cannot be reached (" in str(got) and ", 3 times; start the server" in str(got)


def test_no_server_at_all(waits: list[float]):
    with serving(says("")) as server:
        url = server.url
    with pytest.raises(
        NoMatch, match=r"tiny at 127\.0\.0\.1:\d+: cannot be reached \(.*refused\), 3 times; start"
    ):
        Endpoint(url, "tiny", retries=2).answer("why?", 0)
    assert len(waits) == 2


def test_a_redirect_is_not_followed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(says("- red")) as thief:
        for status in (301, 302, 303, 307, 308):
            got, requests = asked(fails(status, Location=f"{thief.url}/v1/chat/completions"))
            assert isinstance(got, BadInput) and requests == 1
            assert f"answers {status}: it sends on to {thief.url[7:]}, where the key is not sent" in str(got)
        assert thief.seen == []


@pytest.mark.parametrize(
    ("status", "message", "says_"),
    [
        (400, "max_tokens is too large", "answers 400: max_tokens is too large; check"),
        (404, "", "answers 404: Not Found; check the address and the model's name"),
        (422, "y" * 1000, "answers 422: " + "y" * 120 + ";"),
        (401, "bad key", "answers 401: it wants a key; set OPENAI_API_KEY"),
        (403, "bad key", "answers 403: it wants a key; set OPENAI_API_KEY"),
    ],
)
def test_other_refusals_are_one_line_at_once(status: int, message: str, says_: str, waits: list[float]):
    got, requests = asked(fails(status, message))
    assert isinstance(got, BadInput) and requests == 1 and waits == [] and says_ in str(got)


def test_a_wrong_key_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_KEY", KEY)
    got, _ = asked(fails(401), key_variable="MY_KEY")
    assert "answers 401: it refuses the key in MY_KEY; check the key" in str(got)
    got, _ = asked(fails(401), key_variable=None)
    assert "answers 401: it wants a key; name a variable that holds a key" in str(got)


@pytest.mark.parametrize(
    ("change", "says_"),
    [
        ({"url": "localhost:8000"}, "endpoint: is no address of a server; write http://localhost:8000"),
        ({"url": "ftp://host"}, "is no address"),
        ({"url": "file:///etc/passwd"}, "is no address"),
        ({"url": "http://"}, "is no address"),
        ({"url": "http://host:port"}, "is no address"),
        ({"url": "http://host:0"}, "is no address"),
        ({"url": "http://[::1"}, "is no address"),
        ({"url": "http://host/a b"}, "is no address"),
        ({"url": "http://höst"}, "is no address"),
        ({"url": "http://host/\r\nX: 1"}, "is no address"),
        ({"url": "https://me:pass@host"}, "holds a user, a password"),
        ({"url": "https://host/#x"}, "holds a user, a password or a fragment"),
        ({"url": 3}, "url: 3 is no str"),
        ({"model": ""}, "model: is empty"),
        ({"model": "a\nb"}, "model: "),
        ({"timeout": 0.0}, "timeout: 0.0 s"),
        ({"timeout": float("nan")}, "timeout: nan "),
        ({"retries": -1}, "retries: -1"),
        ({"temperature": -0.1}, "temperature: -0.1"),
        ({"max_tokens": 0}, "max_tokens: 0"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_sent(change: dict, says_: str):
    with pytest.raises(BadInput) as caught:
        Endpoint(**{"url": "http://localhost:1", "model": "tiny", **change})
    assert says_ in str(caught.value) and "me:pass" not in str(caught.value)


def test_questions_and_answers_become_turns():
    prompt = "Q: what of a robin?\nA:\n- red\n- small\n\nQ: what of a wren? A: no\nA:\n-"
    expected = [
        {"role": "user", "content": "what of a robin?"},
        {"role": "assistant", "content": "- red\n- small"},
        {"role": "user", "content": "what of a wren? A: no"},
    ]
    assert turns(prompt) == expected
    assert turns(prompt.removesuffix("\nA:\n-")) == expected
    for other in ("List features of a wren.", "Hi.\nQ: a?\nA: b", "A: b\nQ: a?", "Q: a?\nQ: b?\nA:", ""):
        assert turns(other) == [{"role": "user", "content": other}]
