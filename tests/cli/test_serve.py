"""`secateur serve` as a program: its line when it is ready, its end by a signal, and what it refuses."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from secateur.cli import main
from tests.cli.tiny import secateur

PROGRAM = "import sys\nfrom secateur.cli.main import main\nsys.exit(main(sys.argv[1:]))"


class Program:
    """A running `secateur serve`."""

    def __init__(self, *words: str | Path) -> None:
        command = [sys.executable, "-c", PROGRAM, "serve", *map(str, words), "--port", "0", "--threads", "1"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.ready)
        if not found:
            self.process.kill()
            raise AssertionError(self.ready + str(self.process.communicate()))
        self.port = int(found[1])

    def ask(self, **fields: object) -> dict[str, object]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(
            "POST", "/v1/completions", json.dumps(fields), {"Content-Type": "application/json"}
        )
        text = connection.getresponse().read()
        connection.close()
        return json.loads(text)

    def end(self, number: int) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
def running(tiny: Path) -> Iterator[Program]:
    made = Program(tiny, "--log", "--max-tokens", "5000", "--queue", "2")
    yield made
    made.process.kill()
    made.process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("number,status", [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_it_answers_until_a_signal_ends_it(running: Program, number: int, status: int) -> None:
    assert re.fullmatch(r"serving tiny at http://127\.0\.0\.1:\d+ \(Ctrl-C stops\)\n", running.ready)
    found = running.ask(prompt="The license", max_tokens=4)
    assert found["model"] == "tiny" and found["object"] == "text_completion"
    assert "ask for at most 5000" in str(running.ask(prompt="The license", max_tokens=5001))
    left, out, err = running.end(number)
    assert left == status and out == ""
    lines = err.splitlines()
    assert len(lines) == 2, err
    assert re.fullmatch(r"\d\d:\d\d:\d\d text 200 \d+\+4 tokens [\d.]+ s", lines[0])
    assert re.fullmatch(r"\d\d:\d\d:\d\d text 400 [\d.]+ s", lines[1])


@pytest.mark.slow
def test_a_signal_while_it_answers_leaves_no_traceback(running: Program) -> None:
    connection = socket.create_connection(("127.0.0.1", running.port))
    body = json.dumps({"prompt": "The", "max_tokens": 5000, "stream": True, "temperature": 2}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    assert connection.recv(20).startswith(b"HTTP/1.1 200")
    running.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    status, _, err = running.end(signal.SIGINT)  # the second does not wait for the answer
    connection.close()
    assert status == 130 and "Traceback" not in err and "Error" not in err, err


def test_a_port_that_is_taken_is_one_line(tiny: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = secateur("serve", tiny, "--port", str(port))
    assert said.status == 74 and said.err == f"secateur: 127.0.0.1:{port}: Address already in use\n"


@pytest.mark.parametrize(
    "words,line",
    [
        ([], "serve: missing MODEL"),
        (["tiny", "--port", "70000"], "--port: 70000 is no port; give 0 to 65535"),
        (["tiny", "--port", "x"], "'x' is no whole number"),
        (["tiny", "--queue", "-1"], "-1 is below 0"),
        (["tiny", "--max-tokens", "0"], "0 is below 1"),
        (["tiny", "--ports", "1"], "no flag --ports; did you mean '--port'"),
        (["./nothing", "--port", "0"], "no such file or folder"),
    ],
)
def test_mistakes_are_one_line(words: list[str], line: str, here: Path) -> None:
    said = secateur("serve", *words)
    assert said.status == 2 and line in said.err and said.err.count("\n") == 1, said.err


def test_a_model_without_a_tokenizer_is_refused(here: Path) -> None:
    from tests.tinylm import tiny_llama

    tiny_llama().save_pretrained(here / "bare")
    said = secateur("serve", here / "bare", "--port", "0")
    assert said.status == 2 and "has no tokenizer" in said.err and said.err.count("\n") == 1


def test_the_verb_is_listed() -> None:
    assert "serve" in main.VERBS
