"""Cut a checkpoint from folder to folder with one block in memory, and go on after a kill.

The model is built without weights. A block's tensors are read when the walk reaches it, cut, written at their final
place in the new folder, and let go; what lies outside the blocks is read when the model first uses it (the head never
is). Peak memory: one block, the calibration activations, the embedding, and what torch and transformers take (1 GB).

Each finished block leaves its part of the plan beside the weights, after they are synced. `resume` walks the finished
blocks again with the weights an uninterrupted run would have at that point, so it ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateur.core.method import OneShot
from secateur.core.plan import Plan
from secateur.engine import workers
from secateur.engine.calibrate import Calibration
from secateur.engine.products import choose
from secateur.engine.run import Home, Job, Options, finish, prepare
from secateur.errors import Unsupported, require
from secateur.io.checkpoint import make_sparse, model_class_of
from secateur.io.convert import copy_side_files
from secateur.io.files import new_folder, write_atomic
from secateur.io.manifest import write_manifest
from secateur.io.plans import load_plan, plan_json, save_plan
from secateur.io.tensors import FolderWriter, TensorFolder
from secateur.registry import name_of
from secateur.sites.find import Block

_PART = "part-{:05d}.plan"


def stream(
    source: Path,
    out: Path,
    method: OneShot,
    calibration: Calibration | None,
    options: Options | None = None,
    *,
    resume: bool = False,
    format: str = "dense",
    extra: Mapping[str, bytes | str] | None = None,
) -> Plan:
    """Cut the checkpoint folder `source` into the new checkpoint folder `out`.

    Args:
        source: a transformers folder with safetensors weights.
        method, calibration, options: as for `engine.run.compress`.
        resume: go on after the last finished block of an earlier run of the same job; without it, begin anew.
        format: dense, or sparse (bitmask and kept values; needs the disk space of both for a moment).
        extra: small files to write beside the weights.

    Returns:
        The plan; `out` holds all of it but the bits, which are its zeros, as plan.json.

    Raises:
        Unsupported: the model stores its blocks under other names than it uses (some fused experts), or shares
            weights between blocks.
    """
    start, options = time.perf_counter(), options or Options()
    with TensorFolder(source) as tensors:
        model = _empty_model(source, tensors)
        names = _stored_names(model, tensors)
        key = _key(source, tensors, method, calibration, options)
        if workers.rank():  # the other workers measure and cut along, and write nothing
            return _cut(_Follower(model, names, tensors), method, calibration, options, start)
        with new_folder(out, resume=key, fresh=not resume) as folder:
            parts = sorted(folder.glob("part-*.plan"))
            done = [load_plan(part) for part in parts]
            written = [name for plan in done for name in plan.made["tensors"]]
            writer = FolderWriter(folder, tensors.layout(), _heads(tensors), reopen=True, done=written)
            with writer:
                home = _Folder(model, names, tensors, writer, folder, done)
                plan = _cut(home, method, calibration, options, start)
                for name in sorted(writer.missing()):
                    writer.put(name, tensors.get(name))
            for part in folder.glob("part-*.plan"):
                part.unlink()
            copy_side_files(source, folder, set(tensors.shards), skip={"plan.json"}, everything=True)
            write_atomic(folder / "plan.json", plan_json(plan))
            for name, data in (extra or {}).items():
                write_atomic(folder / name, data)
            if format == "sparse":
                make_sparse(folder)
            write_manifest(folder)
    return plan


def _cut(
    home: _Follower, method: OneShot, calibration: Calibration | None, options: Options, start: float
) -> Plan:
    job = prepare(home.model, method, calibration, options, home)
    shared = next((site for site in job.sites if site.uses > 1), None)
    if shared is not None:
        raise Unsupported(
            "the weight is shared by several modules", where=shared.name, fix="leave out --stream"
        )
    unknown = [
        n for b in job.blocks for n, _ in b.module.named_parameters(prefix=b.name) if n not in home.names
    ]
    if unknown:
        raise Unsupported(
            f"the checkpoint stores {unknown[0]!r} under another name",
            where="stream",
            fix="leave out --stream",
        )
    job.undo.keep = False
    home.job = job
    with home.outside(job.blocks):
        job.go()
    return finish(job, start).plan


class _Follower(Home):
    """Brings in one block at a time from the source; a worker that writes nothing."""

    def __init__(self, model: nn.Module, names: dict[str, str], tensors: TensorFolder) -> None:
        self.model, self.names, self.tensors = model, names, tensors
        self.cutting = False
        self.job: Job

    def begin_cutting(self) -> None:
        self.cutting = True

    @contextmanager
    def block(self, block: Block) -> Iterator[None]:
        held = dict(block.module.named_parameters(prefix=block.name))
        for name in held:
            _place(self.model, name, self.read(block, name))
        try:
            yield
            if self.cutting and not self.finished(block):
                self.keep(block, list(held))
        finally:
            for name, empty in held.items():
                _place(self.model, name, empty)

    def read(self, block: Block, name: str) -> Tensor:
        """A parameter of the block as the walk needs it now."""
        return self.tensors.get(self.names[name])

    def keep(self, block: Block, names: list[str]) -> None:
        """The block is cut: put it where it belongs."""

    @contextmanager
    def outside(self, blocks: list[Block]) -> Iterator[None]:
        """Modules outside the blocks read their own weights when they are first called, and lose them at the end."""
        inside = {id(module) for block in blocks for module in block.module.modules()}
        loaded: dict[str, Tensor] = {}

        def load(names: list[str]) -> Any:
            def before(module: nn.Module, args: Any) -> None:
                for name in names:
                    if name not in loaded:
                        loaded[name] = self.model.get_parameter(name)
                        _place(self.model, name, self.tensors.get(self.names[name]))

            return before

        handles = []
        for prefix, module in self.model.named_modules():
            own = [f"{prefix}.{n}" if prefix else n for n, _ in module.named_parameters(recurse=False)]
            if own and id(module) not in inside:
                handles.append(module.register_forward_pre_hook(load(own)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for name, empty in loaded.items():
                _place(self.model, name, empty)


class _Folder(_Follower):
    """The writing worker: cut blocks go to their final place, and come back from there after a kill."""

    def __init__(
        self,
        model: nn.Module,
        names: dict[str, str],
        tensors: TensorFolder,
        writer: FolderWriter,
        folder: Path,
        done: list[Plan],
    ) -> None:
        super().__init__(model, names, tensors)
        self.writer, self.folder = writer, folder
        self.done = {plan.made["block"]: plan for plan in done}
        self.count, self.noted = len(done), 0

    def finished(self, block: Block) -> bool:
        return self.cutting and block.name in self.done

    def read(self, block: Block, name: str) -> Tensor:
        stored = self.names[name]
        if not self.finished(block) or self.job.options.feed == "none":
            return self.tensors.get(stored)
        with TensorFolder(self.folder / self.tensors.file(stored)) as written:
            return written.get(stored)

    @contextmanager
    def block(self, block: Block) -> Iterator[None]:
        with super().block(block):
            if self.finished(block):
                self._remember(self.done[block.name])
            self.noted = len(self.job.plan.notes)
            yield

    def keep(self, block: Block, names: list[str]) -> None:
        for name in names:
            self.writer.put(self.names[name], self.model.get_parameter(name).detach())
        self.writer.sync()
        plan, sites = self.job.plan, [site.name for site in block.sites]
        part = Plan(plan.method, plan.config, updates=plan.updates)
        part.sites = {name: plan.sites[name] for name in sites}
        part.errors = {name: plan.errors[name] for name in sites if name in plan.errors}
        part.notes = plan.notes[self.noted :]
        part.made = {
            "block": block.name,
            "tensors": [self.names[name] for name in names],
            "evidence": {name: self.job.evidence[name] for name in sites if name in self.job.evidence},
            "facts": {name: dict(self.job.facts[name]) for name in sites if name in self.job.facts},
        }
        if part.sites:  # a block whose sites are all skipped is simply written again
            save_plan(part, self.folder / _PART.format(self.count))
            self.count += 1

    def _remember(self, part: Plan) -> None:
        plan = self.job.plan
        plan.sites.update(part.sites)
        plan.errors.update(part.errors)
        plan.notes.extend(part.notes)
        self.job.evidence.update(part.made["evidence"])
        self.job.facts.update(part.made["facts"])


def _empty_model(source: Path, tensors: TensorFolder) -> nn.Module:
    """The model that config.json describes, its parameters without memory, its computed tables (rotary, ...) real."""
    accelerate = require("accelerate", "hf")
    held = sum(prod(tensors.shape(name)) for name in tensors.names())
    config, model_class = model_class_of(source, len(tensors.names()), held)
    with accelerate.init_empty_weights(include_buffers=False):
        return model_class(config).eval()


def _stored_names(model: nn.Module, tensors: TensorFolder) -> dict[str, str]:
    """Parameter name -> tensor name in the checkpoint, which may lack the head's prefix. Buffers are read."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    names = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        stored = name if name in tensors else name.removeprefix(prefix)
        if stored in tensors:
            names[name] = stored
    for name, buffer in model.named_buffers():
        stored = name if name in tensors else name.removeprefix(prefix)
        if stored in tensors:
            buffer.copy_(tensors.get(stored))
    return names


def _place(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Make `tensor` the parameter `name`, whatever stood there."""
    path, _, last = name.rpartition(".")
    value = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
    setattr(model.get_submodule(path), last, value)


def _heads(tensors: TensorFolder) -> dict[str, dict[str, str]]:
    return {file: tensors.metadata(file) or {"format": "pt"} for file in tensors.shards}


def _key(
    source: Path, tensors: TensorFolder, method: OneShot, calibration: Calibration | None, options: Options
) -> str:
    """What makes two runs the same job: the source's files, the method, the tokens, the way they are fed."""
    files = [
        (f, (source / f).stat().st_size, (source / f).stat().st_mtime_ns) for f in sorted(tensors.shards)
    ]
    data = calibration.digest() if calibration else ""
    way = (options.feed, list(options.only), list(options.skip), options.batch, choose(options.products))
    text = json.dumps([files, name_of(method), method.settings(), data, way])
    return hashlib.sha256(text.encode()).hexdigest()[:24]
