"""Batches that wait for one another: the order of everything, what is shared, and how it ends when something fails."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from secateur.core.units import Site
from secateur.engine.turns import Arrivals, See, in_turns
from secateur.errors import Unsupported
from secateur.signals.hessian import InputHessian
from secateur.sites.find import WeightSite


def site(name: str, width: int = 3) -> WeightSite:
    return WeightSite(Site(name, (2, width)), nn.Linear(width, 2, bias=False), "weight")


A, B, C = site("a"), site("b"), site("c")


def walk(log: list[str], *routes: list[WeightSite]) -> set[str]:
    """Run one task a route, each coming to its sites in order; the log has every arrival and decision."""

    def task(i: int) -> Callable[[See], None]:
        def run(see: See) -> None:
            for stop in routes[i]:
                see(stop, torch.zeros(1, 3))
                log.append(f"{i} leaves {stop.name}")

        return run

    def arrive(i: int, stop: WeightSite, x: Tensor) -> None:
        log.append(f"{i} at {stop.name}")

    tasks = [task(i) for i in range(len(routes))]
    return in_turns(tasks, [A, B, C], arrive, lambda stop: log.append(f"cut {stop.name}"))


def test_a_site_is_decided_when_all_have_come_and_one_runs_at_a_time() -> None:
    log: list[str] = []
    assert walk(log, [A, B], [A, B]) == {"a", "b"}
    assert log == [
        *("0 at a", "1 at a", "cut a"),
        *("0 leaves a", "0 at b", "1 leaves a", "1 at b", "cut b", "0 leaves b", "1 leaves b"),
    ]


def test_a_batch_that_skips_a_site_waits_at_the_next() -> None:
    log: list[str] = []
    assert walk(log, [A, C], [B, C], [C]) == {"a", "b", "c"}
    assert [line for line in log if line.startswith("cut")] == ["cut a", "cut b", "cut c"]
    assert log.index("cut c") > max(log.index(f"{i} at c") for i in range(3))
    assert walk([], []) == set()


def test_a_site_that_comes_again_is_refused_and_no_thread_stays() -> None:
    before = threading.active_count()
    with pytest.raises(Unsupported, match="a: used more than once"):
        walk([], [A, B], [B, A, B])
    assert threading.active_count() == before


@pytest.mark.parametrize("where", ["task", "decide", "arrive"])
def test_what_fails_anywhere_is_raised_here_and_the_others_are_let_go(where: str) -> None:
    before, ended = threading.active_count(), []

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    def task(i: int) -> Callable[[See], None]:
        def run(see: See) -> None:
            try:
                see(A, torch.zeros(1, 3))
                if where == "task" and i == 1:
                    fail()
                see(B, torch.zeros(1, 3))
            finally:
                ended.append(i)

        return run

    quiet: Callable[..., None] = lambda *_: None  # noqa: E731
    calls = (fail if where == "arrive" else quiet, fail if where == "decide" else quiet)
    with pytest.raises(KeyboardInterrupt):
        in_turns([task(i) for i in range(3)], [A, B], *calls)
    assert threading.active_count() == before
    assert sorted(ended) == ([0] if where == "arrive" else [0, 1, 2])


class Counted(InputHessian):
    measured = 0

    def take(self, x: Tensor) -> None:
        Counted.measured += 1
        super().take(x)


def test_sites_that_read_the_same_tensors_share_one_signal() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(n, 3) for n in (4, 7, 2)]
    arrivals, Counted.measured = Arrivals(Counted, 3), 0
    for stop in (A, B):
        for i, x in enumerate(inputs):
            arrivals.arrive(i, stop, x)
        arrivals.signal(stop)
    assert arrivals.signal(A) is arrivals.signal(B)
    assert Counted.measured == 3
    whole = torch.cat(inputs)
    assert torch.allclose(arrivals.signal(A).products, whole.T @ whole, atol=1e-5)
    assert arrivals.signal(A).tokens == 13


def test_sites_that_share_some_inputs_only_are_measured_apart() -> None:
    torch.manual_seed(0)
    one, two, other = (torch.randn(n, 3) for n in (4, 7, 5))
    arrivals = Arrivals(InputHessian, 2)
    for stop, inputs in ((A, (one, two)), (B, (one, other))):
        for i, x in enumerate(inputs):
            arrivals.arrive(i, stop, x)
        whole = torch.cat(inputs)
        assert torch.allclose(arrivals.signal(stop).products, whole.T @ whole, atol=1e-5)
    arrivals.arrive(0, C, one.clone())  # equal values, another tensor; and only one batch came
    assert torch.allclose(arrivals.signal(C).products, one.T @ one, atol=1e-5)
    assert arrivals.signal(C).tokens == 4


def test_an_input_changed_in_place_is_measured_again() -> None:
    x = torch.ones(2, 3)
    arrivals = Arrivals(InputHessian, 1)
    arrivals.arrive(0, A, x)
    assert float(arrivals.signal(A).products[0, 0]) == 2
    arrivals.arrive(0, B, x.mul_(2))
    assert float(arrivals.signal(B).products[0, 0]) == 8
