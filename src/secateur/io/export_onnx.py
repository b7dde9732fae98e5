"""A checkpoint folder as an ONNX graph in float32: a causal language model without cache, or an image classifier.

    model.onnx        input_ids int64 [batch, sequence] -> logits [batch, sequence, vocabulary]
                      images float32 [batch, channels, size, size] in [0, 1] -> logits [batch, classes]
    model.onnx.data   the weights, where they are too many for one file of that format (2 GB)
    config.json, tokenizer files, manifest.json

The graph is what torch's exporter makes; before the folder takes its name, onnxruntime runs it at two sizes it was not
traced at and the logits are compared. What the exporter notes of the code it traced (file names and lines of the
machine it ran on) is taken out.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import BadInput, SecateurError, Unsupported, require
from secateur.io.classifiers import load_classifier
from secateur.io.convert import copy_side_files
from secateur.io.files import inside, new_folder, read_small, write_atomic
from secateur.io.header import strict_json
from secateur.io.hub import load_folder, resolve_folder
from secateur.io.manifest import write_manifest
from secateur.io.networks import Classifier

CONFIG, MODEL = "config.json", "model.onnx"
TOLERANCE = 1e-4  # of the largest logit, and at least of 1
_ONE_FILE = 1_800_000_000  # bytes of weights; protobuf ends at 2 GiB
_LIMIT = 8 << 20


class Causal(nn.Module):
    """Token ids to logits alone, without a cache."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, use_cache=False).logits


def export_onnx(
    folder: Path | str, out: Path | str, *, tell: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Write the model in `folder` (plain or sparse) to the new folder `out`, which is whole or absent.

    Args:
        folder: or a name, as `hub.resolve_folder` takes it.
        tell: called with (steps done, steps in all): load, trace, write, check.

    Returns: {"file", "bytes", "input", "parameters", "difference": largest one between the logits, "opset"}.

    Raises:
        Unsupported: neither a causal language model nor an image classifier, one that torch cannot export, or one whose
        logits onnxruntime does not give.
        And as `resolve_folder`, `load_folder`, `load_classifier` and `new_folder` do.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        require(module, "onnx")
    folder, out = resolve_folder(str(folder)), Path(out)
    tell(0, 4)
    model, name = _load(folder)
    examples = _examples(model)
    size = sum(p.numel() for p in model.parameters())
    tell(1, 4)
    with new_folder(out) as new, torch.no_grad():
        program = _traced(model, name, examples[0], str(folder))
        _forget(program.model)
        tell(2, 4)
        program.save(str(new / MODEL), external_data=4 * size > _ONE_FILE)
        opset = int(program.model.opset_imports[""])
        del program
        tell(3, 4)
        difference = _difference(new / MODEL, model, name, examples[1:], str(folder))
        write_atomic(new / CONFIG, read_small(inside(folder, CONFIG), _LIMIT))
        copy_side_files(folder, new, set())
        write_manifest(new)
    tell(4, 4)
    held = sum(path.stat().st_size for path in out.glob(f"{MODEL}*"))
    found = {"file": str(out / MODEL), "bytes": held, "input": name, "parameters": size}
    return {**found, "difference": difference, "opset": opset}


def _load(folder: Path) -> tuple[nn.Module, str]:
    where = str(folder / CONFIG)
    config = strict_json(read_small(inside(folder, CONFIG), _LIMIT), where, finite=False)
    named = config.get("architectures") if isinstance(config, dict) else None
    vision = any(str(name).endswith("ForImageClassification") for name in named or [])
    if vision or (isinstance(config, dict) and "architecture" in config):
        return load_classifier(folder).float().eval(), "images"
    model = load_folder(folder, dtype="float32")
    if not type(model).__name__.endswith("ForCausalLM"):
        what = f"a {type(model).__name__} is neither a causal language model nor an image classifier"
        raise Unsupported(what, where=str(folder), fix="export it to safetensors")
    return Causal(model).eval(), "input_ids"


def _examples(model: nn.Module) -> list[Tensor]:
    """One input to trace with and two of other sizes to check with, seeded."""
    draw = torch.Generator().manual_seed(0)
    if isinstance(model, Classifier):
        shape = (model.settings.channels, model.settings.size, model.settings.size)
        return [torch.rand(batch, *shape, generator=draw) for batch in (2, 1, 3)]
    config: Any = model.get_submodule("model").config
    longest = int(getattr(config, "max_position_embeddings", 64))
    if longest < 7:
        raise BadInput(f"takes {longest} tokens only", where="max_position_embeddings")
    sizes = ((2, 7), (1, 4), (3, min(33, longest)))
    return [torch.randint(0, int(config.vocab_size), size, generator=draw) for size in sizes]


def _traced(model: nn.Module, name: str, example: Tensor, where: str) -> Any:
    axes = {0: torch.export.Dim("batch")}
    if name == "input_ids":
        axes[1] = torch.export.Dim("sequence")
    with _quiet():
        try:
            return torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                verbose=False,
                input_names=[name],
                output_names=["logits"],
                dynamic_shapes=(axes,),
            )
        except (SecateurError, MemoryError):
            raise
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            what = f"torch cannot export it to ONNX ({type(error).__name__}: {first:.120})"
            raise Unsupported(what, where=where, fix="export it to safetensors") from error


def _difference(path: Path, model: nn.Module, name: str, inputs: list[Tensor], where: str) -> float:
    """The largest difference between onnxruntime's logits and torch's; one above TOLERANCE is refused."""
    ort = require("onnxruntime", "onnx")
    try:
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        answers = [torch.from_numpy(session.run(None, {name: x.numpy()})[0]) for x in inputs]
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise Unsupported(f"onnxruntime cannot run it ({first:.160})", where=where) from error
    worst = 0.0
    for x, answer in zip(inputs, answers, strict=True):
        wanted = model(x)
        if answer.shape != wanted.shape:
            what = f"onnxruntime gives logits {list(answer.shape)}, torch {list(wanted.shape)}"
            raise Unsupported(what, where=where)
        difference = float((answer - wanted).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(wanted.abs().max())):
            raise Unsupported(f"onnxruntime's logits differ by {difference:.2g}", where=where)
        worst = max(worst, difference)
    return worst


def _forget(model: Any) -> None:
    """Take out what the exporter noted of the code it traced."""
    for graph in (model.graph, *model.functions.values()):
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
        for value in graph.inputs:
            value.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """What the exporter has to say (packages it would also know, its own deprecated calls) is not for our users."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
