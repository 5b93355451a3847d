"""Quantization: which layers become int8, and how near the results stay."""

from unittest.mock import patch

import numpy as np
import onnx
import pytest
import torch
from tiny_checkpoint import tiny_config
from torch import nn
from toy_exports import metadata_text

from mask2former.data import build_test_mapper
from mask2former.engine.build import build_model
from mask2former.export.int8 import (
    calibration_batches,
    calibration_images,
    candidates,
    differences,
    quantize,
)
from mask2former.export.metadata import KEY
from mask2former.export.runtimes import open_exported
from mask2former.utils.image_io import write_image

WIDTH, QUERIES, CLASSES = 16, 6, 5


class PixelDecoder(nn.Module):
    """Two maps made tokens, concatenated and mixed, with weights from layers that must stay in float."""

    def __init__(self):
        super().__init__()
        self.input_proj = nn.Conv2d(WIDTH, WIDTH, 1)
        self.mask_features = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        names = ("value_proj", "sampling_offsets", "attention_weights", "linear1")
        for name in names:
            setattr(self, name, nn.Linear(WIDTH, WIDTH, bias=name != "linear1"))

    def forward(self, image):
        maps = (self.input_proj(image), image)
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)
        moved = self.value_proj(tokens) * self.sampling_offsets(tokens).sigmoid()
        return self.mask_features(image), self.linear1(moved + self.attention_weights(moved).softmax(-1))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(QUERIES, WIDTH))
        self.attention = nn.Linear(WIDTH, WIDTH)
        self.class_embed = nn.Linear(WIDTH, CLASSES)

    def forward(self, features, tokens):
        weights = (self.queries @ self.attention(tokens).transpose(1, 2)).softmax(-1)
        queries = weights @ tokens + self.queries
        return self.class_embed(queries), torch.einsum("bqc,bchw->bqhw", queries, features)


class Small(nn.Module):
    """A network with the parts of Mask2Former, by their names."""

    def __init__(self):
        super().__init__()
        convolutions = (nn.Conv2d(3, WIDTH, 4, stride=4), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False))
        self.backbone = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.BatchNorm2d(WIDTH))
        self.sem_seg_head = nn.Module()
        self.sem_seg_head.pixel_decoder = PixelDecoder()
        self.sem_seg_head.predictor = Decoder()

    def forward(self, images):
        maps = self.sem_seg_head.pixel_decoder(self.backbone(images).relu())
        return self.sem_seg_head.predictor(*maps)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The model, its ONNX file and that in int8, and the layers that are said to be quantized."""
    torch.manual_seed(0)
    model = Small().eval()
    nn.init.normal_(model.backbone[3].running_mean, std=0.1)
    folder = tmp_path_factory.mktemp("int8")
    sides = {axis: 4 * torch.export.Dim(name) for axis, name in ((2, "h"), (3, "w"))}
    axes = {0: torch.export.Dim("b"), **sides}
    program = torch.onnx.export(
        model,
        (batch(2, 32, 48),),
        dynamo=True,
        dynamic_shapes={"images": axes},
        input_names=["images"],
        output_names=["class_logits", "mask_logits"],
        verbose=False,
    )
    program.model.metadata_props[KEY] = metadata_text()
    program.save(folder / "model.onnx")
    batches = [batch(1, 32, 48, seed) for seed in range(8)]
    layers = quantize(folder / "model.onnx", folder / "int8.onnx", model, batches)
    return model, folder / "model.onnx", folder / "int8.onnx", layers


def batch(count, height, width, seed=0):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def products(path):
    """Return whether input and weight are int8, for each product of matrices or convolution of a file."""
    graph = onnx.load(path).graph
    int8 = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    operators = ("Conv", "MatMul", "Gemm")
    return [{name in int8 for name in node.input[:2]} for node in graph.node if node.op_type in operators]


def test_the_backbone_and_the_pixel_decoder_become_int8(small):
    model, *_, layers = small
    meant = {name for name, _ in candidates(model)}
    decoder = "sem_seg_head.pixel_decoder."
    assert meant == {
        "backbone.0",
        "backbone.2",
        *(decoder + name for name in ("input_proj", "mask_features", "value_proj", "linear1")),
    }
    assert set(layers) == meant - {f"{decoder}value_proj"}  # which reads a concatenation


def test_no_other_product_is_quantized(small):
    _, source, path, layers = small
    in_float = products(source)
    assert in_float == [{False}] * len(in_float)
    expected = [{False}] * (len(in_float) - len(layers)) + [{True}] * len(layers)
    assert sorted(products(path), key=str) == expected


def test_logits_stay_near_those_in_float_at_another_size(small):
    _, source, path, _ = small
    exact, int8 = (open_exported(file, threads=1) for file in (source, path))
    found = differences(exact, int8, [batch(2, 48, 32, seed=9), batch(1, 64, 64, seed=10)])
    assert set(found) == {"class_logits", "mask_logits"}
    for difference in found.values():
        assert difference.correlation > 0.99
        assert 0 < difference.largest < 0.5


def test_differences_are_zero_for_one_file(small):
    exact = open_exported(small[1], threads=1)
    for difference in differences(exact, exact, [batch(1, 32, 32)]).values():
        assert difference.largest == 0
        assert difference.correlation == pytest.approx(1)


def test_the_file_is_smaller_and_keeps_its_metadata(small):
    _, source, path, _ = small
    assert path.stat().st_size < source.stat().st_size
    properties = [{entry.key: entry.value for entry in onnx.load(file).metadata_props} for file in small[1:3]]
    assert properties[0] == properties[1]
    assert not list(path.parent.glob(".unfinished*"))


def test_openvino_reads_the_file(small):
    import openvino

    _, source, path, _ = small
    model = openvino.Core().read_model(path)
    model.set_rt_info(metadata_text(), KEY)
    openvino.save_model(model, path.with_suffix(".xml"))
    exact, int8 = (open_exported(file, threads=1) for file in (source, path.with_suffix(".xml")))
    for difference in differences(exact, int8, [batch(2, 48, 32, seed=9)]).values():
        assert difference.correlation > 0.99


def test_calibration_takes_images_evenly_from_the_folder(tmp_path):
    for number in range(10):
        (tmp_path / f"{number}.jpg").touch()
    (tmp_path / "labels.json").touch()
    assert [path.stem for path in calibration_images(tmp_path, 5)] == ["0", "2", "4", "6", "8"]
    assert len(calibration_images(tmp_path, 64)) == 10


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=f"--calibrate {tmp_path}: no image in it"):
        calibration_images(tmp_path)
    with pytest.raises(ValueError, match=r"--calibrate .*/nowhere: no such folder"):
        calibration_images(tmp_path / "nowhere")


def test_calibration_images_are_prepared_as_for_prediction(tmp_path):
    cfg = tiny_config()
    model, mapper = build_model(cfg).eval(), build_test_mapper(cfg)
    image = np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8)
    write_image(tmp_path / "image.png", image)
    (batch,) = calibration_batches(model, mapper, [tmp_path / "image.png"])
    with patch.object(model, "network", side_effect=StopIteration) as network, pytest.raises(StopIteration):
        model.predict([mapper.inputs(image)])
    assert torch.equal(batch, network.call_args.args[0])
