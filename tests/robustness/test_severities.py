from __future__ import annotations

import numpy as np
import pytest

from secateur.errors import BadInput
from secateur.robustness.severities import EXTRA, NAMES, TABLES, parameters


@pytest.mark.parametrize("table", TABLES)
def test_nineteen_times_five_entries(table: str) -> None:
    assert len(NAMES) == 15 and len(EXTRA) == 4 and set(TABLES[table]) == {*NAMES, *EXTRA}
    widths = {name: {len(c) for c in rows} for name, rows in TABLES[table].items()}
    assert all(len(rows) == 5 for rows in TABLES[table].values())
    assert all(len(width) == 1 for width in widths.values())
    assert widths == {name: {len(c) for c in rows} for name, rows in TABLES["cifar-c"].items()}


def test_spot_values_of_the_sheet() -> None:
    assert parameters("gaussian_noise", 5, "imagenet-c") == (0.38,)
    assert parameters("gaussian_noise", 5, "cifar-c") == (0.10,)
    assert parameters("shot_noise", 1, "cifar-c") == (500,) and parameters("fog", 4, "imagenet-c") == (
        2.5,
        1.5,
    )
    assert parameters("snow", 3, "imagenet-c") == (0.55, 0.3, 4, 0.9, 12, 8, 0.7)
    assert parameters("glass_blur", 5, "cifar-c") == (0.4, 1, 2)
    assert parameters("jpeg_compression", 2, "imagenet-c") == (18,)
    assert parameters("elastic_transform", 2, "imagenet-c") == pytest.approx((488, 19.52, 48.8))
    assert parameters("elastic_transform", 2, "cifar-c") == pytest.approx((1.6, 6.4, 2.24))


@pytest.mark.parametrize(
    ("table", "ends"),
    [("imagenet-c", (1.11, 1.16, 1.21, 1.26, 1.31)), ("cifar-c", (1.06, 1.11, 1.16, 1.21, 1.26))],
)
def test_zoom_has_the_factors_that_floating_point_stepping_gives(table: str, ends: tuple[float, ...]) -> None:
    for severity, end in enumerate(ends, 1):
        step, count = parameters("zoom_blur", severity, table)
        factors = np.arange(1, end, step)
        assert len(factors) == count
        assert factors[-1] == pytest.approx(1 + (count - 1) * step)


@pytest.mark.parametrize(
    ("name", "severity", "table", "says"),
    [
        ("fogg", 1, "cifar-c", "did you mean 'fog'"),
        ("fog", 0, "cifar-c", "use 1, 2, 3, 4 or 5"),
        ("fog", 6, "cifar-c", "no severity"),
        ("fog", True, "cifar-c", "no severity"),
        ("fog", 1.0, "cifar-c", "no severity"),
        ("fog", 1, "cifar10", "cifar-c"),
    ],
)
def test_what_is_unknown_is_refused_in_one_line(name: str, severity: int, table: str, says: str) -> None:
    with pytest.raises(BadInput, match=says) as error:
        parameters(name, severity, table)
    assert "\n" not in str(error.value)
