"""Flags made from the fields of a method."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from secateur.cli import flags
from secateur.cli.compare import parse_method
from secateur.cli.parser import Parser, shard_size, whole, words
from secateur.core.budget import Budget
from secateur.core.method import OneShot
from secateur.errors import BadInput, NoMatch
from secateur.methods.weights.sparsegpt import SparseGPT
from secateur.methods.weights.wanda import Wanda


@dataclass(frozen=True, kw_only=True)
class Example(OneShot):
    """An example.

    Args:
        steps, rounds: how often, at
            most. 50% is usual.
        quick: skip the slow part.
    """

    steps: int = 3
    rounds: int = 1
    weight: float = 0.5
    quick: bool = False


def parsed(*argv: str):
    parser = Parser(prog="secateur example")
    flags.amount_flags(parser)
    flags.method_flags(parser, Example)
    return parser.parse(list(argv))


def test_help_comes_from_the_docstrings_of_the_class_and_its_base():
    found = flags.field_help(Example)
    assert found["steps"] == found["rounds"] == "how often, at most. 50% is usual"
    assert found["quick"] == "skip the slow part"
    assert "row, column, layer" in found["pattern"] and found["owl_m"] == found["owl_lambda"]


def test_only_what_was_given_is_set():
    assert flags.settings_of(parsed(), Example) == {}
    args = parsed("--steps=7", "--weight=1e-3", "--quick", "--pattern=2:4", "--sparsity=50%", "--owl-m=3")
    assert flags.settings_of(args, Example) == {
        "steps": 7, "weight": 1e-3, "quick": True, "pattern": "2:4", "sparsity": "50%", "owl_m": 3.0,
    }  # fmt: skip
    assert flags.settings_of(parsed("--no-quick"), Example) == {"quick": False}


def test_budgets_are_amounts():
    assert flags.settings_of(parsed("--params", "8e7"), Example) == {"sparsity": Budget(params=8e7)}
    with pytest.raises(BadInput, match="exactly one"):
        flags.settings_of(parsed("--params", "8e7", "--bytes", "1e6"), Example)


@pytest.mark.parametrize("argv", [["--steps", "x"], ["--weight", "x"], ["--steps"], ["--quick", "yes"]])
def test_values_of_the_wrong_kind_are_refused(argv):
    with pytest.raises(BadInput):
        parsed(*argv)


def test_a_flag_may_not_be_shortened_and_its_typo_is_near():
    with pytest.raises(NoMatch, match="--steps"):
        parsed("--step", "3")


def declare(parser: Parser, cls: type[OneShot] | None) -> None:
    parser.add_argument("model")
    parser.add_argument("method")
    parser.add_argument("--out")
    if cls is not None:
        flags.method_flags(parser, cls)


@pytest.mark.parametrize(
    "argv,model,method",
    [
        (["m", "wanda", "--share"], "m", "wanda"),
        (["--share", "m", "wanda"], "m", "wanda"),
        (["m", "--blocksize", "64", "sparsegpt"], "m", "sparsegpt"),
        (["--blocksize", "64", "m", "sparsegpt"], "m", "sparsegpt"),
        (["wanda", "magnitude"], "wanda", "magnitude"),
        (["--out", "wanda", "m", "sparsegpt", "--damping=0.1"], "m", "sparsegpt"),
        (["--out", "random", "wanda", "sparsegpt", "--damping=0.1"], "wanda", "sparsegpt"),
    ],
)
def test_the_method_is_found_wherever_it_stands(argv, model, method):
    args = flags.parse_with_method(Parser(prog="secateur x"), declare, argv)
    assert (args.model, args.method) == (model, method)


def test_a_method_in_words():
    assert parse_method("wanda", {"sparsity": "60%"}) == Wanda(sparsity=0.6)
    other = parse_method("sparsegpt:damping=0.1,pattern=2:4", {"sparsity": "60%"})
    assert other == SparseGPT(damping=0.1, pattern="2:4")
    assert parse_method("wanda:share=true", {}) == Wanda(share=True)
    assert parse_method("wanda:owl-m=3", {}) == Wanda(owl_m=3.0)


@pytest.mark.parametrize("text", ["wand", "wanda:x=1", "wanda:share", "wanda:owl_m=x", "wanda:share=yes"])
def test_words_that_are_no_method(text):
    with pytest.raises((NoMatch, BadInput)):
        parse_method(text, {})


def test_small_converters():
    assert words(" a, b,,c ") == ["a", "b", "c"]
    assert [shard_size(text) for text in ("5GB", "500MB", "1.5k", "123")] == [5 * 10**9, 5 * 10**8, 1500, 123]
    assert whole(0)("0") == 0
