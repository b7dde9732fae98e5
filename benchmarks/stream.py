"""stream: a checkpoint of 1.1 billion parameters cut from folder to folder; peak memory, time, and a kill midway.

The model is Llama-shaped with random bfloat16 weights (22 layers, hidden 2048, MLP 5632, 32 heads, 4 KV heads,
vocabulary 32,000), written shard by shard, so that this script never holds it either.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from common import CACHE, ONE_THREAD, QUIET, Row, table, write

LIMIT_MB = 2500
HIDDEN, MLP, LAYERS, HEADS, KV, VOCABULARY = 2048, 5632, 22, 32, 4, 32000
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_act": "silu",
    "hidden_size": HIDDEN, "intermediate_size": MLP, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": KV, "head_dim": HIDDEN // HEADS, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# What a user types, but for the tokenizer that a random model has not: ids are given.
RUN = """
import json, resource, sys, time
import numpy as np, torch
from pathlib import Path
from secateur import api
source, out, ids, resume, report = sys.argv[1:]
torch.set_num_threads(1)
def tell(event):
    print(event.stage, event.done, event.total, flush=True)
start, cpu = time.perf_counter(), time.process_time()
result = api.compress(source, "wanda", ids, out=out, stream=True, resume=resume == "resume", listen=tell)
Path(report).write_text(json.dumps({
    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "wall_s": time.perf_counter() - start,
    "cpu_s": time.process_time() - cpu, "sparsity": result.plan.sparsity, "notes": result.plan.notes[:3]}))
"""


def shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    """File -> tensor -> shape, about 500 MB a file."""
    kv = HIDDEN // HEADS * KV
    block = {
        "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,), "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (kv, HIDDEN), "self_attn.v_proj": (kv, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (MLP, HIDDEN), "mlp.up_proj": (MLP, HIDDEN), "mlp.down_proj": (HIDDEN, MLP),
    }  # fmt: skip
    parts: list[dict[str, tuple[int, ...]]] = [{"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}]
    for first in range(0, LAYERS, 5):
        layers = range(first, min(first + 5, LAYERS))
        parts.append({f"model.layers.{i}.{n}.weight": s for i in layers for n, s in block.items()})
    parts.append({"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)})
    return {f"model-{i:05d}-of-{len(parts):05d}.safetensors": p for i, p in enumerate(parts, 1)}


def make(folder: Path) -> int:
    """Write the model; returns its number of parameters."""
    import torch

    from secateur.io.tensors import FolderWriter

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    layout = {f: {n: (torch.bfloat16, s) for n, s in part.items()} for f, part in shapes().items()}
    total = 0
    torch.manual_seed(0)
    with FolderWriter(folder, layout) as writer:
        for name, shape in [(n, s) for part in shapes().values() for n, s in part.items()]:
            tensor = torch.ones(shape) if len(shape) == 1 else torch.randn(shape).mul_(0.02)
            writer.put(name, tensor.bfloat16())
            total += tensor.numel()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return total


def cut(source: Path, out: Path, ids: Path, *, resume: bool = False, kill_after: int = 0) -> Row:
    """One run of RUN; with `kill_after`, killed (-9) a moment after so many blocks were cut."""
    report = CACHE / "stream-report.json"
    report.unlink(missing_ok=True)
    words = [
        sys.executable,
        "-c",
        RUN,
        str(source),
        str(out),
        str(ids),
        "resume" if resume else "",
        str(report),
    ]
    env = {**os.environ, **ONE_THREAD, **QUIET}
    with subprocess.Popen(["nice", "-n", "5", *words], env=env, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            print(" ", line.rstrip(), file=sys.stderr, flush=True)
            stage, done, _ = line.split()
            if kill_after and stage == "cut" and int(done) >= kill_after:
                time.sleep(0.3)  # into the next block
                child.send_signal(signal.SIGKILL)
                break
    return json.loads(report.read_text()) if report.is_file() else {"killed_after_blocks": kill_after}


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file but the manifest and plan, which carry the time they were made."""
    out = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json") and path.name not in ("manifest.json", "plan.json"):
            with path.open("rb") as file:
                out[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return out


def run(args: argparse.Namespace) -> None:
    """Make the model, cut it whole, cut it with a kill in between, compare the bytes, clean up."""
    import numpy as np

    folder = CACHE / "stream"
    try:
        parameters = make(folder / "dense")
        ids = folder / "ids.npy"
        np.save(ids, np.random.default_rng(0).integers(3, VOCABULARY, (4, 128)))
        whole = cut(folder / "dense", folder / "whole", ids)
        wanted = digests(folder / "whole")
        shutil.rmtree(folder / "whole")
        killed = cut(folder / "dense", folder / "again", ids, kill_after=LAYERS // 2)
        resumed = cut(folder / "dense", folder / "again", ids, resume=True)
        same = digests(folder / "again") == wanted
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [
        {"name": "in one go", **whole},
        {"name": "killed", **killed},
        {"name": "resumed", **resumed, "same_bytes": same},
    ]
    write(
        "stream",
        rows,
        args,
        parameters=parameters,
        limit_mb=LIMIT_MB,
        calibration="4 windows of 128 random tokens",
    )


def tables(found: Row) -> str:
    """The table of results/stream.json."""
    columns = {
        "run": "name",
        "CPU-s": "cpu_s:.1f",
        "wall s": "wall_s:.1f",
        "peak MB": "peak_mb:.0f",
        "same bytes": "same_bytes",
    }
    rows = [row for row in found["rows"] if "cpu_s" in row]  # the killed run has no figures
    return f"{found['parameters']:,} parameters\n\n{table(rows, columns)}"
