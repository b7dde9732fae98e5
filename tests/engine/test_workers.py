"""Two processes with half of the samples each cut what one process cuts."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from secateur.core.plan import Plan
from secateur.engine import workers
from secateur.engine.run import Options, compress
from secateur.errors import BadInput, SecateurError, Unsupported
from secateur.io.plans import load_plan, save_plan
from secateur.methods.weights.l_obs import LOBS
from secateur.methods.weights.magnitude import Magnitude
from secateur.methods.weights.sparsegpt import SparseGPT
from secateur.methods.weights.wanda import Wanda
from tests.engine.toy import tokens, transformer
from tests.oracles import inputs, measured

JOBS: dict[str, tuple[Any, str]] = {
    "wanda block": (Wanda(), "block"),
    "wanda layer": (Wanda(), "layer"),
    "wanda none": (Wanda(pattern="2:4"), "none"),
    "wanda global": (Wanda(allocate="global", pattern="layer"), "block"),
    "wanda owl": (Wanda(allocate="owl", pattern="layer"), "block"),
    "sparsegpt": (SparseGPT(), "block"),
    "l_obs": (LOBS(damping=1e-3), "none"),  # divides by the tokens of all workers
    "magnitude": (Magnitude(), "none"),
}


def cut(job: str) -> Plan:
    method, feed = JOBS[job]
    return compress(
        transformer(), method, tokens(7, 12), Options(feed=feed, batch=2, products="float32")
    ).plan  # type: ignore[arg-type]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def work(rank: int, port: int, folder: str) -> None:
    """One of two processes, as torchrun would start it."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    with workers.group():
        assert (workers.rank(), workers.world()) == (rank, 2)
        for job in JOBS:
            save_plan(cut(job), Path(folder) / f"{job}-{rank}.plan")
        notes = []
        try:
            compress(transformer(), Wanda(), tokens(1, 12), Options())
        except SecateurError as error:
            notes.append(str(error))
        (Path(folder) / f"notes-{rank}").write_text("\n".join(notes))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workers")
    mp.spawn(work, args=(free_port(), str(folder)), nprocs=2, join=True)
    return folder


@pytest.mark.parametrize("job", JOBS)
def test_two_workers_cut_what_one_cuts(shared: Path, job: str) -> None:
    first, second = (load_plan(shared / f"{job}-{rank}.plan") for rank in (0, 1))
    assert first.digest() == second.digest(), "the two workers hold different models"
    assert first.score_digest == second.score_digest
    assert first.agreement(cut(job))["positions"] >= 0.9999


def test_fewer_samples_than_workers_is_one_line_on_each(shared: Path) -> None:
    for rank in (0, 1):
        assert "1 samples for 2 workers" in (shared / f"notes-{rank}").read_text()


def test_a_plain_process_is_its_own_group() -> None:
    assert workers.rank() == 0 and workers.world() == 1
    from secateur.signals.norms import InputNorms

    signal = measured(InputNorms, inputs(5, 3))
    held = signal.square_sum.clone()
    with workers.group():
        workers.merge([signal])
        assert workers.world() == 1
    assert torch.equal(signal.square_sum, held) and signal.tokens == 5


def test_experts_cannot_be_fed_layer_by_layer_by_several(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.sites.test_find import Experts, Model

    monkeypatch.setattr(workers, "world", lambda: 2)
    with pytest.raises(Unsupported, match="feed block"):
        compress(Model([Experts(), Experts()]), Wanda(), tokens(), Options(feed="layer"))
    with pytest.raises(BadInput, match="2 workers"):
        compress(transformer(), Wanda(), tokens(1))
