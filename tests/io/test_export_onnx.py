"""ONNX: onnxruntime's logits are torch's, at sizes the graph was not traced at; the folder is whole or absent."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from secateur.errors import BadInput, NoMatch, Unsupported
from secateur.io import export_onnx as module
from secateur.io import networks
from secateur.io.classifiers import load_classifier, save_classifier
from secateur.io.convert import to_sparse
from secateur.io.export_onnx import export_onnx
from secateur.io.manifest import check_manifest
from tests.io.ggufs import loaded
from tests.tinylm import save_tiny

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
transformers = pytest.importorskip("transformers")


def session(folder: Path) -> Any:
    return ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cut`: a tiny Llama, half of its projections zero. `mlp`: a small classifier."""
    root = tmp_path_factory.mktemp("onnx")
    folder = save_tiny(root / "cut")
    state = load_file(folder / "model.safetensors")
    for name, tensor in state.items():
        if "proj" in name:
            tensor[:, ::2] = 0.0
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    save_classifier(load_classifier("mlp-16", channels=1, size=8, classes=10), root / "mlp")
    return root


@pytest.fixture(scope="module")
def exported(root: Path) -> tuple[Path, dict[str, Any], list[tuple[int, int]]]:
    """The cut Llama, stored sparse, as a graph; what the export said, and told on the way."""
    told: list[tuple[int, int]] = []
    to_sparse(root / "cut", root / "sparse")
    found = export_onnx(root / "sparse", root / "out", tell=lambda done, total: told.append((done, total)))
    return root / "out", found, told


def test_a_language_model_at_any_batch_and_length(root: Path, exported: tuple) -> None:
    out, found, told = exported
    model, run = loaded(root / "cut"), session(out)
    worst = 0.0
    for batch, length in ((1, 1), (1, 64), (5, 9), (2, 7)):
        ids = torch.randint(0, 64, (batch, length), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            wanted = model(ids).logits.numpy()
        (got,) = run.run(None, {"input_ids": ids.numpy()})
        assert got.shape == wanted.shape and got.dtype == np.float32
        worst = max(worst, float(np.abs(got - wanted).max()))
    assert worst <= 1e-5 and found["difference"] <= 1e-5
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert found["input"] == "input_ids" and found["bytes"] == (out / "model.onnx").stat().st_size
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    files = {path.name for path in out.iterdir()}
    assert files >= {"model.onnx", "config.json", "tokenizer.json", "manifest.json"}
    assert not any(name.endswith(".safetensors") for name in files)
    check_manifest(out)


def test_the_graph_is_valid_keeps_zeros_and_tells_nothing_of_this_machine(
    root: Path, exported: tuple
) -> None:
    path = exported[0] / "model.onnx"
    for word in (str(Path(module.__file__).parents[3]), "modeling_llama", ".py", "stack_trace"):
        assert word.encode() not in path.read_bytes(), word
    graph = onnx.load(str(path))
    onnx.checker.check_model(graph, full_check=True)
    weight = load_file(root / "cut" / "model.safetensors")["model.layers.1.mlp.down_proj.weight"].numpy()
    held = [onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer]
    assert any(np.array_equal(array, weight) or np.array_equal(array, weight.T) for array in held)
    assert np.count_nonzero(weight) == weight.size // 2


@pytest.mark.parametrize("name", ["resnet20", "mlp-16", "vgg-8-8"])
def test_a_classifier_of_ours(tmp_path: Path, name: str) -> None:
    model = load_classifier(
        name, channels=3, size=16, classes=7, seed=1, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4]
    )
    save_classifier(model.eval(), tmp_path / "m")
    found = export_onnx(tmp_path / "m", tmp_path / "out")
    assert found["input"] == "images"
    for batch in (1, 6):
        images = torch.rand(batch, 3, 16, 16, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            wanted = model(images).numpy()
        (got,) = session(tmp_path / "out").run(None, {"images": images.numpy()})
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)


def test_a_classifier_of_transformers_normalises_inside(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    from tests.io.test_vision import tiny_vit, vit_processor

    tiny_vit().save_pretrained(tmp_path / "vit")
    vit_processor().save_pretrained(tmp_path / "vit")
    export_onnx(tmp_path / "vit", tmp_path / "out")
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        wanted = load_classifier(tmp_path / "vit")(images).numpy()
    (got,) = session(tmp_path / "out").run(None, {"images": images.numpy()})
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()


def test_many_weights_lie_in_a_file_beside_the_graph(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ONE_FILE", 1000)
    found = export_onnx(root / "mlp", tmp_path / "out")
    sizes = [(tmp_path / "out" / name).stat().st_size for name in ("model.onnx", "model.onnx.data")]
    assert found["bytes"] == sum(sizes) and sizes[1] >= 4 * (64 * 16 + 16 * 10)
    check_manifest(tmp_path / "out")
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        wanted = load_classifier(root / "mlp")(images).numpy()
    (got,) = session(tmp_path / "out").run(None, {"images": images.numpy()})
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=32
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(Unsupported, match="a BertForMaskedLM is neither"):
        export_onnx(tmp_path / "bert", tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(module, "TOLERANCE", -1.0)
        with pytest.raises(Unsupported, match=r"onnxruntime's logits differ by \d"):
            export_onnx(root / "mlp", tmp_path / "out")

    def branches(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.hidden[0](x.flatten(1))) * (2.0 if x.sum() > 3 else 1.0)

    with monkeypatch.context() as patched:
        patched.setattr(networks.Perceptron, "classify", branches)
        with pytest.raises(Unsupported, match="torch cannot export it to ONNX") as error:
            export_onnx(root / "mlp", tmp_path / "out")
        assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(BadInput, match="not a checkpoint"):
        export_onnx(root / "mlp", tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


def test_a_missing_package_is_an_install_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(Unsupported, match=r"onnxscript cannot be imported .* pip install 'secateur\[onnx\]'"):
        export_onnx(root / "mlp", tmp_path / "out")


def test_a_folder_without_a_config_is_told(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(NoMatch, match=r"no config\.json in this folder"):
        export_onnx(tmp_path / "m", tmp_path / "out")
