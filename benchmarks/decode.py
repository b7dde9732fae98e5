"""decode: tokens a second at batch 1 on SmolLM2-135M: transformers' generate(), our loop, our loop compiled.

    python benchmarks/decode.py [--rounds 5] [--tokens 32] [--no-compile] [--show]

Greedy, after a prompt of 32 tokens, the time of the first token taken off; in turns, so that all see the same machine.
`other` is what a token takes beyond its matrix products: its time less that of the 211 products alone, with the same
weights in the same order. `stubs` is the same found another way, in processor time of one thread: the linear modules
give back one row made before, and do nothing else. No weights push the code out of the caches then: a lower bound.

`packed` is the bfloat16 model with its weights packed in int8, by generate(), by the lean step (runtime/lean.py) and by
the one that a packed model gets (runtime/native.py); `bare` is a token of these two where the matrices keep nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import MODEL, Row, read, table, write

from secateur.io.store import load
from secateur.runtime import native
from secateur.runtime.decode import Decoder, tokens
from secateur.runtime.linear import PackedLinear
from secateur.runtime.pace import pace
from secateur.runtime.settle import settle
from secateur.runtime.stubs import thin
from secateur.runtime.ways import targets

PROMPT = 32
DTYPES = ("float32", "bfloat16")
NAMES = {
    "generate": "transformers generate()",
    "loop": "secateur",
    "compiled": "secateur, compiled",
    "lean": "secateur, lean",
    "native": "secateur, native",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32, help="timed in each turn")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled loop out")
    parser.add_argument("--show", action="store_true", help="measure nothing: print the table of the results")
    args = parser.parse_args(argv)
    if not args.show:
        run(args)
    print(f"\n## decode\n\n{tables(read('decode'))}\n")
    return 0


def run(args: argparse.Namespace) -> None:
    """Measure and write results/decode.json."""
    rows: list[Row] = []
    facts: Row = {"compile": {}, "stubs_us": {}, "attention_us": attention()}
    for dtype in DTYPES:
        torch.set_num_threads(1)
        loaded = load(MODEL, dtype=dtype)
        systems, facts["compile"][dtype] = made(loaded.model, args)
        same = agreement(systems)
        for threads in args.threads:
            torch.set_num_threads(threads)
            for row in measured(loaded.model, systems, args):
                rows.append({"dtype": dtype, "threads": threads, **row, "as_generate": same[row["system"]]})
                print(f"  {rows[-1]}", file=sys.stderr, flush=True)
        torch.set_num_threads(1)
        facts["stubs_us"][dtype] = stubs(loaded.model)
        del loaded, systems
    facts["packed"] = packed(args)
    command = f"python benchmarks/decode.py {' '.join(sys.argv[1:])}".strip()
    write("decode", rows, args, command=command, prompt=PROMPT, tokens=args.tokens, **facts)


def packed(args: argparse.Namespace) -> list[Row]:
    """A row a number of threads and system: tokens a second, and microseconds of a bare token."""
    model: Any = load(MODEL, dtype="bfloat16").model
    found, _ = targets(model)
    bare = {}
    for threads in args.threads:
        torch.set_num_threads(threads)
        with thin(found, 0):
            bare["native", threads] = 1e6 * pace(model, prompt=PROMPT, count=args.tokens).token
            with mock.patch.object(native, "fits", return_value=False):
                bare["lean", threads] = 1e6 * pace(model, prompt=PROMPT, count=args.tokens).token
    for target in found:
        layer = PackedLinear.from_linear(target.module, kind="dense", values="int8")
        for parent, name in target.places:
            setattr(parent, name, layer)
    settle(model)
    systems, _ = made(model, argparse.Namespace(no_compile=True))
    systems["native"] = systems.pop("loop")
    with mock.patch.object(native, "fits", return_value=False):
        systems["lean"] = made(model, argparse.Namespace(no_compile=True))[0]["loop"]
    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for row in measured(model, systems, args):
            rows.append({"threads": threads, **row, "bare_us": bare.get((row["system"], threads))})
            print(f"  {rows[-1]}", file=sys.stderr, flush=True)
    return rows


System = Callable[[int], list[int]]


def made(model: Any, args: argparse.Namespace) -> tuple[dict[str, System], Row]:
    """The systems: each writes so many tokens after the prompt; and what compiling took."""
    prompt = [(37 * i + 11) % 40_000 for i in range(PROMPT)]
    ids = torch.tensor([prompt])
    ones = torch.ones_like(ids)
    how: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def generate(count: int) -> list[int]:
        out = model.generate(input_ids=ids, attention_mask=ones, max_new_tokens=count, **how)
        return out[0, PROMPT:].tolist()

    def looped(decoder: Decoder) -> System:
        return lambda count: list(tokens(decoder, prompt, max_tokens=count))

    systems: dict[str, System] = {"generate": generate, "loop": looped(Decoder(model))}
    if args.no_compile:
        return systems, {}
    began, used = time.perf_counter(), time.process_time()
    decoder = Decoder(model, compile=True)
    took = {
        "seconds": time.perf_counter() - began,
        "cpu_s": time.process_time() - used,
        "notices": decoder.notices,
    }
    if decoder.way == "lean, compiled":
        systems["compiled"] = looped(decoder)
    return systems, took


def agreement(systems: dict[str, System], count: int = 64) -> dict[str, int]:
    """How many of the first tokens are those of generate()."""
    wanted = systems["generate"](count)
    found = {name: system(count) for name, system in systems.items()}
    return {
        name: next((at for at, pair in enumerate(zip(got, wanted, strict=True)) if pair[0] != pair[1]), count)
        for name, got in found.items()
    }


def measured(model: nn.Module, systems: dict[str, System], args: argparse.Namespace) -> list[Row]:
    """A row a system: medians over the rounds."""
    products = products_of(model)
    times: dict[str, list[float]] = {name: [] for name in (*systems, "products")}
    for number in range(args.rounds + 1):
        for name, system in systems.items():
            first = timed(lambda s=system: s(1))
            whole = timed(lambda s=system: s(args.tokens + 1))
            times[name].append((whole - first) / args.tokens)
        times["products"].append(timed(lambda: [products() for _ in range(8)]) / 8)
        if not number:  # the first round warms
            for values in times.values():
                values.clear()
    rows = []
    for name in systems:
        middle = statistics.median(times[name])
        others = [mine - theirs for mine, theirs in zip(times[name], times["products"], strict=True)]
        rows.append(
            {
                "system": name,
                "per_s": 1 / middle,
                "spread": (max(times[name]) - min(times[name])) / middle,
                "of_generate": statistics.median(
                    theirs / mine for theirs, mine in zip(times["generate"], times[name], strict=True)
                ),
                "products_ms": 1e3 * statistics.median(times["products"]),
                "other_us": 1e6 * statistics.median(others),
            }
        )
    return rows


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@torch.inference_mode()
def products_of(model: nn.Module) -> Callable[[], None]:
    """The matrix products of one token and nothing else, in the order in which the model has them."""
    linear: list[Any] = [module for module in model.modules() if isinstance(module, nn.Linear | PackedLinear)]
    dtype = next(model.parameters()).dtype
    inputs = [torch.randn(1, 1, module.in_features, dtype=dtype) for module in linear]

    @torch.inference_mode()
    def products() -> None:
        for module, x in zip(linear, inputs, strict=True):
            module.forward(x)

    return products


class Stub(nn.Module):
    """A linear module that costs nothing."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.row = torch.zeros(1, 1, linear.out_features, dtype=linear.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.row if x.shape[1] == 1 else self.row.expand(1, x.shape[1], -1).contiguous()


def stubs(model: Any, count: int = 64, turns: int = 5) -> dict[str, float]:
    """Microseconds of processor time a token with stubs for the linear modules, the smallest of the turns."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, Stub(module))
    args = argparse.Namespace(no_compile=True)
    systems, _ = made(model, args)
    found: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(turns):
        for name, system in systems.items():
            spent = []
            for length in (1, count + 1):
                began = time.process_time()
                system(length)
                spent.append(time.process_time() - began)
            found[name].append(1e6 * (spent[1] - spent[0]) / count)
    return {name: min(values) for name, values in found.items()}


@torch.inference_mode()
def attention(positions: int = 2048, turns: int = 30) -> dict[str, Row]:
    """Microseconds of one layer's attention of one token: heads that share keys by torch's grouped way, and as rows."""
    torch.set_num_threads(1)
    out: dict[str, Row] = {}
    for dtype in DTYPES:
        keys, values = torch.randn(2, 1, 3, positions, 64, dtype=getattr(torch, dtype)).unbind(0)
        queries = torch.randn(1, 9, 1, 64, dtype=keys.dtype)
        ways = {
            "grouped": lambda q=queries, k=keys, v=values: F.scaled_dot_product_attention(
                q, k, v, enable_gqa=True
            ),
            "rows": lambda q=queries, k=keys, v=values: F.scaled_dot_product_attention(
                q.view(1, 3, 3, 64), k, v
            ),
        }
        out[dtype] = {
            name: 1e6 * statistics.median(timed(way) for _ in range(turns)) for name, way in ways.items()
        }
    return out


def tables(found: Row) -> str:
    """The tables of results/decode.json."""
    head: dict[str, Any] = {
        "dtype": "dtype",
        "threads": "threads",
        "system": lambda row: NAMES[row["system"]],
        "tokens/s": "per_s:.1f",
        "spread": "spread:.2f",
        "x generate()": "of_generate:.2f",
        "products, ms": "products_ms:.1f",
        "other, µs": "other_us:.0f",
        "tokens as generate(), of 64": "as_generate",
    }
    stub = [{"dtype": dtype, **row} for dtype, row in found["stubs_us"].items()]
    took = [{"dtype": dtype, **row} for dtype, row in found["compile"].items()]
    shared = [{"dtype": dtype, **row} for dtype, row in found["attention_us"].items()]
    ours = {key: head[key] for key in ("threads", "system", "tokens/s", "spread", "x generate()")}
    return "\n\n".join(
        [
            table(found["rows"], head),
            table(
                found["packed"],
                ours | {"bare, µs": lambda row: f"{row['bare_us']:.0f}" if row["bare_us"] else ""},
            ),
            table(
                stub, {"stubs, CPU-µs a token": "dtype", "generate()": "generate:.0f", "secateur": "loop:.0f"}
            ),
            table(
                took, {"compiling": "dtype", "seconds": "seconds:.0f", "CPU-s of this process": "cpu_s:.0f"}
            ),
            table(
                shared, {"attention at 2,048, µs": "dtype", "grouped": "grouped:.0f", "as rows": "rows:.0f"}
            ),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
