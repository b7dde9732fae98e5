"""How a way is chosen: races on a clock that the test turns, the rules of both aims, and what is kept on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.core.select import NM, Blocks
from secateur.errors import BadInput
from secateur.runtime import choice, library, ways
from secateur.runtime.choice import MARGIN, Cache, Choice, Raced, Terms, choose, crossing, decide, race
from secateur.runtime.linear import PackedLinear, TwoWays, bytes_of
from secateur.runtime.prepacked import PrepackedLinear, prepacks
from secateur.runtime.ways import Pattern, Target, build, error_of, pattern_of, targets, ways_of

needs_kernels = pytest.mark.skipif(
    library.load() is None, reason="secateur was installed without a C compiler"
)


def layer(
    pattern: Any = None, rows: int = 64, columns: int = 64, dtype: torch.dtype = torch.float32
) -> Target:
    """A random layer, half of it cut in this pattern (NM, Blocks; None: nothing)."""
    generator = torch.Generator().manual_seed(1)
    made = nn.Linear(columns, rows)
    weight = torch.randn(rows, columns, generator=generator)
    if pattern is not None:
        score = weight.abs()
        weight = weight * (
            pattern.select(score, 0.5) if isinstance(pattern, Blocks) else pattern.select(score)
        )
    made.weight.data = weight
    made = made.to(dtype).eval().requires_grad_(False)
    return targets(nn.Sequential(made))[0][0]


def way_name(module: nn.Module) -> str:
    """What `build` would call it."""
    if isinstance(module, PrepackedLinear):
        return "prepacked"
    if not isinstance(module, PackedLinear):
        return "dense"
    kind = {"nm": f"{module.n}:4", "dense": "packed"}.get(module.kind, module.kind)
    names = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.int8: "int8", torch.uint8: "int4"}
    return f"{kind} {names[module.values.dtype]}"


Times = dict[str, tuple[float, float]]


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function: ways take the seconds it is given, (a call, a row more); dense 1.0 and 0.1, the others ten times."""

    def use(times: Times) -> None:
        def fake(one: nn.Module, other: nn.Module, x: Tensor, *_: Any) -> tuple[float, float]:
            rows = x.numel() // x.shape[-1]
            told = {"dense": (1.0, 0.1), **times}
            first, second = (told.get(way_name(module), (10.0, 1.0)) for module in (one, other))
            return first[0] + rows * first[1], second[0] + rows * second[1]

        monkeypatch.setattr(choice, "race", fake)

    return use


@pytest.mark.skipif(library.load() is None, reason="the kernels were not built")
def test_layers_inside_the_kernels_are_not_charged_for_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    class Told:
        def __init__(self, module: Any, x: Tensor, cold: int) -> None:
            few = isinstance(module, PackedLinear) and module.kind == "16x1"
            self.seconds = 4e-6 if few else 2e-6 if type(module) is nn.Linear else 5e-6

        def turn(self) -> float:
            return self.seconds

    monkeypatch.setattr(choice, "Runner", Told)
    dense = nn.Linear(32, 16)
    packed = PackedLinear.from_linear(dense, kind="dense")
    one, many = torch.randn(1, 1, 32), torch.randn(1, 2, 32)
    assert choice.race(dense, packed, one) == (2e-6, 5e-6)
    assert choice.race(dense, packed, one, inside=True) == pytest.approx((10e-6, 1e-6))
    assert choice.race(packed, dense, one, inside=True) == pytest.approx((1e-6, 10e-6))
    assert choice.race(dense, packed, many, inside=True) == (2e-6, 5e-6)
    assert choice.race(dense, nn.Linear(32, 16), one, inside=True) == pytest.approx((10e-6, 10e-6))


class Waits(nn.Module):
    """Takes so long on the test's clock."""

    def __init__(self, clock: list[float], seconds: list[float]) -> None:
        super().__init__()
        self.clock, self.seconds, self.calls = clock, seconds, 0
        self.weight = nn.Parameter(torch.zeros(4, 4))

    def __deepcopy__(self, memo: Any) -> Waits:
        return self

    def forward(self, x: Tensor) -> Tensor:
        self.clock[0] += self.seconds[self.calls % len(self.seconds)]
        self.calls += 1
        return x


def test_a_race_tells_seconds_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(choice, "clock", lambda: now[0])
    one, other = Waits(now, [0.002]), Waits(now, [0.0005])
    assert race(one, other, torch.zeros(1, 4), 0) == pytest.approx((0.002, 0.0005))
    assert other.calls > 2.5 * one.calls, "turns last as long, whatever a call takes"
    slow, quick = Waits(now, [0.5]), Waits(now, [0.0005])
    assert race(slow, quick, torch.zeros(1, 4), 0) == pytest.approx((0.5, 0.0005))
    assert slow.calls == 1 + 1 + choice.ROUNDS[1], "slow ones take fewer turns"


def test_what_disturbs_some_turns_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(choice, "clock", lambda: now[0])
    disturbed = Waits(now, [0.01, 0.01, 0.019])
    assert race(disturbed, Waits(now, [0.01]), torch.zeros(1, 4), 0) == pytest.approx((0.01, 0.01))


def raced(*ways: tuple[str, float, float, int]) -> list[Raced]:
    dense = Raced("dense", (1.0, 1.0), (1e-3, 2e-3), 0.0, 100)
    return [dense, *(Raced(name, (few, many), (few, many), 0.0, size) for name, few, many, size in ways)]


@pytest.mark.parametrize(
    "found,speed,memory",
    [
        ([], ("dense", "dense"), ("dense", "dense")),
        # one that wins both; one that wins for a token only; one that wins for a prompt only
        ([("a", 0.5, 0.9, 60)], ("a", "a"), ("a", "a")),
        ([("a", 0.5, 1.8, 60)], ("a", "dense"), ("a", "a")),
        ([("a", 1.5, 0.5, 60)], ("dense", "a"), ("a", "a")),
        # not by enough to be sure; larger than dense
        ([("a", 0.98, 0.98, 60)], ("dense", "dense"), ("a", "a")),
        ([("a", 0.5, 0.5, 130)], ("a", "a"), ("dense", "dense")),
        # as large as dense: only where it is faster
        ([("a", 0.5, 0.9, 100)], ("a", "a"), ("a", "a")),
        ([("a", 1.1, 0.9, 100)], ("dense", "a"), ("dense", "dense")),
        # the second form must save a tenth, unless the first is slower than dense
        ([("a", 0.5, 0.9, 60), ("b", 0.6, 0.85, 60)], ("a", "a"), ("a", "a")),
        ([("a", 0.5, 0.9, 60), ("b", 0.6, 0.4, 60)], ("a", "b"), ("a", "a")),
        ([("a", 0.5, 1.01, 60), ("b", 0.6, 0.96, 60)], ("a", "b"), ("a", "a")),
        # of two as fast as each other, the one that needs no dense beside it, or the smaller
        ([("a", 0.5, 1.5, 60), ("b", 0.51, 0.9, 70)], ("b", "b"), ("b", "b")),
        ([("a", 0.5, 0.9, 60), ("b", 0.51, 0.9, 50)], ("b", "b"), ("b", "b")),
    ],
)
def test_rules(found: Any, speed: tuple[str, str], memory: tuple[str, str]) -> None:
    assert decide(raced(*found), "speed") == speed
    assert decide(raced(*found), "memory") == memory


shares = st.floats(0.05, 20)


@given(st.lists(st.tuples(shares, shares, st.integers(1, 200)), max_size=5))
def test_speed_is_never_slower_than_dense(found: list[tuple[float, float, int]]) -> None:
    all_raced = raced(*((f"way{at}", *one) for at, one in enumerate(found)))
    few, many = decide(all_raced, "speed")
    by = {one.way: one for one in all_raced}
    assert by[few].shares[0] <= 1 and by[many].shares[1] <= 1
    assert few == "dense" or all(by[few].shares[0] <= 1.0501 * one.shares[0] for one in all_raced)
    if few == "dense":
        assert all(one.shares[0] >= MARGIN for one in all_raced[1:])
    least, same = decide(all_raced, "memory")
    assert least == same and by[least].bytes <= by["dense"].bytes


@needs_kernels
def test_the_fastest_way_is_taken_and_the_prompt_kept_dense(clocked: Any) -> None:
    target = layer(NM(2, 4))
    clocked({"2:4 float32": (0.2, 0.3), "bitmask float32": (0.4, 0.2)})
    found = choose(target, pattern_of(target.weight), (1, 128), Terms())
    assert (found.few, found.many) == ("2:4 float32", "dense")
    # 0.2 + 0.3 r = 1 + 0.1 r: from 4 rows on dense is as quick
    assert found.rows in (4, 5)
    assert found.of("bitmask float32").shares == pytest.approx((0.6 / 1.1, 26.0 / 13.8))
    assert found.of("2:4 float32").seconds == pytest.approx((0.5, 38.6))
    clocked({})
    assert choose(target, pattern_of(target.weight), (1, 128), Terms()).few == "dense"
    clocked({"2:4 float32": (0.2, 0.3)})
    least = choose(target, pattern_of(target.weight), (1, 128), Terms(aim="memory"))
    assert (least.few, least.many, least.rows) == ("2:4 float32", "2:4 float32", 0)


@needs_kernels
def test_ways_beyond_the_tolerance_or_not_asked_for_are_out(clocked: Any) -> None:
    target = layer(NM(2, 4))
    pattern = pattern_of(target.weight)
    clocked({"2:4 int8": (0.1, 0.01), "2:4 float32": (0.5, 0.05)})
    assert choose(target, pattern, (1, 128), Terms()).few == "2:4 float32", "int8 only where it is asked for"
    assert choose(target, pattern, (1, 128), Terms(values="int8")).few == "2:4 int8"
    strict = choose(target, pattern, (1, 128), Terms(values="int8", tolerance=1e-3))
    assert strict.few == "2:4 float32" and strict.of("2:4 int8").out.startswith("off by")
    assert strict.of("2:4 int8").seconds == () and 1e-3 < strict.of("2:4 int8").error < 1e-2
    only = choose(target, pattern, (1, 128), Terms(values="int8", ways=("bitmask",)))
    assert [one.way for one in only.raced] == ["dense", "bitmask float32", "bitmask int8"]


@needs_kernels
def test_where_two_ways_cross(clocked: Any) -> None:
    target = layer(NM(2, 4))
    for times, rows in [((0.2, 0.14), 20), ((0.2, 0.3), 4), ((0.2, 0.105), 128), ((0.95, 2.0), 1)]:
        clocked({"bitmask float32": times})
        found = crossing(target, "bitmask float32", "dense", (1, 128), Terms())
        assert abs(found - rows) <= 1, (times, found)


PATTERNS = [
    (None, Pattern(1.0)),
    (NM(2, 4), Pattern(0.5, 2)),
    (NM(1, 4), Pattern(0.25, 1)),
    (Blocks(1, 4), Pattern(0.5, 0, ("1x4",))),
    (Blocks(16, 1), Pattern(0.5, 0, ("16x1",))),
]


@pytest.mark.parametrize("pattern,wanted", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patterns_are_seen(pattern: Any, wanted: Pattern, dtype: torch.dtype) -> None:
    weight = layer(pattern, 64, 64, dtype).weight
    found = pattern_of(weight)
    assert (found.density, found.tiles) == (wanted.density, wanted.tiles)
    assert found.n == wanted.n or (wanted.n == 0 and found.n == 3), "blocks may happen to be 3:4"
    assert pattern_of(weight * -1) == found, "-0.0 is a zero"
    assert pattern_of(torch.zeros(0, 4)).density == 1 and pattern_of(torch.zeros(4, 4)) == Pattern(
        0, 0, ("1x4", "16x1")
    )
    assert pattern_of(torch.eye(6)[:, :5]).n == 0, "no fours"
    assert ("dense" in found.words) == (wanted.density == 1)


@needs_kernels
def test_the_ways_there_are() -> None:
    target = layer(Blocks(16, 1))
    wanted = {"dense", "packed float32", "bitmask float32", "16x1 float32"}
    assert wanted <= set(ways_of(target, pattern_of(target.weight), "same", None))
    found = set(ways_of(target, Pattern(0.5, 2), "int8", None))
    assert {"2:4 int8", "2:4 float32", "packed int8", "bitmask int8"} <= found and "prepacked" not in found
    assert "packed int4" in set(ways_of(target, Pattern(0.5, 2), "int4", None))
    assert not any("int4" in way for way in ways_of(layer(rows=8, columns=36), Pattern(1.0), "int4", None))
    half = layer(dtype=torch.bfloat16)
    assert ("prepacked" in set(ways_of(half, Pattern(1.0), "same", None))) == prepacks()
    assert list(ways_of(layer(dtype=torch.float16), Pattern(0.5), "same", None)) == ["dense"]
    assert "bitmask int8" in set(ways_of(layer(dtype=torch.float16), Pattern(0.5), "int8", None))


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_way_is_within_its_tolerance(dtype: torch.dtype) -> None:
    for pattern in (NM(2, 4), Blocks(1, 4), Blocks(16, 1), None):
        target = layer(pattern, 96, 128, dtype)
        for values in ways.VALUES:
            for way in ways_of(target, pattern_of(target.weight), values, None):
                error = error_of(target, build(target, way))
                assert error <= ways.tolerance_of(way, dtype), (way, error)
                if values == "same" and dtype == torch.float32:
                    assert error < 1e-6
                if "int8" in way:
                    assert error > 1e-4, "it was rounded"


def test_an_answer_that_is_another_is_seen() -> None:
    target = layer()
    other = nn.Linear(64, 64).eval()
    assert error_of(target, other) > 0.5
    other.load_state_dict(target.module.state_dict())
    assert error_of(target, other) < 1e-6
    with torch.no_grad():
        other.weight[3, 3] += 1.0
    assert 1e-3 < error_of(target, other) < 0.1
    other.weight.data.fill_(float("nan"))
    assert not error_of(target, other) <= 1.0, "NaN is never within a tolerance"


def test_no_kernels_no_packed_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "load", lambda: None)
    assert set(ways_of(layer(NM(2, 4)), Pattern(0.5, 2), "int8", None)) == {"dense"}


def test_choices_are_kept_for_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = layer(NM(2, 4))
    pattern = pattern_of(target.weight)
    store = Cache(tmp_path / "cache" / "a.json")
    key = store.key(target, pattern, (1, 128), Terms(), 1000)
    made = Choice("a", "dense", 17, (1, 128), tuple(raced(("a", 0.5, 1.5, 60))))
    assert store.find(key) is None
    store.keep({key: made})
    again = Cache(store.path)
    found = again.find(key)
    assert found == made and found.cached and not made.cached
    again.keep({"other": made})
    assert set(json.loads(store.path.read_text())) == {key, "other"}
    assert again.key(target, Pattern(0.51, 2), (1, 128), Terms(), 1000) == key, "to the nearest twentieth"
    keys = {key}
    for change in (
        {"pattern": Pattern(0.4, 2)},
        {"pattern": Pattern(0.5)},
        {"sizes": (2, 128)},
        {"terms": Terms(values="int8")},
        {"terms": Terms(aim="memory")},
        {"cold": 1},
        {"target": layer(NM(2, 4), 64, 128)},
        {"target": layer(NM(2, 4), dtype=torch.bfloat16)},
    ):
        how = {
            "target": target,
            "pattern": pattern,
            "sizes": (1, 128),
            "terms": Terms(),
            "cold": 1000,
            **change,
        }
        keys.add(again.key(**how))
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    keys.add(again.key(target, pattern, (1, 128), Terms(), 1000))
    monkeypatch.setattr(choice, "machine", lambda: {"cpu": "another"})
    keys.add(Cache(store.path).key(target, pattern, (1, 128), Terms(), 1000))
    assert len(keys) == 11


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"k": 1}',
        '{"k": {"few": "a"}}',
        '{"k": {"few": "a", "many": "b", "rows": 1, "sizes": [1, 2], "raced": []}}',
    ],
)
def test_a_spoilt_file_is_as_if_not_there(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    store = Cache(path)
    assert store.find("k") is None
    made = Choice(raced=tuple(raced()))
    store.keep({"k": made})
    assert Cache(path).find("k") == made


def test_settings_are_refused_first() -> None:
    for how, line in [
        (("same", 48, 1, 128), "groups of 48"),
        (("int4", 0, 1, 128), "int4 needs a group"),
        (("same", None, 0, 128), "batch and prompt are 1 or more"),
    ]:
        with pytest.raises(BadInput, match=line):
            ways.check_settings(*how)  # type: ignore[arg-type]


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA card here: torch's 2:4 tensors were not run"
)
def test_two_of_four_on_cuda() -> None:
    target = layer(NM(2, 4), 256, 256, torch.bfloat16)
    target.module.cuda()
    found = list(ways_of(target, pattern_of(target.weight), "same", None))
    assert found == ["dense", ways.CUDA]
    assert error_of(target, build(target, ways.CUDA)) < 5e-3


def test_bytes_of_two_ways_are_both() -> None:
    target = layer(NM(2, 4))
    packed = build(target, "2:4 float32")
    assert bytes_of(TwoWays(packed, target.module, 4)) == bytes_of(packed) + 4 * 64 * 64 + 4 * 64
