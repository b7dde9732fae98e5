"""slr_avd: a few descriptions for each class, from an L1 penalty on how much each one counts.

    min_W  (1/n) sum_i CE(softmax(s W z_i), y_i) + lam * sum |W|          z = U h: cosines with every class's texts
    V = W U                                                               the folded head: what a linear probe costs

Shapes:  U [M + C, d] descriptors, then class prompts; h [n, d] images; W [C, M + C]; V [C, d].
Unit:    feature.     Needs: a few labelled images a class.
Departs: lam stands on the model's logit scale s (z -> a z needs lam -> a lam). Left open, it is the value of the path
         with the best accuracy on held-out shots, of equal ones the sparsest. penalty="l2" and features="cp" are
         controls that the paper's reviewers asked for.
Oracle:  the optimality conditions (recover/l1_softmax.py); scikit-learn's saga; W U h = (W U) h.
Paper:   Text Descriptions are Compressive and Invariant Representations for Visual Learning (2023), section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from secateur.apply.heads import Features, Head, Shots, Texts, check_fits, columns
from secateur.core.method import Card
from secateur.core.units import Unit
from secateur.errors import BadInput, one_of
from secateur.recover.l1_softmax import Point, walk_path


@dataclass(frozen=True, kw_only=True)
class SLRAVD(Features):
    """Sparse logistic regression on augmented visual descriptors.

    Args:
        lam: the penalty; left open, it is chosen on held-out shots.
        features: avd (descriptors and class prompts), vd or cp.
        penalty: l1, or l2.
        count, factor: values of the path that lam is chosen from, each `factor` of the one before.
        tol: how exactly the optimality conditions hold, as a fraction of lam.
    """

    lam: float | None = None
    features: str = "avd"
    penalty: str = "l1"
    count: int = 30
    factor: float = 0.8
    tol: float = 1e-4

    card = Card(
        paper="Text Descriptions are Compressive and Invariant Representations for Visual Learning (2023)",
        unit=Unit.FEATURE,
        when="after",
        criterion="L1-penalised softmax regression on cosines with descriptors",
        purpose="robustness",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.features, ("avd", "vd", "cp"), "features")
        one_of(self.penalty, ("l1", "l2"), "penalty")
        if self.lam is not None and not self.lam > 0:
            raise BadInput(f"{self.lam!r}", where="lam", fix="use more than 0, or leave it open")
        if self.count < 1 or not 0 < self.factor < 1 or not 0 < self.tol < 1:
            what = f"count {self.count}, factor {self.factor}, tol {self.tol}"
            raise BadInput(what, where="slr_avd", fix="count >= 1, factor and tol between 0 and 1")

    def path(self, texts: Texts, shots: Shots, lams: tuple[float, ...] | None = None) -> list[Point]:
        """Solutions for falling lam: those given, or `count` values below the smallest that leaves nothing."""
        return list(self.walk(texts, shots, lams))

    def walk(self, texts: Texts, shots: Shots, lams: tuple[float, ...] | None = None) -> Iterator[Point]:
        """`path`, one solution at a time: W of a thousand classes is large."""
        check_fits(texts, shots)
        return walk_path(
            shots.embeddings,
            shots.labels,
            columns(texts, self.features)[1],
            lams=lams,
            count=self.count,
            factor=self.factor,
            penalty=self.penalty,
            classes=len(texts.classes),
            scale=texts.scale,
            tol=self.tol,
        )

    def fit(self, texts: Texts, shots: Shots | None, held: Shots | None = None) -> Head:
        if shots is None:
            raise BadInput("no images to learn from", where="slr_avd")
        if self.lam is not None:
            return self.head(texts, self.path(texts, shots, (self.lam,))[0])
        if held is None:
            raise BadInput(
                "nothing is held out to choose it on", where="lam", fix="give lam=, or held-out shots"
            )
        check_fits(texts, held)
        best: tuple[float, Head] | None = None
        for point in self.walk(texts, shots):  # falling lam: of equal accuracies the first is the sparsest
            head = self.head(texts, point)
            right = float((head.logits(held.embeddings).argmax(1) == held.labels).float().mean())
            if best is None or right > best[0]:
                best = right, head
        assert best is not None
        return best[1]

    def head(self, texts: Texts, point: Point) -> Head:
        """The folded head of one point of the path."""
        places, rows = columns(texts, self.features)
        coefficients = point.weight.float()
        facts = (("lam", point.lam), ("objective", point.objective), ("residual", point.residual))
        return Head(coefficients @ rows.float(), texts.scale, None, coefficients, places, facts)
