"""One dense model and all that must be equal when cuts of it are compared: evaluation tokens, prompt, options.

Every cut is made on the same dense weights, measured, and taken back before the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateur.core.budget import Budget
from secateur.core.method import OneShot
from secateur.core.plan import Plan
from secateur.core.select import NM
from secateur.engine import run
from secateur.engine.calibrate import Calibration
from secateur.engine.events import Event
from secateur.errors import BadInput, Unsupported
from secateur.evaluate.choice import Question, choice_accuracy
from secateur.evaluate.generate import generate
from secateur.evaluate.harness import run_harness
from secateur.evaluate.perplexity import evaluation_source, perplexity, token_windows
from secateur.evaluate.results import Row
from secateur.evaluate.size import PeakMemory, folder_bytes, measure_size
from secateur.evaluate.speed import measure_speed
from secateur.runtime.beside import beside

Keep = Callable[[Plan, Row], Path]


@dataclass(frozen=True)
class Text:
    """Token ids [windows, length] that perplexity is taken on, and words for the report."""

    ids: Tensor
    words: str


def read_text(
    source: Any, tokenizer: Any, *, length: int = 512, windows: int | None = None, field: str = "text"
) -> Text:
    """Evaluation tokens from what a user names (a str or Path, see io/documents.py), a list of documents, or ids."""
    found, words = (source, "given tokens")
    if isinstance(source, str | Path):
        found, words = evaluation_source(source, field=field)
        words = words.split(", ")[0] if isinstance(found, Tensor) else words
    ids = token_windows(found, tokenizer, length=length, windows=windows)
    return Text(ids, f"{words}, {len(ids)} windows of {ids.shape[1]} tokens")


@dataclass
class Bench:
    """What is measured on every model.

    Args:
        text: perplexity and next-token accuracy on these tokens; None leaves them out.
        questions: sets of choice questions by name.   tasks: of lm-evaluation-harness (`include`: task files,
            `limit`: questions of each).
        prompt: is continued by `new_tokens` tokens, greedily; empty leaves it out.
        speed: also measure tokens read and written a second.
        packed: also pack every cut, forecast its speed and measure it (runtime/beside.py).
        folder: where the dense weights lie, for their bytes on disk.
    """

    model: nn.Module
    tokenizer: Any = None
    text: Text | None = None
    questions: dict[str, list[Question]] = field(default_factory=dict)
    tasks: Sequence[str] = ()
    include: str | Path | None = None
    prompt: str = ""
    new_tokens: int = 32
    speed: bool = False
    packed: bool = False
    folder: Path | None = None
    limit: int | None = None
    options: run.Options = field(default_factory=run.Options)

    def dense(self) -> Row:
        """The row of the model as it is."""
        return self.measure("dense", "dense", folder=self.folder)

    def cut(
        self,
        method: OneShot,
        calibration: Calibration | None = None,
        *,
        name: str | None = None,
        seed: int | None = None,
        keep: Keep | None = None,
    ) -> Row:
        """Cut, measure, take back.

        Args:
            keep: called with the plan and the row while the model is cut, to save it; returns the folder it wrote.
        """
        name = name or label(method)
        options = replace(
            self.options, undo=True, listen=lambda e: self._tell(name, e.stage, e.done, e.total)
        )
        with PeakMemory() as peak:
            result = run.compress(self.model, method, calibration, options)
        try:
            row = self.measure(name, result.plan.method, result.plan, seed=seed)
            row |= {"seconds": result.seconds, "peak_mb": peak.mb}
            if self.packed:
                self._pack(name, row)
            if keep is not None:
                folder = keep(result.plan, row)
                row |= {"folder": str(folder), "bytes": folder_bytes(folder)}
        finally:
            result.undo.undo()
        return row

    def measure(
        self,
        name: str,
        method: str,
        plan: Plan | None = None,
        *,
        seed: int | None = None,
        folder: Path | None = None,
    ) -> Row:
        """One row of results.json of the model as it stands now; sparsity is counted in its weights."""
        size = measure_size(self.model)
        errors = plan.errors if plan else {}
        with PeakMemory() as peak:
            metrics = self.metrics(name)
            sample = self._continue(name) if self.prompt else None
        speed = self._speed(name) if self.speed else {}
        return {
            "name": name,
            "method": method,
            "config": plan.config if plan else {},
            "seed": seed,
            "sparsity": size.sparsity,
            "density": size.density,
            "model_density": size.model_density,
            "bytes": folder_bytes(folder) if folder else None,
            "flops": size.flops,
            "seconds": None,
            "peak_mb": peak.mb,
            "tokens_per_second": speed.get("decode"),
            "prefill_per_second": speed.get("prefill"),
            "metrics": metrics,
            "folder": None,
            "sample": sample,
            "layers": [{**layer, "error": errors.get(layer["name"])} for layer in size.layers]
            if plan
            else [],
            "notes": list(plan.notes) if plan else [],
            "packed": None,
        }

    def metrics(self, name: str) -> dict[str, float]:
        """Every quality figure that was asked for."""
        out: dict[str, float] = {}
        if self.text is not None:
            found = perplexity(
                self.model, self.text.ids, progress=lambda a, b: self._tell(name, "perplexity", a, b)
            )
            out |= {key: found[key] for key in ("perplexity", "accuracy")}
        for title, questions in self.questions.items():
            found = choice_accuracy(
                self.model,
                self.tokenizer,
                questions,
                progress=lambda a, b, t=title: self._tell(name, t, a, b),
            )
            out |= {f"{title} {key}": found[key] for key in ("accuracy", "accuracy_normalised")}
        if self.tasks:
            found = run_harness(self.model, self.tokenizer, self.tasks, self.include, self.limit)
            for task, values in found.items():
                out |= {f"{task} {key}": value for key, value in values.items()}
        return out

    def _continue(self, name: str) -> str:
        self._tell(name, "prompt", 0, 1)
        text = self.prompt + generate(self.model, self.tokenizer, self.prompt, tokens=self.new_tokens)
        self._tell(name, "prompt", 1, 1)
        return text

    def _speed(self, name: str) -> dict[str, float]:
        self._tell(name, "speed", 0, 1)
        found = measure_speed(self.model)
        self._tell(name, "speed", 1, 1)
        return found

    def _pack(self, name: str, row: Row) -> None:
        """Forecast beside measurement; where this model cannot be packed, a note says why."""
        try:
            found = beside(
                self.model, report=lambda done, of, what: self._tell(f"{name}: {what}", "packed", done, of)
            )
        except (Unsupported, BadInput) as error:
            row["notes"] = [*row["notes"], f"not packed: {error}"]
        else:
            row["packed"] = found.as_dict()

    def _tell(self, name: str, stage: str, done: int, total: int) -> None:
        self.options.listen(Event(f"{name}: {stage}", done, total))


def label(method: OneShot) -> str:
    """'wanda 50%', 'wanda 2:4', 'magnitude 50% global': how a cut is named in tables."""
    from secateur.registry import name_of

    settings, standard = method.settings(), type(method)().settings()
    amount = method.sparsity
    if isinstance(method.pattern, NM):
        words = [name_of(method), str(method.pattern)]
    else:
        words = [name_of(method), _amount(amount)]
        settings["sparsity"] = standard["sparsity"]
    for key, value in settings.items():
        if (
            value == standard.get(key)
            or key in ("sparsity", "seed")
            or (key == "pattern" and ":" in str(value))
        ):
            continue
        words.append(
            str(value) if key in ("pattern", "allocate") else key if value is True else f"{key}={value}"
        )
    return " ".join(words)


def _amount(amount: Any) -> str:
    if isinstance(amount, Budget):
        name, value = next((k, v) for k, v in vars(amount).items() if v is not None)
        return f"{name} {value:g}"
    return f"{100 * float(amount):.4g}%"
