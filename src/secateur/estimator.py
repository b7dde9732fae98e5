"""A scikit-learn classifier that rests on a few texts: SLR-AVD on stored embeddings, in pipelines and grid searches.

    model = SparseDescriptorClassifier(texts, names=words, lam=0.01).fit(embeddings, labels)
    model.predict(more), model.explain(3)["tench"]

This module needs scikit-learn (`pip install 'secateur[vision]'`); nothing else of secateur imports it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from secateur.errors import BadInput
from secateur.recover.l1_softmax import fit_path


class SparseDescriptorClassifier(ClassifierMixin, BaseEstimator):
    """Multinomial logistic regression with an L1 penalty on the cosines of the inputs with given texts.

    Args:
        texts: [M, d] rows of the texts, brought to length 1; None: the features are the coordinates themselves.
        names: M words for `explain`; None: numbers.
        lam: the penalty. None: a twentieth of the smallest value that leaves nothing, which suits few images; choose it
            with GridSearchCV where there are enough.
        scale: the logit scale, by which cosines are multiplied.
        normalize: bring the rows of X to length 1 first, as embeddings are; a row of zeros stays.
        fit_intercept: learn a bias of each class, which is not penalised.
        tol: how exactly the optimality conditions hold, as a fraction of lam.
        max_iter: steps of the solver at most.

    Attributes:
        coef_: float64 [C, M], how much each text counts for each class.   intercept_: float64 [C].
        weight_: float64 [C, d], the folded head: logits are scale * weight_ @ x + intercept_.
        classes_, n_features_in_: as everywhere in scikit-learn.   lam_: what was used.   n_iter_: steps taken.

    Source: Text Descriptions are Compressive and Invariant Representations for Visual Learning (2023), section 3.
    """

    def __init__(
        self,
        texts: Any = None,
        *,
        names: Any = None,
        lam: float | None = None,
        scale: float = 1.0,
        normalize: bool = False,
        fit_intercept: bool = True,
        tol: float = 1e-4,
        max_iter: int = 10_000,
    ) -> None:
        self.texts = texts
        self.names = names
        self.lam = lam
        self.scale = scale
        self.normalize = normalize
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any) -> SparseDescriptorClassifier:
        """Fit on X [n, d] and labels y [n].

        Raises:
            ValueError: one class only, or shapes that do not agree (scikit-learn's convention; BadInput is one).
        """
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, places = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"SparseDescriptorClassifier needs 2 classes, got {len(self.classes_)} class")
        rows = self._rows(X.shape[1])
        inputs = torch.from_numpy(self._unit(X))
        settings: dict[str, Any] = {
            "classes": len(self.classes_),
            "scale": float(self.scale),
            "intercept": bool(self.fit_intercept),
            "tol": self.tol,
            "limit": self.max_iter,
        }
        lams = None if self.lam is None else [float(self.lam)]
        point = fit_path(inputs, places, rows, lams=lams, count=1, factor=0.05, **settings)[0]
        self.coef_ = point.weight.numpy()
        self.intercept_ = np.zeros(len(self.classes_)) if point.bias is None else point.bias.double().numpy()
        self.weight_ = self.coef_ if rows is None else self.coef_ @ rows.numpy()
        self.lam_, self.n_iter_ = point.lam, max(1, point.steps)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits [n, C]; for two classes, as in scikit-learn, their difference [n]."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        logits = self.scale * self._unit(X) @ self.weight_.T + self.intercept_
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities [n, C]."""
        logits = self.decision_function(X)
        if logits.ndim == 1:
            logits = np.stack([np.zeros_like(logits), logits], 1)
        shifted = np.exp(logits - logits.max(1, keepdims=True))
        return shifted / shifted.sum(1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row."""
        logits = self.decision_function(X)
        return self.classes_[(logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(1)]

    def explain(self, k: int = 3) -> dict[Any, list[tuple[str, float]]]:
        """For every class the k texts with the largest positive coefficients, largest first."""
        check_is_fitted(self)
        names = [str(name) for name in (range(self.coef_.shape[1]) if self.names is None else self.names)]
        out = {}
        for name, row in zip(self.classes_.tolist(), self.coef_, strict=True):
            order = np.argsort(-row, kind="stable")[:k]
            out[name] = [(names[at], float(row[at])) for at in order if row[at] > 0]
        return out

    def _rows(self, width: int) -> torch.Tensor | None:
        if self.texts is None:
            found, count = None, width
        else:
            rows = np.asarray(self.texts, dtype=np.float64)
            if rows.ndim != 2 or rows.shape[1] != width:
                raise BadInput(
                    f"shape {rows.shape} for inputs {width} wide", where="texts", fix="give [M, d]"
                )
            lengths = np.linalg.norm(rows, axis=1, keepdims=True)
            if not np.isfinite(lengths).all() or not lengths.all():
                raise BadInput("a row is zero or not finite", where="texts")
            found, count = torch.from_numpy(rows / lengths), len(rows)
        if self.names is not None and len(self.names) != count:
            raise BadInput(f"{len(self.names)} names of {count} texts", where="names")
        return found

    def _unit(self, X: np.ndarray) -> np.ndarray:
        if not self.normalize:
            return X
        lengths = np.linalg.norm(X, axis=1, keepdims=True)
        return X / np.where(lengths == 0, 1, lengths)
