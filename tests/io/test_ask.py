"""Asking for descriptors: what was answered is kept, nothing is asked twice, and useless answers are one clear line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from secateur.errors import BadInput, Damaged, NoMatch, Unsupported
from secateur.io import endpoint
from secateur.io.ask import PROMPT, Endpoint, LocalModel, ask, prompt_for
from secateur.io.descriptors import clean
from tests.chatserver import echoes, fails, raw, says, serving
from tests.tinylm import save_tiny, tiny_tokenizer

BIRDS = ("robin", "wren", "crow", "gull")
TEMPLATE = (
    "{% for m in messages %}w5 {{ m['content'] }} w6 {% endfor %}{% if add_generation_prompt %}w7{% endif %}"
)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(endpoint, "_sleep", lambda seconds: None)
    yield


class Script:
    """An asker that gives out answers in turn; an exception among them is raised."""

    def __init__(self, *answers: str | BaseException, name: str = "script") -> None:
        self.name, self.answers = name, list(answers)
        self.asked: list[tuple[str, int]] = []

    def answer(self, prompt: str, seed: int) -> str:
        self.asked.append((prompt, seed))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer


def test_the_prompt_shows_examples_and_asks_for_the_class():
    prompt = prompt_for("fire_truck")
    assert prompt.endswith("Q: By which visible features can a fire truck be told in a photo?\nA:\n-")
    assert prompt.count("{") == 0 and prompt.count("Q:") == 3
    assert all(len(clean(block)) == 6 for block in PROMPT.split("Q:")[1:3]), (
        "its own examples pass the cleaning"
    )
    assert prompt_for("{x} %s", "a {class}, a {class}") == "a {x} %s, a {x} %s"
    with pytest.raises(BadInput, match=r"template: holds no \{class\}; write \{class\} where"):
        prompt_for("robin", "what is a {}?")


def test_a_real_server_is_asked_for_every_class():
    told: list[tuple[int, int, str]] = []
    with serving(echoes("Sure:\n- a {} head\n- a {} tail\n- a {} head")) as server:
        who = Endpoint(server.url, "tiny")
        d = ask(BIRDS, who, seed=5, tell=lambda *args: told.append(args))
    assert d.classes == BIRDS and d.owner == (0, 0, 1, 1, 2, 2, 3, 3)
    assert d.of(1) == ("a wren head", "a wren tail")
    today = datetime.now(UTC).date().isoformat()
    pattern = rf"tiny at 127\.0\.0\.1:\d+ \(temperature 0\.7, 300 tokens\), {today}, prompt [0-9a-f]{{12}}"
    assert all(re.fullmatch(pattern, source) for source in d.sources) and len(set(d.sources)) == 4
    assert told == [(i, 4, name) for i, name in enumerate(BIRDS)] + [(4, 4, "gull")]
    assert [body["seed"] for _, _, body in server.seen] == [5] * 4
    messages = server.seen[0][2]["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2 + ["user"]


def test_what_was_answered_stays_and_is_never_asked_twice(tmp_path: Path):
    cache = tmp_path / "deep" / "answers"
    good = echoes("- a {} head")
    with serving(good, good, fails(500)) as server:
        who = Endpoint(server.url, "tiny", retries=3)
        with pytest.raises(BadInput, match=r"'crow': tiny at .*: answers 500: .*, 4 times"):
            ask(BIRDS, who, cache=cache)
        assert len(server.seen) == 6 and len(list(cache.iterdir())) == 2
        server.script[:] = [good]
        d = ask(BIRDS, who, cache=cache)
        assert len(server.seen) == 8, "only crow and gull"
        assert d.words == tuple(f"a {name} head" for name in BIRDS)
        assert ask(BIRDS, who, cache=cache) == d and len(server.seen) == 8
        ask(("robin",), who, cache=cache, seed=1)
        ask(("robin",), who, cache=cache, template="Of {class}:")
        ask(("robin",), Endpoint(server.url, "tiny", retries=3, temperature=0.0), cache=cache)
        assert len(server.seen) == 11, "another seed, prompt or asker is another question"
        ask(("robin",), Endpoint(server.url, "tiny", timeout=5.0), cache=cache)
        assert len(server.seen) == 11, "patience does not change the answer"


def test_a_kill_half_way_loses_nothing_that_was_answered(tmp_path: Path):
    killed = Script("- one", "- two", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        ask(BIRDS, killed, cache=tmp_path)
    again = Script("- three")
    assert ask(BIRDS, again, cache=tmp_path).words == ("one", "two", "three", "three")
    assert [prompt for prompt, _ in again.asked] == [prompt_for("crow"), prompt_for("gull")]
    assert all(re.fullmatch(r"[0-9a-f]{64}\.json", path.name) for path in tmp_path.iterdir())


def test_a_cached_answer_holds_the_prompt_and_the_raw_answer(tmp_path: Path):
    answer = "Sure!\n- é \ud800 red\n- 2"
    assert ask(("robin",), Script(answer), cache=tmp_path).words == ("é red",)
    (path,) = tmp_path.iterdir()
    kept = json.loads(path.read_text())
    assert kept == {
        "format": 1, "asker": "script", "seed": 0, "prompt": prompt_for("robin"),
        "date": datetime.now(UTC).date().isoformat(), "answer": answer,
    }  # fmt: skip
    kept["date"] = "2020-02-03"
    path.write_text(json.dumps(kept))
    d = ask(("robin",), Script("never"), cache=tmp_path)
    assert d.words == ("é red",) and "script, 2020-02-03, prompt " in d.sources[0], "the date of the answer"


@pytest.mark.parametrize(
    "change",
    [{"answer": 1}, {"prompt": "other"}, {"date": "today\n"}, {"seed": 9}, {"extra": 1}, {"format": 2}],
)
def test_a_damaged_or_foreign_answer_is_refused(tmp_path: Path, change: dict):
    ask(("robin",), Script("- red"), cache=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(Damaged, match="is not the answer to its question; remove it to ask again"):
        ask(("robin",), Script("- blue"), cache=tmp_path)
    path.write_text('{"format": 1')
    with pytest.raises(Damaged, match="not valid JSON"):
        ask(("robin",), Script("- blue"), cache=tmp_path)
    path.unlink()
    assert ask(("robin",), Script("- blue"), cache=tmp_path).words == ("blue",)


def test_a_useless_answer_is_asked_for_again_and_not_kept(tmp_path: Path):
    who = Script("I'm sorry.", "What?", "- red")
    assert ask(("robin",), who, cache=tmp_path).words == ("red",)
    assert len({seed for _, seed in who.asked}) == 3, "with another seed each time"
    assert "red" in next(tmp_path.iterdir()).read_text()
    who = Script("- blue", "I'm sorry.")
    with pytest.raises(BadInput) as caught:
        ask(("wren", "crow"), who, cache=tmp_path)
    assert str(caught.value) == (
        "'crow': script answers nothing that could be a descriptor, 3 times; ask another model, or write some by hand"
    )
    assert len(who.asked) == 4 and len(list(tmp_path.iterdir())) == 2


def test_rubbish_from_a_server_names_the_class(tmp_path: Path):
    with serving(says("- red"), raw(b"<html>")) as server:
        with pytest.raises(Damaged, match=r"'wren': tiny at .*: is not valid JSON"):
            ask(BIRDS, Endpoint(server.url, "tiny"), cache=tmp_path)
        assert len(server.seen) == 4
    with serving(says("   ")) as server, pytest.raises(Damaged, match=r"'robin': .*answers without text"):
        ask(BIRDS, Endpoint(server.url, "tiny"))
    with pytest.raises(NoMatch, match=r"'robin': tiny at .* cannot be reached"):
        ask(BIRDS, Endpoint(server.url, "tiny", retries=1))


def test_bad_requests_are_refused_before_anything_is_asked(tmp_path: Path):
    who = Script("- red")
    (tmp_path / "file").write_text("x")
    for says_, classes, options in [
        ("no class", (), {}),
        ("'robin' is there twice", ("robin", "robin"), {}),
        ("class 2: is empty", ("robin", ""), {}),
        ("class 1: ", ("robin\nQ: evil",), {}),
        ("seed", ("robin",), {"seed": -1}),
        ("seed", ("robin",), {"seed": True}),
        ("template", ("robin",), {"template": "x"}),
        ("is no folder", ("robin",), {"cache": tmp_path / "file"}),
    ]:
        with pytest.raises(BadInput, match=says_):
            ask(classes, who, **options)
    for name in ("", "a\nb", "x" * 301):
        with pytest.raises(BadInput, match="name of the asker"):
            ask(("robin",), Script("- red", name=name))
    assert who.asked == []


# -- a model on this machine ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("lm") / "tiny", max_position_embeddings=512)


def test_a_small_random_model_answers_and_repeats_with_its_seed(tiny: Path):
    who = LocalModel(tiny, max_tokens=12)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    prompt = prompt_for("robin")
    one, same, other = who.answer(prompt, 0), who.answer(prompt, 0), who.answer(prompt, 1)
    assert one == same != other and torch.rand(1) == expected
    assert one.startswith("- ") and re.fullmatch(r"- (w\d+ ?)*", one), (
        "behind the dash that the prompt ends with"
    )
    assert not who.answer("w1 w2", 0).startswith("-")
    d = ask(("robin", "wren"), who)
    assert len(d.of(0)) == 1 and d.of(0)[0] == clean(one)[0]
    assert (
        re.fullmatch(r"tiny [0-9a-f]{8} \(temperature 0\.7, 12 tokens\)", who.name)
        and who.name in d.sources[0]
    )


def test_two_models_of_one_name_are_two_askers(tiny: Path, tmp_path: Path):
    other = LocalModel(
        save_tiny(tmp_path / "tiny", max_position_embeddings=512, rms_norm_eps=1e-5), max_tokens=4
    )
    assert LocalModel(tiny, max_tokens=4).name == other.name, "the same weights"
    with torch.no_grad():
        other.model.lm_head.weight.add_(1.0)
        other.model.save_pretrained(tmp_path / "tiny")
    assert LocalModel(tmp_path / "tiny", max_tokens=4).name != other.name


def test_greedy_is_the_likeliest_token_each_time(tiny: Path):
    who = LocalModel(tiny, temperature=0.0, max_tokens=5)
    ids = who.tokenizer("w1 w2 w3", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        for _ in range(5):
            ids = torch.cat([ids, who.model(ids).logits[:, -1:].argmax(-1)], 1)
    assert who.answer("w1 w2 w3", 0) == who.tokenizer.decode(ids[0, 4:], skip_special_tokens=True)


def test_a_chat_model_is_asked_in_turns(tiny: Path):
    who = LocalModel(tiny, max_tokens=3)
    who.tokenizer.chat_template = TEMPLATE
    seen: list[list[int]] = []
    who.model.register_forward_pre_hook(
        lambda m, a, k: seen.append(k["input_ids"].tolist()), with_kwargs=True
    )
    answer = who.answer("Q: w1\nA: w2\nQ: w3\nA:\n-", 0)
    assert seen[0] == [[9, 5, 10, 9, 6, 10, 9, 7, 10, 11]]  # w5 w1 w6, w5 w2 w6, w5 w3 w6, w7, no second BOS
    assert not answer.startswith("-")


def test_a_model_that_goes_on_with_the_next_question_is_stopped(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    who = LocalModel(tiny, max_tokens=50)
    count = 0

    def decode(ids: torch.Tensor, **_: object) -> str:
        nonlocal count
        count += 1
        return "w1\nQ:" if count >= 6 else "w1"

    monkeypatch.setattr(who.tokenizer, "decode", decode)
    who.answer("w1", 0)
    assert count == 7, "six tokens of fifty, and the answer"


def test_an_answer_of_no_use_is_a_clear_line(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    who = LocalModel(tiny, max_tokens=40)  # one line of forty words: prose, not a descriptor
    monkeypatch.setattr(who, "temperature", 0.0)
    with pytest.raises(
        BadInput, match=r"^'robin': tiny .* answers nothing that could be a descriptor, 3 times; ask"
    ):
        ask(("robin",), who)


def test_what_cannot_answer_is_refused(tiny: Path, tmp_path: Path):
    from transformers import BertConfig, BertForMaskedLM

    with pytest.raises(
        BadInput, match=r"'robin': tiny .*: a prompt of \d+ tokens and an answer of 500 exceed its 512"
    ):
        ask(("robin",), LocalModel(tiny, max_tokens=500))
    small = BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    BertForMaskedLM(small).save_pretrained(tmp_path / "bert")
    tiny_tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(Unsupported, match="writes no text; name a causal"):
        LocalModel(tmp_path / "bert")
    for path in save_tiny(tmp_path / "mute").glob("token*"):
        path.unlink()
    with pytest.raises(Unsupported, match="writes no text"):
        LocalModel(tmp_path / "mute")
    with pytest.raises(NoMatch, match="no such file or folder"):
        LocalModel(tmp_path / "nothing")
    for options in ({"temperature": -1.0}, {"max_tokens": 0}):
        with pytest.raises(BadInput):
            LocalModel(tiny, **options)


@pytest.mark.slow
def test_the_embedded_model_describes_two_classes(tmp_path: Path):
    d = ask(("robin", "fire truck"), LocalModel("smollm2-135m", max_tokens=80), cache=tmp_path)
    d.check_complete()
    assert 2 <= len(d.words) <= 24 and len(list(tmp_path.iterdir())) == 2
    assert all("smollm2-135m " in source for source in d.sources)
    assert any(len(word.split()) >= 2 for word in d.words)
