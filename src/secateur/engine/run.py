"""The one loop: measure, score, select and cut, block by block, for every one-shot method.

Three ways to feed a block, and what each costs:

    block   the papers' way. Two passes: all sites of a block are measured on dense weights, cut, and the block is run
            again, so that the next block sees what the cut model will see. Twice the forward work; any batch size.
    layer   one pass. Each site is measured and cut just before it is used, so later sites see the cut ones too. One
            forward pass, the batches taking turns (engine/turns.py); what every batch holds in the middle of a block
            is in memory. Any batch size.
    none    one pass. Every site is measured on the dense model. One forward pass; any batch size; shared weights work.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur.apply.undo import Undo
from secateur.core.method import Cut, OneShot
from secateur.core.plan import Kept, Plan
from secateur.core.scores import finite
from secateur.engine import workers
from secateur.engine.blocks import Measure, Walk, Watch, check_output
from secateur.engine.calibrate import Calibration
from secateur.engine.events import Event, Listener, silent
from secateur.engine.memory import release
from secateur.engine.products import PRODUCTS, Products, choose, products
from secateur.engine.split import split
from secateur.engine.turns import Arrivals, See, in_turns
from secateur.errors import BadInput, Unsupported, nearest
from secateur.registry import name_of
from secateur.signals.norms import InputNorms
from secateur.sites.find import Block, WeightSite, check_dtype, find_blocks, pick, uncut_matrices

Feed = Literal["auto", "block", "layer", "none"]
FEEDS = ("block", "layer", "none")
LAYER_LIMIT = 1 << 30


class Home:
    """Where the blocks' weights live. This one: in the model, always. `engine.stream` brings them in one at a time."""

    def block(self, block: Block) -> AbstractContextManager[None]:
        """Within this context the block's weights are in memory; changes made there are kept."""
        return nullcontext()

    def begin_cutting(self) -> None:
        """The dense model has been measured as far as the split needs it; from now on blocks are cut."""

    def finished(self, block: Block) -> bool:
        """True if an earlier, interrupted run has already cut this block (its weights come back cut)."""
        return False


@dataclass(frozen=True)
class Options:
    """How a job runs, whatever the method.

    Args:
        feed: block, layer or none (this file's table), or auto: what suits the method best by the figures of
            docs/quality.md, where the model and the memory allow it (`own_feed`).
        only, skip: globs of site names, e.g. ``("*.mlp.*",)``; empty `only` means all.
        batch: samples a forward pass: 1 as in the papers; more suits an accelerator, and takes more memory.
        products: how the calibration passes multiply on a CPU: float32, bfloat16 (engine/products.py), or auto, which
            is bfloat16 where the CPU does it in hardware and the method's masks stay the same to 1% (`rounds`). The
            weights written are not touched by it.
        undo: remember what is overwritten, so that an exception or `Result.undo` brings it back.
        listen: called with an `Event` after every block.
    """

    feed: Feed = "auto"
    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    batch: int = 1
    products: Products = "auto"
    undo: bool = True
    listen: Listener = silent

    def __post_init__(self) -> None:
        if self.feed not in ("auto", *FEEDS):
            raise BadInput(
                f"{self.feed!r} is no way to feed a block", where="feed", fix=nearest(str(self.feed), FEEDS)
            )
        if self.batch < 1:
            raise BadInput(f"{self.batch} samples a batch", where="batch", fix="use 1 or more")
        if self.products not in PRODUCTS:
            fix = nearest(str(self.products), PRODUCTS)
            raise BadInput(f"{self.products!r} is no kind of product", where="products", fix=fix)


@dataclass
class Job:
    """One run of one method over one model."""

    model: nn.Module
    method: OneShot
    blocks: list[Block]
    calibration: Calibration | None
    options: Options
    undo: Undo
    home: Home
    plan: Plan
    sparsity: dict[str, float] = field(default_factory=dict)
    evidence: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Mapping[str, float]] = field(default_factory=dict)
    blind: int = 0

    @cached_property
    def multiplying(self) -> AbstractContextManager[Any]:
        """How the calibration passes multiply; the threads of feed `layer` share what it has rounded."""
        return products(choose(self.options.products))

    @property
    def sites(self) -> list[WeightSite]:
        return [site for block in self.blocks for site in block.sites]

    def batches(self, size: int) -> list[dict[str, Tensor]]:
        assert self.calibration is not None
        share = self.calibration.shard(workers.rank(), workers.world())
        device = next(
            (p.device for p in self.model.parameters() if p.device.type != "meta"), torch.device("cpu")
        )
        return [{k: v.to(device) for k, v in batch.items()} for batch in share.batches(size)]

    @property
    def samples(self) -> int:
        return len(self.calibration.samples) if self.calibration else 0

    def tell(self, stage: str, done: int, detail: str = "") -> None:
        """A block is done: its activations are gone, and the listener hears of it."""
        release()
        self.options.listen(Event(stage, done, len(self.blocks), detail))

    def measured(self, kind: type, stage: str) -> Iterator[tuple[Block, dict[str, Any]]]:
        """One dense pass: every block with the signals of its sites; weights used by several blocks come at the end."""
        shared = [site for site in self.sites if site.uses > 1]
        across = Measure(kind, shared)
        batches = self.batches(self.options.batch)
        with Walk(self.model, self.blocks, batches) as walk:
            for done, block in enumerate(self.blocks):
                own = [site for site in block.sites if site.uses == 1]
                within = Measure(kind, own)
                names = {site.name for site in own}

                def see(
                    site: WeightSite, x: Tensor, names: set[str] = names, within: Measure = within
                ) -> None:
                    (within if site.name in names else across).see(site, x)

                with self.home.block(block):
                    with Watch([*own, *shared], see):
                        for i in range(len(batches)):
                            walk.step(i)
                    yield block, within.finish(self.samples)
                walk.advance()
                self.tell(stage, done + 1, block.name)
        if shared:
            yield Block("shared", nn.Identity(), tuple(shared)), across.finish(self.samples)

    def cut(self, site: WeightSite, signal: Any) -> None:
        """Let the method decide one site, then write it."""
        weight, bias, sparsity = finite(site.view(), site.name), site.bias(), self.sparsity[site.name]
        if sparsity <= 0:
            self.plan.sites[site.name] = Kept.of(torch.ones(site.site.shape, dtype=torch.bool))
            return
        if self.method.needs is not None and (signal is None or signal.empty):
            cut = self._cut_blind(site, weight, signal, sparsity)
        else:
            cut = self.method.cut(weight, signal, site.site, sparsity, bias)
        if cut.keep.dtype != torch.bool or cut.keep.shape != site.site.shape:
            raise BadInput(
                f"the method returned a mask {cut.keep.dtype} {tuple(cut.keep.shape)}", where=site.name
            )
        if cut.score is not None:
            rows = finite(cut.score, site.name, "scores").sum(1, dtype=torch.float64)
            self.evidence[site.name] = hashlib.sha256(rows.cpu().numpy().tobytes()).hexdigest()
        if cut.weight is None:
            values = weight.masked_fill(~cut.keep, 0)
        else:
            values = finite(cut.weight, site.name, "updated weights").to(weight.dtype)
        self.undo.write(site.view(), values)
        if cut.bias is not None and bias is not None:
            self.undo.write(bias, finite(cut.bias, site.name, "updated biases").to(bias.dtype))
        self._record(site.name, cut)

    def _cut_blind(self, site: WeightSite, weight: Tensor, signal: Any, sparsity: float) -> Cut:
        """A site the calibration data did not reach (an expert without tokens): by magnitude, and said so."""
        zeros = signal is not None and signal.tokens
        why = "saw only zeros" if zeros else "saw no token, or was not seen in use"
        self.plan.notes.append(f"{site.name} {why}: cut by magnitude")
        self.blind += 1
        score = weight.abs().float()
        return Cut(self.method.select(score, sparsity), score=score)

    def _record(self, name: str, cut: Cut) -> None:
        self.plan.sites[name] = Kept.of(cut.keep)
        self.plan.notes.extend(cut.notes)
        if cut.error is not None:
            self.plan.errors[name] = cut.error
        if cut.facts is not None:
            self.facts[name] = cut.facts

    # -- the three feeds ------------------------------------------------------------------------------------------

    def go(self) -> None:
        """Split the sparsity, then cut every block."""
        with torch.no_grad(), self.multiplying:
            self.sparsity = split(self)
            self.home.begin_cutting()
            self.run()
        if self.blind and self.blind == len(self.sites):
            raise BadInput(
                "no token reached any site", where="calibration", fix="check that the samples are not empty"
            )

    def run(self) -> None:
        """Cut every block."""
        if self.method.needs is None:
            for done, block in enumerate(self.blocks):
                with self.home.block(block):
                    for site in block.sites if not self.home.finished(block) else ():
                        self.cut(site, None)
                self.tell("cut", done + 1, block.name)
        elif self.options.feed == "none":
            for block, signals in self.measured(self.method.needs, "cut"):
                for site in block.sites if not self.home.finished(block) else ():
                    if site.name in signals:
                        self.cut(site, signals[site.name])
        else:
            self._sequential()

    def _sequential(self) -> None:
        batches = self.batches(self.options.batch)
        with Walk(self.model, self.blocks, batches) as walk:
            for done, block in enumerate(self.blocks):
                with self.home.block(block):
                    if not self.home.finished(block) and self.options.feed == "layer":
                        self._layer(walk, block, len(batches))
                    else:
                        if not self.home.finished(block):
                            self._measure_and_cut(walk, block, len(batches))
                        if block is not self.blocks[-1]:
                            for i in range(len(batches)):
                                walk.step(i)
                walk.advance()
                self.tell("cut", done + 1, block.name)

    def _measure_and_cut(self, walk: Walk, block: Block, batches: int) -> None:
        measure = Measure(self.method.needs or InputNorms, block.sites)
        with Watch(block.sites, measure.see):
            for i in range(batches):
                check_output(walk.forward(i), block)
        signals = measure.finish(self.samples)
        for site in block.sites:
            self.cut(site, signals[site.name])

    def _layer(self, walk: Walk, block: Block, batches: int) -> None:
        arrivals = Arrivals(self.method.needs or InputNorms, self.samples)

        def task(i: int) -> Callable[[See], None]:
            def run(see: See) -> None:
                # Modes hold for one thread only, and this runs in its own.
                with torch.no_grad(), self.multiplying, Watch(block.sites, see):
                    walk.step(i)

            return run

        def decide(site: WeightSite) -> None:
            self.cut(site, arrivals.signal(site))
            release()

        seen = in_turns([task(i) for i in range(batches)], block.sites, arrivals.arrive, decide)
        for site in block.sites:
            if site.name not in seen:
                self.cut(site, None)


@dataclass
class Result:
    """A cut model: `plan` says what was cut, `undo.undo()` takes it back (when it was asked to be remembered)."""

    model: nn.Module
    plan: Plan
    undo: Undo
    seconds: float


def own_feed(method: OneShot, blocks: Sequence[Block], calibration: Calibration | None) -> Feed:
    """What `auto` means: the method's own feed, where this model and these samples allow it.

    Shared weights can only be measured by `none`. `layer` holds what every batch has in the middle of a block (about
    the residual, its normed copy and the widest input), so it gives way to `block` above LAYER_LIMIT bytes of them,
    and for experts on several workers.
    """
    if method.feed == "none" or calibration is None or any(s.uses > 1 for b in blocks for s in b.sites):
        return "none"
    tokens = sum(sample["input_ids"].numel() for sample in calibration.samples if "input_ids" in sample)
    widths = [site.site.shape[1] for block in blocks for site in block.sites]
    experts = workers.world() > 1 and any(site.index is not None for block in blocks for site in block.sites)
    fits = 0 < tokens * (2 * min(widths) + max(widths)) * 4 <= LAYER_LIMIT and not experts
    return method.feed if method.feed != "layer" or fits else "block"


def prepare(
    model: nn.Module,
    method: OneShot,
    calibration: Calibration | None,
    options: Options,
    home: Home | None = None,
) -> Job:
    """Check everything that can be checked before any weight changes, and return the job."""
    model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped: its sites keep their own names
    blocks = pick(find_blocks(model), options.only, options.skip)
    sites = [site for block in blocks for site in block.sites]
    for site in sites:
        check_dtype(site)
        if not site.view().is_meta:
            finite(site.view(), site.name)
        assert not isinstance(method.pattern, str)
        method.pattern.fits(site.site.shape, site.name)
    if options.feed == "auto":
        options = replace(options, feed=own_feed(method, blocks, calibration))
    if options.products == "auto":
        options = replace(options, products=choose("auto") if method.rounds else "float32")
    feed = options.feed
    if method.needs is not None and (calibration is None or not calibration.samples):
        raise BadInput(
            f"{name_of(method)} needs calibration data", where="calibration", fix="pass --calibration TEXT"
        )
    walks = method.needs is not None and feed != "none"
    shared = next((site for site in sites if site.uses > 1), None)
    if walks and shared is not None:
        raise Unsupported(
            f"the weight is shared by {shared.uses} modules", where=shared.name, fix="use --feed none"
        )
    if walks and feed == "layer" and workers.world() > 1 and any(site.index is not None for site in sites):
        raise Unsupported(
            "experts see different tokens on each worker", where="feed layer", fix="use --feed block"
        )
    plan = Plan(method=name_of(method), config=method.settings(), updates=method.updates)
    plan.made = {}
    if method.needs is not None and calibration is not None:
        plan.made = {"calibration": calibration.source, "feed": feed, "products": choose(options.products)}
    outside = uncut_matrices(model, blocks)
    if outside:
        shown = ", ".join(outside[:3]) + (f" and {len(outside) - 3} more" if len(outside) > 3 else "")
        plan.notes.append(f"outside the blocks, left dense: {shown}")
    return Job(model, method, blocks, calibration, options, Undo(options.undo), home or Home(), plan)


def compress(
    model: nn.Module, method: OneShot, calibration: Calibration | None = None, options: Options | None = None
) -> Result:
    """Cut a model in memory.

    Args:
        model: changed in place; any exception leaves every weight, hook and mode as it was (with `undo=True`).
        method: a configured method, e.g. ``Wanda(sparsity=0.5)``.
        calibration: what data-driven methods measure on.
        options: feed, sites, batch size, undo, progress.

    Raises:
        BadInput, NoMatch, Infeasible, Unsupported: one line each; nothing has changed.
    """
    start = time.perf_counter()
    job = prepare(model, method, calibration, options or Options())
    with torch.inference_mode(False), job.undo:
        job.go()
    return finish(job, start)


def finish(job: Job, start: float) -> Result:
    """Close the plan: sites in the model's order, the digest of the evidence."""
    order = [site.name for site in job.sites]
    job.plan.sites = {name: job.plan.sites[name] for name in order}
    evidence = "".join(job.evidence.get(name, "") for name in order)
    job.plan.score_digest = hashlib.sha256(evidence.encode()).hexdigest()
    job.plan.notes.extend(job.method.conclude({name: job.facts[name] for name in order if name in job.facts}))
    return Result(job.model, job.plan, job.undo, time.perf_counter() - start)


def plan(
    model: nn.Module, method: OneShot, calibration: Calibration | None = None, options: Options | None = None
) -> Plan:
    """What `compress` would cut, with the model left as it was."""
    result = compress(model, method, calibration, replace(options or Options(), undo=True))
    result.undo.undo()
    return result.plan
