"""Exported files in the real runtimes: the logits of PyTorch at sizes that they were not exported with."""

import pytest
import torch
from tiny_checkpoint import METADATA, TINY, tiny_config

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.export import writers
from mask2former.export.graph import Graph
from mask2former.export.runtimes import open_exported
from mask2former.export.write import export_model

SHAPES = [(2, 3, 64, 64), (1, 3, 70, 140), (4, 3, 160, 96)]
SWIN = {
    "MODEL.SWIN.EMBED_DIM": 24,
    "MODEL.SWIN.DEPTHS": (2, 1, 1, 1),
    "MODEL.SWIN.NUM_HEADS": (1, 2, 2, 4),
    "MODEL.SWIN.WINDOW_SIZE": 3,
    "MODEL.MASK_FORMER.DEC_LAYERS": 3,
    "MODEL.MASK_FORMER.DECODER.FINE_LAYERS": 1,
}


def swin_config():
    opts = [part for item in {**TINY, **SWIN}.items() for part in item]
    return load_config("coco/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml", opts)


@torch.no_grad()
def assert_exact(path, model):
    exported = open_exported(path)
    for shape in SHAPES:
        images = torch.randn(shape, generator=torch.Generator().manual_seed(shape[2]))
        for found, wanted in zip(exported.logits(images), Graph(model)(images), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("make_config", [tiny_config, swin_config])
def test_onnx_and_openvino_compute_the_logits(make_config, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = build_model(make_config()).eval()
    path = tmp_path / "model.onnx"
    export_model(make_config(), model, METADATA, path, "onnx")
    assert_exact(path, model)
    assert b"site-packages" not in path.read_bytes()  # no paths of this machine
    # OpenVINO's files are made of an ONNX file, which takes the longest
    monkeypatch.setattr(
        writers, "_write_onnx", lambda graph, divisor, to, text: to.write_bytes(path.read_bytes())
    )
    export_model(make_config(), model, METADATA, tmp_path / "model.xml", "openvino")
    assert_exact(tmp_path / "model.xml", model)
    export_model(make_config(), model, METADATA, tmp_path / "half.xml", "openvino", half=True)
    size, half_size = ((tmp_path / f"{name}.bin").stat().st_size for name in ("model", "half"))
    assert 0.45 < half_size / size < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("make_config", [tiny_config, swin_config])
def test_torch_computes_the_logits(make_config, tmp_path):
    torch.manual_seed(0)
    model = build_model(make_config()).eval()
    path = tmp_path / "model.pt2"
    export_model(make_config(), model, METADATA, path, "torch", half=True)
    assert open_exported(path).metadata.half
    export_model(make_config(), model, METADATA, path, "torch")
    assert_exact(path, model)
