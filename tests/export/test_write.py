"""Files appear under their names only if they are complete and exact."""

import sys
from types import SimpleNamespace

import pytest
import torch
from full_disk import files_no_larger_than
from tiny_checkpoint import METADATA, tiny_config

from mask2former.config import with_values
from mask2former.engine.build import build_model
from mask2former.export import write
from mask2former.export.check import ExportError
from mask2former.export.graph import Graph
from mask2former.export.metadata import parse_metadata
from mask2former.export.runtimes import MissingRuntimeError
from mask2former.export.write import export_model
from mask2former.export.writers import WRITERS
from mask2former.utils.messages import InputError


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(tiny_config()).eval()


@pytest.fixture
def runtime(model, monkeypatch):
    """A format whose file is its metadata, and a runtime that returns the model's logits plus `error`."""
    runtime = SimpleNamespace(error=0.0)

    def save(graph, divisor, path, text):
        path.write_text(text)

    def logits(images):
        class_logits, mask_logits = Graph(model)(images)
        return class_logits, mask_logits + runtime.error

    def open_file(path, exact):
        assert exact
        metadata = parse_metadata(path.read_text(), str(path))
        return SimpleNamespace(metadata=metadata, logits=logits)

    monkeypatch.setitem(WRITERS, "torch", save)
    monkeypatch.setattr(write, "open_exported", open_file)
    return runtime


def export(model, path, **options):
    return export_model(tiny_config(), model, METADATA, path, "torch", **options)


def test_differences_are_those_of_three_sizes_and_two_batches(model, runtime, tmp_path):
    runtime.error = 5e-5
    differences = export(model, tmp_path / "model.pt2")
    assert len({difference.shape[2:] for difference in differences}) == 3
    assert len({difference.shape[0] for difference in differences} - {2}) == 2  # 2 images are traced
    for difference in differences:
        assert difference.class_logits == 0
        assert difference.mask_logits == pytest.approx(5e-5, rel=0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


@pytest.mark.parametrize("error", [2e-4, float("nan")])
def test_a_file_that_differs_is_not_left_behind(model, runtime, tmp_path, error):
    runtime.error = error
    with pytest.raises(ExportError, match=r"model\.pt2: for images 1 x 3 x 256 x 352 class logits differ"):
        export(model, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_half_may_differ_more(model, runtime, tmp_path):
    runtime.error = 2e-3
    assert export(model, tmp_path / "model.pt2", half=True)


def test_without_check_the_file_is_kept(model, runtime, tmp_path):
    runtime.error = 1.0
    assert export(model, tmp_path / "model.pt2", check=False) == []
    assert (tmp_path / "model.pt2").exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_export_leaves_the_earlier_file(model, runtime, tmp_path, monkeypatch, stop):
    def interrupted(graph, divisor, path, text):
        path.write_text("a part")
        raise stop

    monkeypatch.setitem(WRITERS, "torch", interrupted)
    (tmp_path / "model.pt2").write_text("earlier")
    with pytest.raises(stop):
        export(model, tmp_path / "model.pt2")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["earlier"]


def test_a_full_disk_is_an_error_that_leaves_nothing(model, runtime, tmp_path):
    with files_no_larger_than(1000), pytest.raises(OSError, match="File too large"):
        export(model, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_another_layer_than_the_last_is_refused(model, tmp_path):
    cfg = with_values(tiny_config(), {"MODEL.MASK_FORMER.TEST.LAYER": 0}, "test")
    with pytest.raises(InputError, match=r"MODEL\.MASK_FORMER\.TEST\.LAYER is 0"):
        export_model(cfg, model, METADATA, tmp_path / "model.pt2", "torch")


@pytest.mark.parametrize(("kind", "package"), [("onnx", "onnxscript"), ("openvino", "openvino")])
def test_a_missing_package_is_an_error_that_names_the_extra(model, tmp_path, monkeypatch, kind, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(MissingRuntimeError, match=rf"{package} is not installed.*mask2former\[export\]"):
        export_model(tiny_config(), model, METADATA, tmp_path / "model", kind)
