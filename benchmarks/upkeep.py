"""upkeep: what holding a mask costs, step by step, against the same loop without a pruner.

    make bench ARGS="upkeep [--turns 40] [--networks resnet20 llama-10m llama-10m-fused] [--show]"

ResNet-20 on 64 images of 32 x 32 under SGD with momentum; a Llama of 10 million random weights on 4 x 128 tokens under
AdamW, and again under AdamW(fused=True): the plain one takes a square root that is five times as slow where a moment is
0, as it is for cut weights; that is in `of plain` and not in `share`. Every system has a network of its own and takes
one step a turn, in another order each turn: forward, backward, optimiser, pruner. Static masks change never; RigL, SET
and GraNet regrow at every step, GraNet prunes too in the first half. `of plain` is the median over the turns of (step /
mean of the turn's two plain steps); both plain loops stand in the table, so that the second one shows the noise.
`share` is timed directly: the hook before the optimiser's step plus pruner.step(), over the plain step. One process on
one thread; processor time, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import Row, read, table, write

from secateur.io.classifiers import load_classifier
from secateur.registry import make

WARM = 3
STATIC, REGROW, TWICE = 1.03, 1.5, 2.1
# system -> settings of its method and the limit on a step, of a plain one
SYSTEMS: dict[str, tuple[Row | None, float | None]] = {
    "plain": (None, None),
    "plain again": (None, None),
    "static mask": ({"name": "random_pruning", "sparsity": 0.9}, STATIC),
    "RigL": ({"name": "rigl", "sparsity": 0.9, "every": 1, "end": 1.0}, REGROW),
    "SET": ({"name": "set", "sparsity": 0.9, "every": 1}, REGROW),
    "GraNet": ({"name": "granet", "sparsity": 0.9, "every": 1, "end": 0.5}, REGROW),
    "AdaSAP": ({"name": "adasap", "begin": 0.5, "end": 0.9, "removals": 3}, TWICE),
}
NETWORKS = ("resnet20", "llama-10m", "llama-10m-fused")


@dataclass
class Lane:
    """One system: its step, and the times of the steps and of the upkeep in them, in ms."""

    step: Callable[[], tuple[float, float]]
    steps: list[float] = field(default_factory=list)
    upkeep: list[float] = field(default_factory=list)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--turns", type=int, default=40, help="steps of each system")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument(
        "--show", action="store_true", help="measure nothing: print the tables of the results"
    )
    args = parser.parse_args(argv)
    if not args.show:
        torch.set_num_threads(1)
        run(args)
    print(f"\n## upkeep\n\n{tables(read('upkeep'))}\n")
    return 0


def run(args: argparse.Namespace) -> None:
    """Measure and write results/upkeep.json."""
    rows: list[Row] = []
    for network in args.networks:
        rows += measured(network, args.turns)
    command = f"make bench ARGS='{' '.join(['upkeep', *sys.argv[1:]])}'"
    write("upkeep", rows, args, command=command, turns=args.turns, settings=SYSTEMS)


def measured(network: str, turns: int) -> list[Row]:
    """The rows of one network."""
    lanes = {system: Lane(loop(network, SYSTEMS[system][0], turns)) for system in SYSTEMS}
    order = torch.Generator().manual_seed(0)
    names = list(lanes)
    for turn in range(turns + WARM):
        for place in torch.randperm(len(names), generator=order).tolist():
            lane = lanes[names[place]]
            whole, upkeep = lane.step()
            if turn >= WARM:
                lane.steps.append(whole)
                lane.upkeep.append(upkeep)
        if turn % 10 == 0:
            print(f"  {time.strftime('%H:%M:%S')}  {network}: turn {turn}", file=sys.stderr, flush=True)
    return [row(network, system, lanes) for system in lanes]


def row(network: str, system: str, lanes: dict[str, Lane]) -> Row:
    """Medians, in ms, and of the plain steps of the same turns; `met` where there is a limit."""
    lane, limit = lanes[system], SYSTEMS[system][1]
    pairs = zip(lanes["plain"].steps, lanes["plain again"].steps, strict=True)
    plain = [(a + b) / 2 for a, b in pairs] if limit else lanes["plain"].steps
    ratios = [mine / other for mine, other in zip(lane.steps, plain, strict=True)]
    found: Row = {"network": network, "system": system, "step_ms": statistics.median(lane.steps)}
    found |= {"of_plain": statistics.median(ratios), "of_plain_quartiles": quartiles(ratios)}
    if limit:
        found["share"] = statistics.median(lane.upkeep) / statistics.median(plain)
        found |= {"limit": limit, "met": found["of_plain"] <= limit}
    return found


def quartiles(values: Sequence[float]) -> list[float]:
    low, _, high = statistics.quantiles(values, n=4)
    return [low, high]


def loop(network: str, settings: Row | None, turns: int) -> Callable[[], tuple[float, float]]:
    """A step of this system on a network of its own: the milliseconds of all of it, and of the upkeep in it."""
    model, loss_of, optimizer = training(network)
    marks = [0.0, 0.0]

    def mark(place: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            marks[place] = time.process_time()

        return hook

    optimizer.register_step_pre_hook(mark(0))
    pruner = make(**settings).attach(model, optimizer, steps=turns + WARM + 1) if settings else None
    optimizer.register_step_pre_hook(mark(1))  # hooks run in the order they came in: the pruner's is between
    outer: Any = pruner.optimizer if pruner is not None else optimizer

    def closure() -> Tensor:
        outer.zero_grad()
        value = loss_of(model)
        value.backward()
        return value

    def step() -> tuple[float, float]:
        start = time.process_time()
        closure()
        outer.step(closure) if getattr(outer, "two_pass", False) else outer.step()
        middle = time.process_time()
        if pruner is not None:
            pruner.step()
        end = time.process_time()
        return (end - start) * 1000, (marks[1] - marks[0] + end - middle) * 1000

    return step


def training(network: str) -> tuple[nn.Module, Callable[[nn.Module], Tensor], torch.optim.Optimizer]:
    """Network, loss of one fixed batch, optimiser."""
    random = torch.Generator().manual_seed(0)
    if network == "resnet20":
        model: nn.Module = load_classifier("resnet20", channels=3, size=32, classes=10)
        images = torch.rand(64, 3, 32, 32, generator=random)
        labels = torch.randint(10, (64,), generator=random)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        return model, lambda m: F.cross_entropy(m(images), labels), sgd
    model = llama()
    tokens = torch.randint(2048, (4, 128), generator=random)
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=network.endswith("fused"))
    return model, lambda m: m(input_ids=tokens, labels=tokens, use_cache=False).loss, adamw


def llama() -> nn.Module:
    """A Llama of about 10 million random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=320,
        intermediate_size=896,
        num_hidden_layers=7,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).train()


def tables(found: Row) -> str:
    """The table of results/upkeep.json."""
    heads: dict[str, Any] = {
        "network": "network",
        "system": "system",
        "ms a step": "step_ms:.1f",
        "of plain": "of_plain:.3f",
        "quartiles": lambda row: "{:.3f} to {:.3f}".format(*row["of_plain_quartiles"]),
        "upkeep, share of a plain step": "share:.4f",
        "limit": "limit",
        "met": lambda row: "" if "met" not in row else "yes" if row["met"] else "NO",
    }
    return table(found["rows"], heads)


if __name__ == "__main__":
    sys.exit(main())
