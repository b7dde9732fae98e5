"""Choice questions as they lie in files."""

from __future__ import annotations

import json

import pytest

from secateur.errors import BadInput, Damaged, NoMatch
from secateur.evaluate.questions import read_questions


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_plain_questions(tmp_path):
    path = lines(
        tmp_path / "sky.jsonl", {"context": "The sky is", "options": [" blue", " brick"], "answer": 0}
    )
    name, (question,) = read_questions(path)
    assert name == "sky"
    assert (question.context, question.options, question.answer) == ("The sky is", (" blue", " brick"), 0)


def test_piqa_is_asked_as_the_harness_asks_it(tmp_path):
    (tmp_path / "piqa").mkdir()
    row = {"goal": "dresser", "sol1": "replace drawer", "sol2": "finish"}
    path = lines(tmp_path / "piqa" / "valid.jsonl", row, row)
    (tmp_path / "piqa" / "valid-labels.lst").write_text("1\n0\n")
    name, questions = read_questions(path)
    assert name == "piqa" and [q.answer for q in questions] == [1, 0]
    assert questions[0].context == "Question: dresser\nAnswer:"
    assert questions[0].options == (" replace drawer", " finish")
    assert len(read_questions(path, limit=1)[1]) == 1


def test_a_label_in_the_line_needs_no_second_file(tmp_path):
    path = lines(tmp_path / "q.jsonl", {"goal": "g", "sol1": "a", "sol2": "b", "label": 1})
    assert read_questions(path)[1][0].answer == 1


@pytest.mark.parametrize(
    "row",
    [
        {},
        [],
        {"context": "a", "options": [" b", " c"]},
        {"context": "a", "options": [" b", 1], "answer": 0},
        {"context": "a", "options": " b", "answer": 0},
        {"context": "a", "options": [" b", " c"], "answer": 2},
        {"context": "a", "options": [" b"], "answer": 0},
        {"goal": "g", "sol1": "a", "label": 0},
    ],
)
def test_a_line_that_is_no_question_is_named(row, tmp_path):
    good = {"context": "a", "options": [" b", " c"], "answer": 0}
    with pytest.raises(BadInput):
        read_questions(lines(tmp_path / "q.jsonl", good, row))


def test_files_that_are_none(tmp_path):
    with pytest.raises(NoMatch, match=r"qs\.jsonl"):
        lines(tmp_path / "qs.jsonl")
        read_questions(tmp_path / "q.jsonl")
    with pytest.raises(BadInput, match="no question"):
        read_questions(tmp_path / "qs.jsonl")
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(Damaged):
        read_questions(tmp_path / "bad.jsonl")
    (tmp_path / "bad.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(Damaged):
        read_questions(tmp_path / "bad.jsonl")
    path = lines(tmp_path / "p.jsonl", {"goal": "g", "sol1": "a", "sol2": "b"})
    (tmp_path / "p-labels.lst").write_text("0\n1\n")
    with pytest.raises(BadInput, match="2 labels for 1"):
        read_questions(path)


def test_real_piqa(shared_data):
    name, questions = read_questions(shared_data / "piqa" / "valid.jsonl")
    assert name == "piqa" and len(questions) == 1838
    assert {q.answer for q in questions} == {0, 1}
