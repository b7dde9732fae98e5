"""The terms of a comparison: what is equal for every model that is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.engine.calibrate import Calibration
from secateur.engine.calibrate import calibration as draw_calibration
from secateur.engine.events import Event, Listener, silent
from secateur.engine.run import Options
from secateur.evaluate.bench import Bench, read_text
from secateur.evaluate.perplexity import vocabulary_size
from secateur.evaluate.results import Row, new_results, write_results
from secateur.io.hub import Loaded

Calibrate = Callable[[int], Calibration]


@dataclass(frozen=True)
class Terms:
    """What is equal for all models of a comparison.

    Args:
        calibration, samples, length, field: what methods measure on (engine/calibrate.py); None: the embedded text.
        feed, only, skip, batch, products: how the model is walked (engine/run.py).
        text, eval_length, windows: what quality is measured on (evaluate/bench.py); eval_length is by default `length`.
        prompt: continued by every model; empty: none.
        speed: also measure tokens written a second.
        packed: also pack every cut, forecast its speed here and measure it.
        listen: called with an `Event` after every step.
    """

    calibration: Any = None
    samples: int = 128
    length: int = 512
    field: str = "text"
    feed: str = "auto"
    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    batch: int = 1
    products: str = "auto"
    text: Any = "embedded"
    eval_length: int | None = None
    windows: int | None = None
    prompt: str = ""
    speed: bool = False
    packed: bool = False
    listen: Listener = silent

    def bench(self, loaded: Loaded) -> Bench:
        """The bench for this model."""
        how = (self.feed, self.only, self.skip, self.batch, self.products)
        options = Options(*how, listen=self.listen)  # type: ignore[arg-type]
        text = read_text(
            self.text,
            loaded.tokenizer,
            length=self.eval_length or self.length,
            windows=self.windows,
            field=self.field,
        )
        return Bench(
            loaded.model,
            loaded.tokenizer,
            text,
            prompt=self.prompt,
            speed=self.speed,
            packed=self.packed,
            folder=loaded.folder,
            options=options,
        )

    def calibrate(self, loaded: Loaded) -> Calibrate:
        """The calibration set of a seed."""

        def draw(seed: int) -> Calibration:
            return draw_calibration(
                "embedded" if self.calibration is None else self.calibration,
                loaded.tokenizer,
                samples=self.samples,
                length=self.length,
                seed=seed,
                field=self.field,
                vocab_size=vocabulary_size(loaded.model),
            )

        return draw

    def loading(self, model: Any) -> Callable[[int], None]:
        """What to tell while the model is loaded."""
        return lambda done: self.listen(Event("load", done, 1, str(model)))


def finish(
    rows: Sequence[Row],
    bench: Bench,
    loaded: Loaded,
    *,
    title: str,
    command: str,
    calibration: str,
    out: str | Path | None,
    **more: Any,
) -> dict[str, Any]:
    """Rows under their head; with `out`, tables and page are written there."""
    results = new_results(
        rows,
        title=f"{Path(loaded.name).name}: {title}",
        command=command,
        model=Path(loaded.name).name,
        calibration=calibration,
        evaluation=bench.text.words if bench.text else "",
        prompt=bench.prompt,
        **more,
    )
    if out is not None:
        write_results(results, out)
    return results
