"""The scikit-learn classifier: scikit-learn's own checks, and the same optimum as slr_avd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from secateur.errors import BadInput
from secateur.estimator import SparseDescriptorClassifier
from secateur.registry import make
from tests.methods.features.towers import towers

CHECKED = [
    SparseDescriptorClassifier(),
    SparseDescriptorClassifier(lam=0.01, normalize=True, fit_intercept=False),
]


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(CHECKED)
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    assert check(estimator) is None  # it raises where it finds something


def test_it_finds_what_slr_avd_finds() -> None:
    world = towers()
    shots, x = world.shots(4, seed=0), world.shots(2, seed=1).embeddings
    rows = np.concatenate([world.texts.rows, world.texts.prompts])
    names = [*world.texts.words, *world.texts.classes]
    model = SparseDescriptorClassifier(rows, names=names, lam=0.02, scale=20.0, fit_intercept=False, tol=1e-6)
    model.fit(shots.embeddings.numpy(), shots.labels.numpy())
    head = make("slr_avd", lam=0.02, tol=1e-6).fit(world.texts, shots)
    np.testing.assert_allclose(
        model.decision_function(x.numpy()), head.logits(x).numpy(), rtol=1e-2, atol=2e-2
    )
    assert model.predict_proba(x.numpy()).sum(1) == pytest.approx(np.ones(20))
    found = model.explain(2)
    top = names[int(model.coef_[3].argmax())]
    assert found[3][0][0] == top and all(len(pairs) <= 2 for pairs in found.values())


def test_it_takes_part_in_a_grid_search() -> None:
    world = towers()
    shots = world.shots(8, seed=0)
    search = GridSearchCV(
        SparseDescriptorClassifier(world.texts.rows.numpy(), scale=20.0), {"lam": [0.02, 5.0]}, cv=2
    )
    search.fit(shots.embeddings.numpy(), shots.labels.numpy())
    assert search.best_params_ == {"lam": 0.02} and search.best_score_ > 0.9


def test_texts_that_do_not_fit_are_refused() -> None:
    x, y = np.eye(4), np.array([0, 1, 0, 1])
    for texts, names, line in [
        (np.ones((3, 5)), None, "for inputs 4 wide"),
        (np.zeros((3, 4)), None, "zero"),
        (np.ones((3, 4)), ["a"], "1 names of 3 texts"),
    ]:
        with pytest.raises(BadInput, match=line):
            SparseDescriptorClassifier(texts, names=names).fit(x, y)
