"""softmax_problem: the loss of softmax regression and its gradient, over rows that may lie in a file.

    loss(W) = (1/n) sum_i CE(softmax(s W z_i + b), y_i)        z_i = U h_i, or h_i where U is None
    G       = (s/n) (P - Y)^T H U^T

A pass takes n C d + C F d products and holds one chunk of rows at a time: logits [n, C] and features [n, F] are never
whole. The rows are taken as they come (float16 too, memory-mapped too) and made wider a chunk at a time. Products over
rows run where the embeddings lie (a GPU too: written, not run); W, G and what else is small stay on the CPU.

Shapes:  H [n, d], U [F, d], W [C, F]; with an intercept W has one more column, b, which is not penalised.
Oracle:  the same, sample by sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.core.scores import finite
from secateur.errors import BadInput

LOGITS = 2**22  # of one chunk
HELD = 2**28  # bytes of rows up to which they are held in the dtype of the sums
EXACT = 2**24  # logits up to which sums are taken in float64


class Problem:
    """The data. See `fit_path` for the arguments.

    Attributes:
        n, classes, width: images, C, and F with the intercept.   y: labels.
        penalised: float64 [width], 1, and 0 for the intercept.
        dtype: of the sums: float64, and float32 for more than EXACT logits.
    """

    def __init__(
        self,
        embeddings: Any,
        labels: Any,
        texts: Tensor | None = None,
        classes: int | None = None,
        scale: float = 1.0,
        intercept: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(embeddings, Tensor | np.ndarray):
            embeddings = torch.as_tensor(embeddings)
        self.h, self.y = embeddings, torch.as_tensor(labels).long().cpu()
        self.device = embeddings.device if isinstance(embeddings, Tensor) else torch.device("cpu")
        if self.h.ndim != 2 or not len(self.h) or self.y.shape != (len(self.h),):
            what = f"{tuple(self.h.shape)} with {tuple(self.y.shape)} labels"
            raise BadInput(what, where="embeddings", fix="give [n, d]")
        self.n, d = self.h.shape
        if texts is not None and (texts.ndim != 2 or texts.shape[1] != d):
            raise BadInput(f"{tuple(texts.shape)} for embeddings {d} wide", where="texts")
        self.classes = classes or max(int(self.y.max()) + 1, 2)
        if int(self.y.min()) < 0 or int(self.y.max()) >= self.classes:
            what = f"labels {int(self.y.min())}..{int(self.y.max())} of {self.classes} classes"
            raise BadInput(what, where="labels")
        self.dtype = dtype or (torch.float64 if self.n * self.classes <= EXACT else torch.float32)
        if self.n * d * self.dtype.itemsize <= HELD:
            self.h = self.rows(slice(0, self.n))
        for at in self._chunks():
            finite(self.rows(at), "embeddings", "values")
        self.texts = None if texts is None else scale * finite(texts.double(), "texts", "values")
        self._narrow = None if self.texts is None else self.texts.to(self.device, self.dtype)
        self.scale, self.intercept = (1.0 if texts is not None else scale), intercept
        features = d if texts is None else len(texts)
        self.width = features + intercept
        self.penalised = torch.ones(self.width, dtype=torch.float64)
        self.penalised[features:] = 0

    def null(self) -> Tensor:
        """W = 0, with the intercept at the logarithm of the classes' shares."""
        weight = torch.zeros(self.classes, self.width, dtype=torch.float64)
        if self.intercept:
            counts = torch.bincount(self.y, minlength=self.classes)
            if not bool(counts.all()):
                where = f"class {int(counts.argmin())}"
                raise BadInput("no row", where=where, fix="give one, or no intercept")
            weight[:, -1] = (counts / len(self.y)).double().log()
        return weight

    def rows(self, at: slice | Tensor) -> Tensor:
        """Some rows of H, in the dtype of the sums."""
        if isinstance(self.h, Tensor):
            return self.h[at if isinstance(at, slice) else at.to(self.device)].to(self.dtype)
        part = np.array(self.h[at if isinstance(at, slice) else at.numpy()])
        return torch.from_numpy(part).to(self.dtype)

    def features(self, at: slice | Tensor) -> Tensor:
        """z of some rows as columns, [width, rows], on the CPU; the intercept's is 1."""
        h = self.rows(at)
        z = self.scale * h.t() if self._narrow is None else self._narrow @ h.t()
        return (torch.cat([z, z.new_ones(1, len(h))]) if self.intercept else z).contiguous().cpu()

    def loss(self, weight: Tensor) -> float:
        """Mean cross-entropy."""
        return self._pass(weight)[0]

    def slope(self, weight: Tensor) -> tuple[float, Tensor]:
        """Mean cross-entropy and its gradient, float64 [C, width]."""
        inner = torch.zeros(self.classes, self.h.shape[1], dtype=torch.float64, device=self.device)
        sums = torch.zeros(self.classes, dtype=torch.float64, device=self.device)
        loss, _ = self._pass(weight, (inner, sums))
        inner = (inner / self.n).to(self.dtype)
        out = (self.scale * inner if self._narrow is None else inner @ self._narrow.t()).double()
        return loss, (torch.cat([out, sums[:, None] / self.n], 1) if self.intercept else out).cpu()

    def chances(self, weight: Tensor, h: Tensor) -> Tensor:
        """P of some rows, [rows, C], on the CPU."""
        return torch.softmax(self._logits(self._fold(weight), h), 1).cpu()

    def _pass(self, weight: Tensor, sums: tuple[Tensor, Tensor] | None = None) -> tuple[float, None]:
        folded, loss = self._fold(weight), 0.0
        for at in self._chunks():
            h, y = self.rows(at), self.y[at, None].to(self.device)
            logits = self._logits(folded, h)
            top = torch.logsumexp(logits, 1, keepdim=True)
            loss += float((top - logits.gather(1, y)).double().sum())
            if sums is not None:
                p = logits.sub_(top).exp_()
                p.scatter_add_(1, y, torch.full_like(top, -1))
                sums[0].add_(p.t() @ h)
                sums[1].add_(p.sum(0))
        return loss / self.n, None

    def _fold(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        weight = weight.to(self.device, self.dtype)
        w, bias = (weight[:, :-1], weight[:, -1]) if self.intercept else (weight, None)
        return (self.scale * w if self._narrow is None else w @ self._narrow), bias

    def _logits(self, folded: tuple[Tensor, Tensor | None], h: Tensor) -> Tensor:
        logits = h @ folded[0].t()
        return logits if folded[1] is None else logits.add_(folded[1])

    def _chunks(self) -> Iterator[slice]:
        step = max(64, LOGITS // self.classes)
        return (slice(start, min(start + step, self.n)) for start in range(0, self.n, step))
