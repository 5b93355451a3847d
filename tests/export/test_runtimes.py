"""Opening and running exported files: results, options, and one-line errors for wrong files."""

import ast
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from toy_exports import SUFFIXES, Toy, metadata_text, write_toy

from mask2former.export import runtimes
from mask2former.export.formats import FORMATS
from mask2former.export.runtimes import RUNTIMES, MissingRuntimeError, open_exported
from mask2former.export.writers import WRITERS
from mask2former.weights.contents import EXPORTED, WeightsError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    return {suffix: write_toy(folder, suffix) for suffix in SUFFIXES}


@pytest.fixture(params=SUFFIXES)
def file(request, files, tmp_path):
    """A copy of the toy in each format."""
    original = files[request.param]
    for path in original.parent.glob(f"{original.stem}.*"):
        if path.suffix in (original.suffix, ".bin"):
            shutil.copy(path, tmp_path)
    return tmp_path / original.name


@pytest.mark.parametrize("shape", [(2, 3, 32, 48), (1, 3, 64, 32)])
def test_each_runtime_computes_the_logits(file, shape):
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = Toy()(images)
    logits = open_exported(file).logits(images)
    for found, wanted in zip(logits, expected, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_logits_stay_when_the_file_runs_again(file):
    exported = open_exported(file)
    first = exported.logits(torch.zeros(1, 3, 32, 32))
    kept = [logits.clone() for logits in first]
    exported.logits(torch.ones(1, 3, 32, 32))
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_images_may_be_strided_and_of_half_precision(file):
    images = torch.randn(1, 32, 32, 3, generator=torch.Generator().manual_seed(1)).half().permute(0, 3, 1, 2)
    exported = open_exported(file)
    for found, wanted in zip(
        exported.logits(images), exported.logits(images.float().contiguous()), strict=True
    ):
        assert torch.equal(found, wanted)


def test_the_metadata_is_read(file):
    metadata = open_exported(file).metadata
    assert metadata.class_names == ["circle", "square", "grass", "sand"]
    assert metadata.to_json() == metadata_text()


def test_bfloat16_is_for_openvino_alone(file):
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    if file.suffix != ".xml":
        with pytest.raises(ValueError, match=r"precision 'bf16' is for files of OpenVINO alone"):
            open_exported(file, precision="bf16")
        return
    exact = open_exported(file).logits(images)
    rounded = open_exported(file, precision="bf16").logits(images)
    for found, wanted in zip(rounded, exact, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.1)


def test_onnx_runtime_uses_as_many_threads_as_torch(files, monkeypatch):
    import onnxruntime

    used = []
    session = onnxruntime.InferenceSession

    def record(path, options, **kwargs):
        used.append(options.intra_op_num_threads)
        return session(path, options, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", record)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    open_exported(files[".onnx"])
    assert used == [3]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without GPU")
def test_auto_is_the_cpu_where_there_is_no_gpu(file):
    assert open_exported(file, device="auto").device == torch.device("cpu")
    with pytest.raises(ValueError, match=r"MODEL.DEVICE is 'cuda', but this machine has 0 GPUs"):
        open_exported(file, device="cuda")


@pytest.mark.parametrize(
    ("suffix", "advice"),
    [(".onnx", "ONNX Runtime computes on the CPU here: install onnxruntime-gpu"), (".xml", "OpenVINO")],
)
def test_a_gpu_that_the_runtime_cannot_use_is_an_error_if_asked_for(files, suffix, advice, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=f"MODEL.DEVICE is 'cuda', but {advice}"):
        open_exported(files[suffix], device="cuda")
    assert open_exported(files[suffix], device="auto").device == torch.device("cpu")


@pytest.mark.parametrize("share", [0, 0.3, 0.7, 0.999])
def test_a_truncated_file_is_an_error_of_one_line(file, share):
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    _refused(file, file.name)


def test_another_file_under_the_suffix_is_an_error_of_one_line(file):
    file.write_bytes(b"\x00\x01 not a model <net>" * 100)
    _refused(file, "is truncated, damaged or no file of")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_without_our_metadata_is_refused(suffix, tmp_path):
    _refused(write_toy(tmp_path, suffix, text=""), "holds no metadata 'mask2former'")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_a_later_version_is_refused(suffix, tmp_path):
    later = json.dumps({**json.loads(metadata_text()), "version": 99})
    _refused(write_toy(tmp_path, suffix, text=later), "has version 99")


def test_openvino_weights_may_not_be_missing(files, tmp_path):
    path = shutil.copy(files[".xml"], tmp_path)
    _refused(path, f"no file {tmp_path / 'toy.bin'}")


def test_openvino_weights_may_not_be_truncated(files, tmp_path):
    path = shutil.copy(files[".xml"], tmp_path)
    content = files[".xml"].with_suffix(".bin").read_bytes()
    (tmp_path / "toy.bin").write_bytes(content[: len(content) // 2])
    _refused(path, "is truncated, damaged")


def test_a_missing_file_is_an_error(tmp_path):
    (tmp_path / "model.onnx").touch()
    _refused(tmp_path / "modl.onnx", r"no such file; in .* there is model\.onnx")


@pytest.mark.parametrize(("suffix", "package"), [(".onnx", "onnxruntime"), (".xml", "openvino")])
def test_a_missing_runtime_is_an_error_that_names_the_extra(files, suffix, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(MissingRuntimeError, match=rf"{package} is not installed.*mask2former\[export\]"):
        open_exported(files[suffix])


def test_runtimes_are_imported_when_they_are_used():
    for node in ast.parse(Path(runtimes.__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert not re.search(r"\b(onnx|onnxruntime|openvino)\b", ast.unparse(node))


def test_each_suffix_has_a_runtime():
    opened = {form.suffixes[0] for form in FORMATS.values()}
    assert set(RUNTIMES) == set(EXPORTED) == set(SUFFIXES) == opened


def test_each_format_has_a_writer():
    assert WRITERS.keys() == FORMATS.keys()


def _refused(file, reason):
    with pytest.raises(WeightsError, match=reason) as caught:
        open_exported(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
