"""What the attack scripts share: small models whose weights show any mix of two saves, forked victims, a report."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from secateur.io.checkpoint import load_state, save_checkpoint
from secateur.io.manifest import check_manifest

torch.set_num_threads(1)  # a victim is forked, and a forked process has only the thread that forked it


def plain_model(tensors: int = 12, side: int = 96) -> torch.nn.Module:
    """A module of `tensors` square matrices, fp32."""
    return torch.nn.Sequential(*(torch.nn.Linear(side, side, bias=False) for _ in range(tensors)))


def llama_model() -> torch.nn.Module:
    """A Llama of transformers with random weights, 2 layers, about 100 kB; saved in several shards."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
    )
    return LlamaForCausalLM(config).eval()


def fill(model: torch.nn.Module, value: float) -> None:
    """Make every weight the same number: a folder that mixes two saves then holds two numbers."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def save(model: torch.nn.Module, out: Path, value: float, **options: Any) -> None:
    fill(model, value)
    save_checkpoint(out, model=model, max_shard=40_000, **options)


def value_of(folder: Path) -> float:
    """Check every byte of the folder and return the one number all its weights have."""
    check_manifest(folder)
    found = {float(v) for tensor in load_state(folder).values() for v in tensor.unique()}
    if len(found) != 1:
        raise AssertionError(f"{folder} mixes the saves {sorted(found)}")
    return found.pop()


def forked(victim: Callable[[Callable[[str], None]], None]) -> tuple[int, int]:
    """Run `victim(say)` in a forked process; returns its pid and a descriptor that reads the lines it says."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    status = 1
    try:
        os.close(read)

        def say(line: str) -> None:
            os.write(write, f"{line}\n".encode())

        victim(say)
        status = 0
    except BaseException as error:
        os.write(write, f"error {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(status)


def kill_after(pid: int, read: int, seconds: float) -> list[str]:
    """Wait, `kill -9` the victim, and return the lines it said (whole ones only)."""
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return hear(read)


def hear(read: int) -> list[str]:
    with os.fdopen(read, "rb") as file:
        return [line.decode() for line in file.read().split(b"\n")[:-1]]


def report(name: str, figures: dict[str, Any]) -> int:
    """Print the figures as one line of JSON; the exit status is 1 when `failures` is not empty."""
    print(json.dumps({"attack": name, **figures}))
    for failure in figures.get("failures", [])[:20]:
        print("FAILED", failure, file=sys.stderr)
    return 1 if figures.get("failures") else 0


def rng(seed: int) -> random.Random:
    return random.Random(seed)
