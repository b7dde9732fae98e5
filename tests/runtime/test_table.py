"""Names of many layers in few words, and aligned columns."""

from __future__ import annotations

from secateur.runtime.table import aligned, mega, pattern_name


def test_names_of_many_layers() -> None:
    names = [f"model.layers.{i}.mlp.{part}" for i in range(3) for part in ("gate", "up")]
    assert pattern_name(names) == "model.layers.*.mlp.gate, up x6"
    assert pattern_name(["lm_head"]) == "lm_head"
    assert pattern_name([f"m.{i}.a_rather_long_name_{part}" for i in range(2) for part in "abcd"]) == (
        "m.*.a_rather_long_name_a and 3 kinds more x8"
    )


def test_columns_are_aligned() -> None:
    assert aligned(("a", "bb"), [("x", "1"), ("long", "22")], left=(0,)).splitlines() == [
        "a     bb",
        "--------",
        "x      1",
        "long  22",
    ]
    assert mega(1_234_567_890) == "1,234.6 MB"
