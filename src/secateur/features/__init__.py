"""Choose features instead of weights: descriptors and images in, a sparse readable head out (sheet slr-avd).

    data = gather("DIR/clip", "descriptors.json", "cifar10", cache="embeddings")
    fitted = fit("slr_avd", data, shots=16)
    evaluate(fitted, data.tests)
    explain(fitted)["tench"]            # the descriptors behind the class, with their weights

The embeddings come from a model with an image and a text tower (`gather`) or from arrays on disk (`gather_arrays`).
"""

from __future__ import annotations

from secateur.features.data import LIGHT, SEVEN, Data, draw, gather, gather_arrays, texts_of
from secateur.features.jobs import (
    Fitted,
    accuracy,
    evaluate,
    explain,
    fit,
    gather_tests,
    load,
    read_tests,
    save,
)
from secateur.features.page import write_page
from secateur.features.shift import evaluate_corrupted
from secateur.features.tune import Tuned, tune
from secateur.io.descriptors import random_words

__all__ = [
    "LIGHT",
    "SEVEN",
    "Data",
    "Fitted",
    "Tuned",
    "accuracy",
    "draw",
    "evaluate",
    "evaluate_corrupted",
    "explain",
    "fit",
    "gather",
    "gather_arrays",
    "gather_tests",
    "load",
    "random_words",
    "read_tests",
    "save",
    "texts_of",
    "tune",
    "write_page",
]
