"""Realistic results for the tests: 3 methods x 3 seeds x 4 sparsities of a 30-layer model, made by arithmetic.

Not measured by anyone: the numbers only have the shape of real ones, so that the page can be judged by eye.
"""

from __future__ import annotations

import math
import random
from typing import Any

LINEARS = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (192, 576),
    "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (1536, 576),
    "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}
PROMPT = "The capital of France is"
HARM = {"magnitude": 2.75, "wanda": 0.74, "sparsegpt": 0.585}
SAMPLES = {
    "dense": " Paris. It is the largest city in the country and has been its capital since the tenth century. The"
    " Seine runs through it from east to west.",
    "magnitude": " the same as the same as the other the other.\n\nThe first one is the first one is the",
    "wanda": " Paris, which is the capital of the country. The city is known for the river, and the city is known for",
    "sparsegpt": " Paris, the largest city in the country. It lies on the Seine and is known for its museums and",
}


def _layers(method: str, sparsity: float, draw: random.Random) -> list[dict[str, Any]]:
    out = []
    for block in range(30):
        for kind, shape in LINEARS.items():
            share = sparsity
            if method == "magnitude":  # global: early blocks and small matrices lose more
                share = sparsity + 0.13 * math.cos(block / 9.5) - (0.06 if "v_proj" in kind else 0.0)
                share += draw.uniform(-0.02, 0.02)
            error = None
            if method != "magnitude":
                error = 0.4 * sparsity**2 * HARM[method] * (1 + block / 22) * (2.0 if "down" in kind else 1.0)
                error *= draw.uniform(0.85, 1.15)
            name = f"model.layers.{block}.{kind}"
            out.append({"name": name, "shape": list(shape), "sparsity": min(share, 0.98), "error": error})
    return out


def _row(method: str, sparsity: float, seed: int) -> dict[str, Any]:
    draw = random.Random(f"{method} {sparsity} {seed}")
    noise = draw.uniform(0.97, 1.03)
    dense = method == "dense"
    harm = 0.0 if dense else HARM[method] * (sparsity / 0.5) ** 3.4
    return {
        "name": "dense" if dense else f"{method} {100 * sparsity:.0f}%",
        "method": method,
        "config": {}
        if dense
        else {"sparsity": sparsity, "pattern": "layer" if method == "magnitude" else "row"},
        "seed": None if dense else seed,
        "sparsity": sparsity,
        "density": 1 - sparsity,
        "model_density": 1 - sparsity * 0.7895,
        "bytes": 538_090_408,
        "flops": 2 * (134_515_008 - 106_168_320 * sparsity),
        "seconds": None if dense else {"magnitude": 3.1, "wanda": 31.0, "sparsegpt": 74.0}[method] * noise,
        "peak_mb": {"dense": 1210, "magnitude": 1290, "wanda": 2300, "sparsegpt": 2840}[method] * noise,
        "tokens_per_second": 40.6 * noise if dense else 41.2 * noise,
        "metrics": {
            "perplexity": 32.9 * math.exp(harm) * (1 if dense else noise),
            "accuracy": 0.412 * math.exp(-harm / 3),
        },
        "folder": None if dense else f"secateur-demo/{method}-{100 * sparsity:.0f}-seed{seed}",
        "sample": PROMPT + SAMPLES[method],
        "layers": [] if dense else _layers(method, sparsity, draw),
    }


def sweep(seeds: int = 3, sparsities: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6)) -> dict[str, Any]:
    """A full sweep: dense, then magnitude, wanda and sparsegpt."""
    rows = [_row("dense", 0.0, 0)]
    rows += [_row(method, s, seed) for method in HARM for s in sparsities for seed in range(seeds)]
    return {
        "format": "secateur.results",
        "version": 1,
        "title": "SmolLM2-135M-Instruct, four sparsities",
        "command": "secateur compare smollm2-135m magnitude wanda sparsegpt --sparsity 30% 40% 50% 60% --seeds 3"
        " --calibration wiki.valid.raw --samples 32 --length 512 --out secateur-demo",
        "created": "2026-11-20T14:00:00Z",
        "versions": {"secateur": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"},
        "machine": {"cpu": "AMD EPYC 7B13", "cores": 2, "memory_gb": 24},
        "model": "smollm2-135m",
        "calibration": "wiki.valid.raw, 32 windows of 512 tokens, seeds 0 to 2",
        "evaluation": "wiki.test.raw, 24 windows of 512 tokens",
        "prompt": PROMPT,
        "knee": {
            "magnitude": {"perplexity_twice_dense": 0.31, "accuracy_minus_5_points": None},
            "wanda": {"perplexity_twice_dense": 0.48, "accuracy_minus_5_points": 0.44},
            "sparsegpt": {"perplexity_twice_dense": 0.52, "accuracy_minus_5_points": 0.47},
        },
        "rows": rows,
    }


def demo() -> dict[str, Any]:
    """What `secateur demo` shows: dense, magnitude and wanda at one sparsity, one seed, no speed measured."""
    results = sweep(seeds=1, sparsities=(0.5,))
    results["title"] = "SmolLM2-135M-Instruct, half of it cut"
    results["command"] = "secateur demo"
    del results["knee"]
    results["rows"] = [row for row in results["rows"] if row["method"] != "sparsegpt"]
    for row in results["rows"]:
        row["tokens_per_second"] = None
        row["metrics"].pop("accuracy")
    return results
