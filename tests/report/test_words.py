from __future__ import annotations

import math

import pytest

from secateur.report import words


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (words.percent(0.5), "50.0%"),
        (words.percent(None), "not measured"),
        (words.percent(0.0), "0.0%"),
        (words.percent(math.nan), "not finite"),
        (words.short_percent(0.375), "37.5%"),
        (words.size(538_090_408), "538 MB"),
        (words.size(999_999), "1.00 MB"),
        (words.size(0), "0 B"),
        (words.size(None), "not measured"),
        (words.megabytes(2300), "2.30 GB"),
        (words.quantity(162_861_696), "163 M"),
        (words.duration(3.13), "3.1 s"),
        (words.duration(59.6), "1 min 00 s"),
        (words.duration(5400), "1 h 30 min"),
        (words.duration(None), "not measured"),
        (words.plain(68.857), "68.86"),
        (words.plain(506.31), "506.3"),
        (words.plain(12_345.6), "12,346"),
        (words.plain(2.34e7), "2.34e7"),
        (words.plain(math.inf), "not finite"),
        (words.speed(41.23), "41.2"),
        (words.speed(1234.5), "1,234"),
        (words.metric("accuracy", 0.412), "41.2%"),
        (words.metric("perplexity", 32.9), "32.90"),
        (words.difference("accuracy", -0.061), "−6.1 pt"),
        (words.difference("perplexity", 26.1), "+26.10"),
        (words.difference("perplexity", None), "not measured"),
        (words.tick("perplexity", 20_000.0), "20,000"),
        (words.tick("accuracy", 0.4), "40%"),
        (words.moment("2026-11-20T14:00:00Z"), "2026-11-20 14:00 UTC"),
        (words.moment("yesterday"), "yesterday"),
    ],
)
def test_reads_as(written: str, expected: str) -> None:
    assert written == expected


def test_clean_takes_out_what_fools_a_terminal_or_a_page() -> None:
    found = words.clean(
        {"a\x00": ["\x1b[31mred", "left\u202eright", "half\ud800", "tab\tand\nline"], "n": 1.5}
    )
    assert found == {
        "a\ufffd": ["\ufffd[31mred", "left\ufffdright", "half\ufffd", "tab\tand\nline"],
        "n": 1.5,
    }


def test_the_last_part_of_a_metric_decides_how_it_reads() -> None:
    assert words.lower_is_better("wikitext/word_perplexity") and not words.lower_is_better(
        "hellaswag/acc_norm"
    )
    assert words.metric("hellaswag/acc_norm", 0.5) == "50.0%" and words.metric("mmlu/score", 0.5) == "0.500"
