"""The paths of the kernels, each in turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from secateur.runtime import library
from tests.runtime.matrices import paths


@pytest.fixture(params=paths())
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each path in turn; the best again afterwards."""
    if request.param == "torch":
        monkeypatch.setattr(library, "load", lambda: None)
        yield "torch"
    else:
        library.use(request.param)
        yield request.param
        library.use(paths()[-1])


@pytest.fixture
def kernels() -> None:
    if len(paths()) == 1:
        pytest.skip("no compiled kernels here: secateur was installed without a C compiler")
