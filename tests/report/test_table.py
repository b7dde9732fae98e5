from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from secateur.errors import BadInput, Damaged, SecateurError, Unsupported
from secateur.report.table import check_results, layers_to_csv, load_results, to_csv, to_json, write_tables
from tests.report import example


def test_json_is_strict_and_comes_back(tmp_path: Path) -> None:
    results = example.demo()
    results["rows"][1]["metrics"]["perplexity"] = math.inf
    results["rows"][2]["metrics"]["perplexity"] = math.nan
    text = to_json(results)
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    (tmp_path / "results.json").write_text(text)
    back = load_results(tmp_path / "results.json")
    assert back["rows"][1]["metrics"]["perplexity"] == math.inf
    assert math.isnan(back["rows"][2]["metrics"]["perplexity"])
    assert back["rows"][0] == check_results(results)["rows"][0]
    assert to_json(back) == text


def test_csv_has_a_line_a_row_and_empty_cells_for_what_was_not_measured() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(example.demo()))))
    assert [row["name"] for row in rows] == ["dense", "magnitude 50%", "wanda 50%"]
    assert rows[0]["seconds"] == "" and rows[0]["tokens_per_second"] == ""
    assert float(rows[0]["perplexity"]) == 32.9 and json.loads(rows[1]["config"])["sparsity"] == 0.5


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "\tx"])
def test_csv_never_starts_a_formula(name: str) -> None:
    results = example.demo()
    results["rows"][0]["name"] = name
    assert next(csv.DictReader(io.StringIO(to_csv(results))))["name"] == "'" + name


def test_layers_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(layers_to_csv(example.demo()))))
    assert len(rows) == 2 * 210
    assert rows[0]["layer"] == "model.layers.0.self_attn.q_proj" and rows[0]["shape"] == "576x576"
    assert rows[0]["error"] == "" and float(rows[-1]["error"]) > 0


def test_write_tables(tmp_path: Path) -> None:
    paths = write_tables(example.demo(), tmp_path / "new")
    assert [path.name for path in paths] == ["results.json", "results.csv", "layers.csv"]
    assert load_results(paths[0])["model"] == "smollm2-135m"
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "layers.csv",
        "results.csv",
        "results.json",
    ]


def _changed(**change: Any) -> dict[str, Any]:
    return {**example.demo(), **change}


def _misspelt() -> dict[str, Any]:
    results = example.demo()
    results["evalution"] = results.pop("evaluation")
    return results


def _row(**change: Any) -> dict[str, Any]:
    results = example.demo()
    results["rows"][1] = {**results["rows"][1], **change}
    return results


def _without(name: str) -> dict[str, Any]:
    results = example.demo()
    del results["rows"][1][name]
    return results


@pytest.mark.parametrize(
    ("results", "kind", "says"),
    [
        ([], BadInput, "format is 'a list'"),
        (_changed(format="secateur.plan"), BadInput, "format is 'secateur.plan'"),
        (_changed(version="1"), BadInput, "version is '1'"),
        (_changed(version=2), Unsupported, "version 2 is newer"),
        (_changed(rows=[]), BadInput, "no rows"),
        (_changed(rows={}), BadInput, "'rows' is an object"),
        (_changed(evalution="x", evaluation=None), None, ""),
        (_misspelt(), BadInput, "'evaluation'"),
        (_changed(device="cpu"), None, ""),
        (_without("name"), BadInput, "row 2: 'name' is missing"),
        (_row(sparsity=1.5), BadInput, "row 2: 'sparsity' is 1.5"),
        (_row(sparsity="half"), BadInput, "not a number: a text 'half'"),
        (_row(bytes=-1), BadInput, "'bytes' is -1"),
        (_row(bytes=10**400), BadInput, "beyond 2**63"),
        (_row(bytes=True), BadInput, "not a number"),
        (_row(metrics={"perplexity": [1]}), BadInput, "row 2, metrics: 'perplexity'"),
        (_row(metrics=None), None, ""),
        (_row(layers=[{"nmae": "x"}]), BadInput, "did you mean 'name'"),
        (_row(layers=[{"name": "x", "sparsity": 2}]), BadInput, "row 2, x: 'sparsity' is 2"),
        (_changed(knee={"wanda": 0.5}), BadInput, "knee: 'wanda' is a number"),
    ],
)  # fmt: skip
def test_refuses_in_one_line(results: Any, kind: type[SecateurError] | None, says: str) -> None:
    if kind is None:
        assert check_results(results)["rows"]
        return
    with pytest.raises(kind) as caught:
        check_results(results, "results.json")
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith("results.json")


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe", b'{"format": NaN}', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"],
    ids=["empty", "cut short", "not utf-8", "nan", "deep", "long number"],
)
def test_a_damaged_file_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "r.json").write_bytes(data)
    with pytest.raises(Damaged, match=r"r\.json") as caught:
        load_results(tmp_path / "r.json")
    assert "\n" not in str(caught.value)


def test_the_input_is_left_alone() -> None:
    results = example.demo()
    before = repr(results)
    check_results(results)
    to_csv(results)
    assert repr(results) == before
