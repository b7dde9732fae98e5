"""sparse-kernels: the runtime's products against the best dense ones, ours and torch's, on weights not in the cache.

    python benchmarks/sparse_kernels.py [--full] [--threads 1 2] [--shapes 4096x4096 ...] [--kernels avx2] [--show]

y = x W' with x [batch, columns] bfloat16, as a model in bfloat16 has it; float32 for float32 weights and for torch's
dynamic int8. Weights lie in huge pages, torch's too where they are plain. Every way of one shape is measured in the
same rounds, each call on the next of some copies that do not fit in the cache. One entry of x in a hundred is LARGE_X
times the others, as language models have them: int8 takes longer for such an x. Told are medians of the rounds,
`spread` = (9th - 1st decile) / median, and the share of what memory delivers to a plain read in the same rounds. What
the aims speak of is measured once more in rounds of its own; told is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import Row, of_kernels, read, table, write

from secateur.core.select import NM, Blocks, keep_top
from secateur.io.pack import pack_bitmask, pack_blocks, pack_dense, pack_nm
from secateur.io.packed import Packed
from secateur.runtime import library, pages
from secateur.runtime.ops import Product

SHAPES = ("576x1536", "1536x576", "4096x4096", "11008x4096", "4096x11008", "49152x576")
LARGE = ("4096x4096", "11008x4096")
LARGE_X = 20.0
COLD = 96 << 20  # bytes of copies that are gone through before one comes again: three times the cache
SLICE = 0.004  # seconds a way is called for in a round, at least
JUDGED = 5  # times as many rounds for what the aims speak of
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True)
class Way:
    """One way to multiply: whose, of which kind, dtype and sparsity, its bytes, and the products on its copies."""

    maker: str
    kind: str
    dtype: str
    sparsity: float
    bytes: int
    calls: list[Callable[[Tensor], object]]
    x_dtype: torch.dtype


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--full", action="store_true", help="every batch and sparsity: six minutes instead of two"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, torch.get_num_threads()}))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--show", action="store_true", help="measure nothing: print the tables of the results"
    )
    parser.add_argument(
        "--kernels", choices=library.PATHS, help="measure or show this path, not the best one (avx512)"
    )
    args = parser.parse_args(argv)
    if not args.show:
        args.kernels = run(args)
    name = of_kernels("sparse-kernels", args.kernels)
    print(f"\n## {name}\n\n{tables(read(name))}\n")
    return 0


def run(args: argparse.Namespace) -> str:
    """Measure and write results/sparse-kernels.json, or of another path than avx512; which path it was."""
    if args.kernels:
        library.use(args.kernels)
    path = library.features()["path"]
    batches = (1, 4, 16, 64) if args.full else (1, 16)
    sparsities = (0.5, 0.6, 0.7, 0.8, 0.9) if args.full else (0.5, 0.7, 0.9)
    rows: list[Row] = []
    judged: list[Row] = []
    with torch.inference_mode():
        for shape in args.shapes:
            ways = make(shape, sparsities)
            once(ways, shape)
            for threads in args.threads:
                torch.set_num_threads(threads)
                for batch in batches:
                    rows += measure(ways, shape, batch, threads, args.rounds)
                if shape in LARGE:
                    few = [way for way in ways if is_judged(way)]
                    judged += measure(few, shape, 1, threads, JUDGED * args.rounds, keep=True)
            print(f"  {time.strftime('%H:%M:%S')}  {shape}", file=sys.stderr, flush=True)
    command = f"python benchmarks/sparse_kernels.py {' '.join(sys.argv[1:])}".strip()
    write(
        of_kernels("sparse-kernels", path),
        rows,
        args,
        command=command,
        kernels=library.features(),
        judged=judged,
        met=met(judged),
    )
    return path


def is_judged(way: Way) -> bool:
    """Whether the aims speak of it; these are measured in rounds of their own, so that nothing changes in between."""
    ours = way.maker == "secateur" and (way.kind == "dense" or (way.kind, way.sparsity) == ("bitmask", 0.5))
    return way.maker == "memory" or (ours and way.dtype in DTYPES)


def rows_of_x(batch: int, columns: int) -> Tensor:
    """float32 [batch, columns], normal but for the large entries."""
    x = torch.randn(batch, columns)
    x[:, torch.randperm(columns)[: columns // 100]] *= LARGE_X
    return x


def once(ways: list[Way], shape: str) -> None:
    """Every copy of every way: what the system does when memory is first used is not measured."""
    x = rows_of_x(1, int(shape.split("x")[1]))
    for way in ways:
        for call in way.calls:
            call(x.to(way.x_dtype))


def measure(
    ways: list[Way], shape: str, batch: int, threads: int, rounds: int, keep: bool = False
) -> list[Row]:
    """A row for each way, all of them timed in the same rounds; `keep` adds the seconds of each."""
    columns = int(shape.split("x")[1])
    plain = rows_of_x(batch, columns)
    x = {dtype: plain.to(dtype) for dtype in (torch.float32, torch.bfloat16)}
    times: list[list[float]] = [[] for _ in ways]
    turns = [itertools.cycle(way.calls) for way in ways]
    counts = [calls_a_slice(way, turn, x[way.x_dtype]) for way, turn in zip(ways, turns, strict=True)]
    for _ in range(rounds):
        for way, turn, count, found in zip(ways, turns, counts, times, strict=True):
            mine = x[way.x_dtype]
            start = time.perf_counter()
            for _ in range(count):
                next(turn)(mine)
            found.append((time.perf_counter() - start) / count)
    memory = ways[-1].bytes / statistics.median(times[-1])  # what `plain_read` got
    return [
        {
            "shape": shape,
            "batch": batch,
            "threads": threads,
            **{key: getattr(way, key) for key in ("maker", "kind", "dtype", "sparsity", "bytes")},
            "ms": (middle := statistics.median(found)) * 1e3,
            "spread": spread(found),
            "gb_s": way.bytes / middle / 1e9,
            "share": way.bytes / middle / memory,
            **({"seconds": found} if keep else {}),
        }
        for way, found in zip(ways, times, strict=True)
    ]


def calls_a_slice(way: Way, turn: itertools.cycle, x: Tensor) -> int:
    """How many calls fill a slice; the first of them warm up."""
    next(turn)(x)
    start = time.perf_counter()
    next(turn)(x)
    return max(1, min(200, round(SLICE / (time.perf_counter() - start))))


def spread(times: list[float]) -> float:
    ordered = sorted(times)
    tenth = len(ordered) // 10
    return (ordered[-1 - tenth] - ordered[tenth]) / statistics.median(ordered)


def make(shape: str, sparsities: tuple[float, ...]) -> list[Way]:
    """Every way for one shape, ours first."""
    rows, columns = (int(side) for side in shape.split("x"))
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    ways = [ours("dense", name, 0.0, pack_dense(weight, dtype=dtype)) for name, dtype in DTYPES.items()]
    for group in (128, 64):
        if columns % group == 0:
            ways.append(
                ours("dense", f"int8 g{group}", 0.0, pack_dense(weight, dtype=torch.int8, group=group))
            )
            ways.append(ours("dense", f"int4 g{group}", 0.0, pack_dense(weight, bits=4, group=group)))
            break
    half = NM(2, 4).select(weight.abs())
    ways += [
        ours("2:4", name, 0.5, pack_nm(weight, 2, half, dtype=DTYPES[name])) for name in ("bf16", "int8")
    ]
    for sparsity in sparsities:
        mask = keep_top(weight.abs(), int(columns * sparsity))
        for name, dtype in DTYPES.items():
            ways.append(ours("bitmask", name, sparsity, pack_bitmask(weight, mask, dtype=dtype)))
        for kind, tiles in (("16x1", Blocks(16, 1)), ("1x4", Blocks(1, 4))):
            kept = tiles.select(weight.abs(), sparsity)
            for name in ("bf16", "int8"):
                ways.append(ours(kind, name, sparsity, pack_blocks(weight, kind, kept, dtype=DTYPES[name])))
    return [*ways, *torchs(weight), plain_read()]


def plain_read() -> Way:
    """Memory read without doing anything with it, by the kernels' library: 32 MiB a call, of eight times as much."""
    block, loaded = 32 << 20, library.load()
    assert loaded is not None, "install with a C compiler"
    memory = pages.room(8 * block).fill_(1)

    def read(at: int) -> Callable[[Tensor], object]:
        return lambda _: loaded.secateur_read(memory.data_ptr() + at, block, torch.get_num_threads())

    calls = [read(at * block) for at in range(8)]
    return Way("memory", "plain read", "", 0.0, block, calls, torch.float32)


def ours(kind: str, dtype: str, sparsity: float, packed: Packed) -> Way:
    copies = [
        replace(packed, **{name: pages.copied(tensor) for name, tensor in packed.tensors.items()})
        for _ in range(COLD // packed.bytes + 2)
    ]
    x_dtype = torch.float32 if dtype == "fp32" else torch.bfloat16
    return Way("secateur", kind, dtype, sparsity, packed.bytes, [Product(copy) for copy in copies], x_dtype)


def torchs(weight: Tensor) -> list[Way]:
    """What torch has for a dense matrix, each where this version runs it."""
    rows, columns = weight.shape
    half = weight.bfloat16()
    step = weight.abs().amax(1) / 127
    whole = (weight / step[:, None]).round().to(torch.int8)
    group = next((g for g in (128, 64, 32) if columns % g == 0), 0)

    def prepacked() -> Callable[[Tensor], object]:
        packed = torch.ops.mkldnn._reorder_linear_weight(half.to_mkldnn(), 1)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")

    def dynamic() -> Callable[[Tensor], object]:
        scaled = torch._make_per_channel_quantized_tensor(
            whole.clone(), step.double(), torch.zeros(rows, dtype=torch.long), 0
        )
        packed = torch.ops.quantized.linear_prepack(scaled, None)
        return lambda x: torch.ops.quantized.linear_dynamic(x, packed, True)

    def weight_only() -> Callable[[Tensor], object]:
        held, scales = pages.copied(whole), step.bfloat16()
        return lambda x: torch._weight_int8pack_mm(x, held, scales)

    def int4() -> Callable[[Tensor], object]:
        packed = torch._convert_weight_to_int4pack_for_cpu(torch.randint(0, 16, weight.shape).int(), 1)
        scales = torch.rand(columns // group, rows, 2).bfloat16()
        return lambda x: torch._weight_int4pack_mm_for_cpu(x, packed, group, scales)

    def plain(of: Tensor) -> Callable[[], Callable[[Tensor], object]]:
        def one() -> Callable[[Tensor], object]:
            held = pages.copied(of)
            return lambda x: F.linear(x, held)

        return one

    size = weight.numel()
    makers = [
        ("F.linear", "fp32", 4 * size, plain(weight), torch.float32),
        ("F.linear", "bf16", 2 * size, plain(half), torch.bfloat16),
        ("oneDNN, prepacked", "bf16", 2 * size, prepacked, torch.bfloat16),
        ("dynamic (x in int8)", "int8", size, dynamic, torch.float32),
        ("weight only", "int8", size, weight_only, torch.bfloat16),
        (f"weight only g{group}", "int4", size // 2 + 4 * size // group, int4, torch.bfloat16),
    ]
    ways = []
    for kind, dtype, count, one, x_dtype in makers:
        try:
            one()(torch.randn(2, columns).to(x_dtype))
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            print(f"  torch {kind} {dtype}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        calls = [one() for _ in range(COLD // count + 2)]
        ways.append(Way("torch", kind, dtype, 0.0, count, calls, x_dtype))
    return ways


def best_dense(rows: list[Row], like: Row) -> Row:
    """The fastest dense way of this dtype, ours or torch's, for the same shape, batch and threads."""
    same = [r for r in rows if all(r[key] == like[key] for key in ("shape", "batch", "threads"))]
    dense = [
        r
        for r in same
        if r["maker"] != "memory"
        and r["sparsity"] == 0
        and r["dtype"].split()[:1] == like["dtype"].split()[:1]
    ]
    return min(dense, key=lambda r: r["ms"])


def met(judged: list[Row]) -> dict[str, Row]:
    """The aims: for each shape and number of threads the median of the rounds' own ratios."""
    found: dict[str, Row] = {}
    for row in judged:
        if row["kind"] != "bitmask":
            continue
        same = [r for r in judged if (r["shape"], r["threads"]) == (row["shape"], row["threads"])]
        read = next(r for r in same if r["maker"] == "memory")
        dense = next(r for r in same if (r["kind"], r["dtype"]) == ("dense", row["dtype"]))
        at = f"{row['shape']}, {row['threads']} threads"
        if (aim := {"bf16": 1.7, "int8": 1.4}.get(row["dtype"])) is not None:
            name = f"50% {row['dtype']} >= {aim} our best dense {row['dtype']}"
            found.setdefault(name, {})[at] = round(ratio(dense, row), 2)
        name = f"50% {row['dtype']} >= 0.8 of memory's speed"
        found.setdefault(name, {})[at] = round(ratio(read, row) * row["bytes"] / read["bytes"], 2)
    return found


def ratio(one: Row, other: Row) -> float:
    """Time of one over that of the other, round by round: what slows a round slows both."""
    return statistics.median(a / b for a, b in zip(one["seconds"], other["seconds"], strict=True))


def tables(found: Row) -> str:
    """Batch 1 in full; from which sparsity on sparse wins; the aims."""
    rows = found["rows"]
    parts = []
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    for threads in sorted({row["threads"] for row in rows}):
        parts.append(f"\nBatch 1, {threads} threads: ms (GB/s, share of memory's)\n")
        by: dict[tuple, dict[str, Row]] = {}
        for row in rows:
            if row["batch"] == 1 and row["threads"] == threads:
                key = (row["maker"], row["kind"], row["dtype"], row["sparsity"])
                by.setdefault(key, {})[row["shape"]] = row
        lines = [
            {"of": "{} {} {}".format(*key) + (f" {key[3]:.0%}" if key[3] else ""), **at}
            for key, at in by.items()
        ]
        parts.append(table(lines, {"": "of", **{shape: cell(shape) for shape in shapes}}))
    parts.append(
        "\nThe least sparsity at which the best kernel of a kind beats every dense one of its dtype\n"
    )
    parts.append(
        table(wins(rows), {k: k for k in ("shape", "threads", "batch", "kind", "fp32", "bf16", "int8")})
    )
    parts.append(f"\nAims: {found['met']}")
    return "\n".join(parts)


def cell(shape: str) -> Callable[[Row], str]:
    def show(line: Row) -> str:
        row = line.get(shape)
        return "" if row is None else f"{row['ms']:.3g} ({row['gb_s']:.0f}, {row['share']:.0%})"

    return show


def wins(rows: list[Row]) -> list[Row]:
    """For each shape, threads, batch and kind: from which sparsity on it is faster than dense, by dtype."""
    out: dict[tuple, Row] = {}
    for row in sorted(rows, key=lambda r: r["sparsity"]):
        if not row["sparsity"]:
            continue
        key = (row["shape"], row["threads"], row["batch"], row["kind"])
        line = out.setdefault(key, dict(zip(("shape", "threads", "batch", "kind"), key, strict=True)))
        faster = best_dense(rows, row)["ms"] / row["ms"]
        if faster > 1 and row["dtype"] not in line:
            line[row["dtype"]] = f"{row['sparsity']:.0%} ({faster:.2f}x)"
    for line in out.values():
        for dtype in DTYPES:
            line.setdefault(dtype, "never" if line["kind"] == "bitmask" or dtype != "fp32" else "")
    return sorted(out.values(), key=lambda r: (r["shape"], r["threads"], r["batch"], r["kind"]))


if __name__ == "__main__":
    sys.exit(main())
