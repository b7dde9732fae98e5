"""end_to_end: tokens a second of whole models in torch, llama.cpp and as packed weights, with bytes and perplexity.

    make bench ARGS="end_to_end [--models smollm2-135m llama-1.1b] [--rounds 3] [--match int8 ...] [--kernels avx2]"

smollm2-135m is cut by Wanda (32 samples of 512); llama-1.1b has the shape of TinyLlama and random weights in bfloat16,
cut where |w| is small, so it has no perplexity. Every cell is a process of its own: a prompt of 32 tokens, then so many
greedy ones, the first not counted; after a warm-up the median of the rounds, the rounds going round all cells so that
every system meets every state of the machine. `prompt` is 128 tokens read at once. torch rows are transformers'
generate(); the others are `accelerate(model, values=..., aim="memory")`, which races the ways, and runtime/decode.py.
Bytes are those of all tensors in memory, or of the GGUF file. llama.cpp rows need a Python that has llama-cpp-python,
named by SECATEUR_LLAMA_PYTHON; their perplexity is in docs/export.md (on another text). Perplexity here: WikiText-2,
12 windows of 512.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import CACHE, HERE, MODEL, QUIET, Row, data, model_folder, of_kernels, others, read, table, write

from secateur.runtime import library

PROMPT, READ = 32, 128
SHAPE = {  # TinyLlama's
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
# cut -> (pattern, sparsity) of Wanda
CUTS: dict[str, tuple[str, float]] = {"50%": ("row", 0.5), "2:4": ("2:4", 0.5), "16x1 70%": ("16x1", 0.7)}
# name -> what a cell is told
SYSTEMS: dict[str, Row] = {
    "torch float32": {"run": "torch", "dtype": "float32"},
    "torch bfloat16": {"run": "torch", "dtype": "bfloat16"},
    "torch dynamic int8": {"run": "torch", "dtype": "float32", "int8": True},
    "llama.cpp F16": {"run": "llama", "type": "f16"},
    "llama.cpp Q8_0": {"run": "llama", "type": "q8_0"},
    "llama.cpp Q4_0": {"run": "llama", "type": "q4_0"},
    "dense bfloat16": {"run": "ours", "values": "same"},
    "dense int8": {"run": "ours", "values": "int8"},
    "dense int4": {"run": "ours", "values": "int4"},
    "50% bfloat16": {"run": "ours", "values": "same", "cut": "50%"},
    "50% int8": {"run": "ours", "values": "int8", "cut": "50%"},
    "2:4 int8": {"run": "ours", "values": "int8", "cut": "2:4"},
    "16x1 70% int8": {"run": "ours", "values": "int8", "cut": "16x1 70%"},
}
# (system, at least so many times, of which)
AIMS = (("50% int8", 1.25, "llama.cpp Q8_0"), ("50% bfloat16", 1.5, "llama.cpp F16"))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[MODEL, "llama-1.1b"], choices=(MODEL, "llama-1.1b"))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3, help="processes of every cell")
    parser.add_argument("--tokens", type=int, default=24, help="timed in each")
    parser.add_argument("--match", nargs="+", help="only systems whose name holds one of these")
    parser.add_argument("--no-perplexity", action="store_true", help="leave it out")
    parser.add_argument("--show", action="store_true", help="measure nothing: print the table of the results")
    parser.add_argument(
        "--kernels", choices=library.PATHS, help="measure or show this path, not the best one (avx512)"
    )
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.cell:
        print("RESULT " + json.dumps(cell(json.loads(args.cell))))
        return 0
    if not args.show:
        if args.kernels:
            os.environ[library.VARIABLE] = args.kernels
        args.kernels = library.features()["path"]
        run(args)
    name = of_kernels("end_to_end", args.kernels)
    print(f"\n## {name}\n\n{tables(read(name))}\n")
    return 0


def run(args: argparse.Namespace) -> None:
    """Measure and write results/end_to_end.json, or of another path than avx512."""
    jobs = [
        {"model": model, "system": system, **how, "threads": threads, "tokens": args.tokens}
        for model in args.models
        for system, how in SYSTEMS.items()
        for threads in args.threads
        if not args.match or any(part in system for part in args.match)
    ]
    for job in jobs:
        job["path"] = prepared(job)
    jobs = [job for job in jobs if job["path"]]
    found: list[list[Row]] = [[] for _ in jobs]
    for number in range(args.rounds):
        for job, rows in zip(jobs, found, strict=True):
            first = number == 0 and job["threads"] == args.threads[0] and job["model"] == MODEL
            quality = first and job["run"] != "llama" and not args.no_perplexity
            rows.append(process({**job, "perplexity": quality}))
            print(
                f"  {job['model']} {job['system']} x{job['threads']}: {rows[-1]}", file=sys.stderr, flush=True
            )
            keep(jobs, found, args)


def keep(jobs: list[Row], found: list[list[Row]], args: argparse.Namespace) -> None:
    """Write what has been measured so far; rows that are not measured in this call stay."""
    rows = [summary(job, measured) for job, measured in zip(jobs, found, strict=True) if measured]
    name = of_kernels("end_to_end", args.kernels)
    rows += others(name, rows, ("model", "system", "threads"))
    order = list(SYSTEMS)
    rows.sort(key=lambda row: (row["model"], row["threads"], order.index(row["system"])))
    quality = {(row["model"], row["system"]): row["perplexity"] for row in rows if row["perplexity"]}
    for row in rows:
        row["perplexity"] = quality.get((row["model"], row["system"]))
    write(name, rows, args, rounds=args.rounds, tokens=args.tokens, aims=aims(rows))


def summary(job: Row, rows: list[Row]) -> Row:
    """Medians over the rounds."""
    rates = [row["per_s"] for row in rows]
    middle = statistics.median(rates)
    return {
        **{key: job[key] for key in ("model", "system", "threads")},
        "per_s": middle,
        "spread": (max(rates) - min(rates)) / middle,
        "prompt_s": statistics.median(row["prompt_s"] for row in rows),
        "bytes": rows[0]["bytes"],
        "ways": rows[0].get("ways"),
        "perplexity": rows[0].get("perplexity"),
    }


def aims(rows: list[Row]) -> list[Row]:
    """Each aim for every model and number of threads that has both its rows."""
    by_name = {(row["model"], row["threads"], row["system"]): row["per_s"] for row in rows}
    return [
        {
            "what": f"{model}, {threads} threads: {mine} of {other}",
            "measured": per_s / by_name[model, threads, other],
            "aim": least,
        }
        for (model, threads, system), per_s in by_name.items()
        for mine, least, other in AIMS
        if system == mine and (model, threads, other) in by_name
    ]


# -- what is measured -------------------------------------------------------------------------------------------------


def prepared(job: Row) -> str:
    """The folder or file a cell reads, made once; "" where llama.cpp is not here."""
    if job["run"] == "llama":
        if not llama_python():
            return ""
        out = CACHE / "end_to_end" / f"{job['model']}-{job['type']}.gguf"
        if not out.is_file():
            from secateur.io.export_gguf import export_gguf

            export_gguf(dense(job["model"]), out, job["type"])
        return str(out)
    cut = job.get("cut")
    if cut is None or job["model"] != MODEL:
        return dense(job["model"])
    out = CACHE / "end_to_end" / f"{MODEL}-{cut.replace(' ', '-').replace(':', 'of')}"
    if not out.is_dir():
        import secateur

        pattern, sparsity = CUTS[cut]
        method = secateur.make("wanda", pattern=pattern, **({} if ":" in pattern else {"sparsity": sparsity}))
        secateur.compress(dense(MODEL), method, calibration=data("calibration_32x512.npy"), out=out)
    return str(out)


def dense(model: str) -> str:
    """The model's own folder."""
    if model == MODEL:
        return model_folder()
    folder = CACHE / "end_to_end" / model
    if not folder.is_dir():
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        with torch.device("meta"):
            made = LlamaForCausalLM(LlamaConfig(**SHAPE))
        made = made.to(torch.bfloat16).to_empty(device="cpu")
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                parameter.fill_(1.0) if name.endswith("norm.weight") else parameter.normal_(0, 0.02)
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        made.save_pretrained(part)
        part.rename(folder)
    return str(folder)


def llama_python() -> str | None:
    return os.environ.get("SECATEUR_LLAMA_PYTHON")


def process(job: Row) -> Row:
    """One cell in a process of its own."""
    threads = {name: str(job["threads"]) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    llama = job["run"] == "llama"
    command = (
        [llama_python() or "", str(HERE / "llama_cell.py")] if llama else [sys.executable, __file__, "--cell"]
    )
    done = subprocess.run(
        [*command, json.dumps(job)],
        env={**os.environ, **QUIET, **threads},
        capture_output=True,
        text=True,
        cwd=HERE,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise RuntimeError(f"{job} left with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


@torch.inference_mode()
def cell(job: Row) -> Row:
    """Tokens a second, seconds of a prompt, bytes; in this process."""
    from secateur.io.hub import load_folder
    from secateur.runtime.accelerate import model_bytes

    torch.set_num_threads(job["threads"])
    model: Any = load_folder(Path(job["path"]), dtype=job.get("dtype", "bfloat16"))
    if job.get("cut") and job["model"] != MODEL:
        cut(model, job["cut"])
    found: Row = {}
    if job["run"] == "ours":
        import secateur

        done = secateur.accelerate(model, values=job["values"], aim="memory")
        chosen: dict[str, int] = {}
        for group in done.groups:
            chosen[group.choice.few] = chosen.get(group.choice.few, 0) + len(group.names)
        found["ways"] = chosen
        found["bytes"] = done.after
        write_tokens = looped(model)
    else:
        found["bytes"] = model_bytes(model)
        if job.get("int8"):
            model, found["bytes"] = dynamic_int8(model)
        write_tokens = generated(model)
    found |= timed(
        write_tokens, lambda ids: model(input_ids=torch.tensor([ids]), use_cache=True), job["tokens"]
    )
    if job.get("perplexity"):
        found["perplexity"] = perplexity(model)
    return found


def timed(
    write_tokens: Callable[[list[int], int], object], read_prompt: Callable[[list[int]], object], tokens: int
) -> Row:
    """A warm-up, then the median of three: a long answer less its first token, and a prompt."""
    ids = [(37 * i + 11) % 30_000 for i in range(READ)]
    write_tokens(ids[:PROMPT], 2)
    read_prompt(ids)
    rates, prompts = [], []
    for _ in range(3):
        first, whole = (seconds(lambda n=n: write_tokens(ids[:PROMPT], n)) for n in (1, tokens + 1))
        rates.append(tokens / (whole - first))
        prompts.append(seconds(lambda: read_prompt(ids)))
    return {"per_s": statistics.median(rates), "prompt_s": statistics.median(prompts)}


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def generated(model: Any) -> Callable[[list[int], int], object]:
    """transformers' generate()."""
    how: Row = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def write_tokens(ids: list[int], count: int) -> object:
        prompt = torch.tensor([ids])
        return model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, **how
        )

    return write_tokens


def looped(model: Any) -> Callable[[list[int], int], object]:
    """secateur's decode loop."""
    from secateur.runtime.decode import Decoder, tokens

    decoder = Decoder(model)
    return lambda ids, count: list(tokens(decoder, ids, max_tokens=count))


def dynamic_int8(model: Any) -> tuple[Any, int]:
    """torch's dynamic quantisation of the linear modules, and the bytes then held."""
    import warnings

    held = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    rest = sum(p.numel() for p in model.parameters()) - held
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    return made, held + 4 * rest


@torch.no_grad()
def cut(model: Any, kind: str) -> None:
    """Zeros where |w| is small, in the pattern of the cut."""
    from secateur.core.select import parse_pattern

    pattern, sparsity = CUTS[kind]
    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            keep = parse_pattern(pattern).select(module.weight.abs().float(), sparsity)
            module.weight.mul_(keep)


def perplexity(model: Any) -> float:
    """On 12 windows of 512 tokens of WikiText-2."""
    import numpy as np

    ids = torch.from_numpy(np.load(data("evaluation_24x512.npy"))[:12].astype(np.int64))
    losses = []
    for row in ids:
        logits = model(input_ids=row[None], use_cache=False).logits[0, :-1].float()
        losses.append(float(torch.nn.functional.cross_entropy(logits, row[1:])))
    return float(torch.tensor(losses).mean().exp())


def tables(found: Row) -> str:
    """The tables of results/end_to_end.json."""
    out = []
    for model in dict.fromkeys(row["model"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["model"] == model]
        for threads in dict.fromkeys(row["threads"] for row in rows):
            head: dict[str, Any] = {
                f"{model}, {threads} thread{'s' * (threads > 1)}": "system",
                "tokens/s": "per_s:.1f",
                "spread": "spread:.2f",
                "128 tokens read, s": "prompt_s:.2f",
                "MB": lambda row: f"{row['bytes'] / 1e6:.0f}",
                "perplexity": lambda row: f"{row['perplexity']:.2f}" if row["perplexity"] else "",
            }
            out.append(table([row for row in rows if row["threads"] == threads], head))
    out.append(table(found["aims"], {"aim": "what", "measured": "measured:.2f", "at least": "aim"}))
    return "\n\n".join(out)


if __name__ == "__main__":
    sys.exit(main())
