"""Quantization: which layers become int8, and how near the results stay."""

import shutil
from unittest.mock import patch

import numpy as np
import onnx
import pytest
import torch
from tiny_checkpoint import METADATA, save_tiny_checkpoint, tiny_config
from torch import nn

from mask2former.data import build_test_mapper
from mask2former.engine.build import build_model
from mask2former.engine.setup.precision import calibration_batches, calibration_images
from mask2former.export import int8
from mask2former.export.int8 import differences, export_int8, quantize, report
from mask2former.export.runtimes import open_exported
from mask2former.export.write import export_model
from mask2former.modeling.int8 import candidates
from mask2former.modeling.mask_former import MaskFormer
from mask2former.modeling.postprocessing.inference import InferenceOptions
from mask2former.modeling.predictions import Prediction, Predictions
from mask2former.tools import export
from mask2former.utils.image_io import write_image

WIDTH, QUERIES, CLASSES = 16, 6, 5


class PixelDecoder(nn.Module):
    """Two maps made tokens, concatenated and mixed, with weights from layers that must stay in float."""

    def __init__(self):
        super().__init__()
        self.input_proj = nn.Conv2d(WIDTH, WIDTH, 1)
        self.mask_features = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        for name in ("value_proj", "sampling_offsets", "attention_weights", "linear1"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH, bias=name != "linear1"))

    def forward(self, image):
        maps = (self.input_proj(image), image)
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)
        moved = self.value_proj(tokens) * self.sampling_offsets(tokens).sigmoid()
        return self.mask_features(image), self.linear1(moved + self.attention_weights(moved).softmax(-1))


class Head(nn.Module):
    """A head with the parts of Mask2Former, by their names, whose queries attend once."""

    def __init__(self):
        super().__init__()
        self.pixel_decoder = PixelDecoder()
        self.predictor = nn.Module()
        self.predictor.queries = nn.Parameter(torch.randn(QUERIES, WIDTH))
        self.predictor.attention = nn.Linear(WIDTH, WIDTH)
        self.predictor.class_embed = nn.Linear(WIDTH, CLASSES)

    def forward(self, image):
        features, tokens = self.pixel_decoder(image)
        decoder = self.predictor
        weights = (decoder.queries @ decoder.attention(tokens).transpose(1, 2)).softmax(-1)
        queries = weights @ tokens + decoder.queries
        return Predictions([Prediction(decoder.class_embed(queries), queries)], features)


def small_model():
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(3, WIDTH, 4, stride=4), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False))
    norm = nn.BatchNorm2d(WIDTH)
    nn.init.normal_(norm.running_mean, std=0.1)
    return MaskFormer(
        backbone=nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], norm, nn.ReLU()),
        sem_seg_head=Head(),
        criterion=nn.Identity(),
        inference=InferenceOptions(thing_ids=(0, 1)),
        num_classes=CLASSES - 1,
        pixel_mean=[120.0] * 3,
        pixel_std=[60.0] * 3,
    ).eval()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The model, its ONNX file and that in int8, and the layers that are said to be quantized."""
    model, folder = small_model(), tmp_path_factory.mktemp("int8")
    source, path = folder / "model.onnx", folder / "int8.onnx"
    export_model(tiny_config(), model, METADATA, source, "onnx", check=False)
    layers = quantize(source, path, model, [batch(1, 32, 64, seed) for seed in range(8)])
    return model, source, path, layers


def batch(count, height, width, seed=0):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def products(path):
    """Return whether input and weight are int8, for each product of matrices or convolution of a file."""
    graph = onnx.load(path).graph
    quantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    operators = ("Conv", "MatMul", "Gemm")
    return [
        {name in quantized for name in node.input[:2]} for node in graph.node if node.op_type in operators
    ]


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
    exact, int8 = (open_exported(file) for file in (source, path))
    found = differences(exact, int8, [batch(2, 96, 32, seed=9), batch(1, 64, 64, seed=10)])
    assert set(found) == {"class_logits", "mask_logits"}
    for difference in found.values():
        assert difference.correlation > 0.99
        assert 0 < difference.largest < 0.5


def test_differences_are_zero_for_one_file(small):
    exact = open_exported(small[1])
    for difference in differences(exact, exact, [batch(1, 32, 32)]).values():
        assert difference.largest == 0
        assert difference.correlation == pytest.approx(1)


def test_the_file_is_smaller_and_keeps_its_metadata(small):
    _, source, path, _ = small
    assert path.stat().st_size < source.stat().st_size
    properties = [{entry.key: entry.value for entry in onnx.load(file).metadata_props} for file in small[1:3]]
    assert properties[0] == properties[1]
    assert not list(path.parent.glob(".unfinished*"))


@pytest.mark.parametrize(("kind", "suffix"), [("onnx", ".onnx"), ("openvino", ".xml")])
def test_a_model_is_exported_in_int8(small, tmp_path, monkeypatch, kind, suffix):
    model, source, *_ = small
    # The file in float is that of the other tests, because it takes seconds to export
    monkeypatch.setattr(int8, "export_model", lambda *args: shutil.copy(source, args[3]))
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (90, 140, 3), dtype=np.uint8)
        write_image(images / f"{number}.png", pixels)
    path = tmp_path / f"model{suffix}"
    found = export_int8(tiny_config(), model, METADATA, path, kind, calibration_images(images))
    assert min(difference.correlation for difference in found.values()) > 0.99
    assert open_exported(path).metadata == open_exported(source).metadata
    again = differences(open_exported(source), open_exported(path), [batch(2, 96, 32, seed=9)])
    for difference in again.values():
        assert difference.correlation > 0.99
        assert difference.largest > 0
    assert {file.suffix for file in tmp_path.iterdir()} <= {suffix, ".bin", ""}
    assert report(found).startswith("int8 changes class_logits by at most ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--format onnx --int8", "--int8 and --calibrate DIR belong together"),
        ("--format onnx --calibrate images", "--int8 and --calibrate DIR belong together"),
        ("--format torch --int8 --calibrate images", "--int8 is for --format onnx and openvino"),
        ("--format onnx --int8 --calibrate images --half", "--int8 goes with neither --half nor --no-check"),
        ("--format onnx --int8 --calibrate images --no-check", "--int8 goes with neither --half nor"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit):
        export.parse_arguments(["model.pth", *flags.split()])
    assert message in capsys.readouterr().err


def test_the_command_names_a_folder_without_images(tmp_path, capsys):
    checkpoint = save_tiny_checkpoint(tmp_path / "model.pth")
    arguments = [str(checkpoint), "--format", "onnx", "--int8", "--calibrate", str(tmp_path)]
    assert export.main(arguments) == 1
    assert f"--calibrate {tmp_path}: no image in it" in capsys.readouterr().err
    assert not (tmp_path / "model.onnx").exists()


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
