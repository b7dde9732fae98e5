"""The head of results.json and the tables made from it."""

from __future__ import annotations

from secateur.evaluate.results import lines, machine, markdown, new_results, versions, write_results
from secateur.report.table import check_results, load_results
from tests.report.example import demo
from tests.report.example import sweep as example


def test_the_head_is_whole():
    results = new_results(
        demo()["rows"], title="t", command="c", model="m", evaluation="e", knee={"wanda": {"drop": None}}
    )
    checked = check_results(results)
    assert (checked["title"], checked["command"], checked["model"], checked["evaluation"]) == (
        "t",
        "c",
        "m",
        "e",
    )
    assert set(versions()) >= {"python", "secateur", "torch"}
    found = machine()
    assert found["cores"] >= 1 and found["cpu"] and found["memory_gb"] > 0


def test_the_table_leaves_out_what_nobody_measured():
    heads, body = lines(demo())
    assert "Tokens/s" not in heads and "Perplexity" in heads
    assert [row[0] for row in body] == ["dense", "magnitude 50%", "wanda 50%"]
    assert all(len(row) == len(heads) for row in body)


def test_seeds_are_one_line_with_their_spread():
    heads, body = lines(example())
    wanda = next(row for row in body if row[0] == "wanda 50%")
    assert " to " in wanda[heads.index("Perplexity")]


def test_markdown_escapes_what_would_break_the_table():
    results = demo()
    results["rows"][1]["name"] = "a|b"
    assert "a\\|b" in markdown(results)


def test_files_are_read_back(tmp_path):
    results = new_results(demo()["rows"], title="t", command="c", model="m")
    paths = write_results(results, tmp_path / "deep" / "er")
    assert {p.name for p in paths} == {
        "results.json",
        "results.csv",
        "layers.csv",
        "results.md",
        "plot.svg",
        "report.html",
    }
    assert load_results(tmp_path / "deep" / "er" / "results.json")["rows"] == check_results(results)["rows"]
