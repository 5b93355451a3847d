"""The JSON text of exported files."""

import json

import numpy as np
import pytest
from tiny_checkpoint import METADATA, NAMES, tiny_config

from mask2former.export.metadata import build_metadata, parse_metadata
from mask2former.weights.contents import WeightsError


def text(**changes):
    return json.dumps(json.loads(build_metadata(tiny_config(), METADATA).to_json()) | changes)


def test_it_holds_what_other_programs_need():
    values = json.loads(build_metadata(tiny_config(), METADATA, half=True).to_json())
    assert values.pop("config") == tiny_config().dump()
    assert values == {
        "version": 1,
        "metadata": METADATA,
        "image_format": "RGB",
        "image_mean": [123.675, 116.28, 103.53],
        "image_std": [58.395, 57.12, 57.375],
        "size_divisibility": 32,
        "min_size": 64,
        "max_size": 128,
        "class_names": NAMES,
        "thing_ids": [0, 1],
        "object_mask_threshold": 0.8,
        "overlap_threshold": 0.0,
        "tasks": ["semantic", "instance", "panoptic"],
        "half": True,
    }


def test_reading_returns_what_was_written():
    written = build_metadata(tiny_config(), METADATA)
    assert parse_metadata(written.to_json(), "a.onnx") == written


def test_classes_without_names_get_generic_ones():
    assert build_metadata(tiny_config(), {}).class_names == ["class 0", "class 1", "class 2", "class 3"]


def test_colors_may_be_arrays():
    metadata = {"stuff_classes": NAMES, "stuff_colors": [np.array([1, 2, 3])] * 4}
    written = build_metadata(tiny_config(), metadata).to_json()
    assert parse_metadata(written, "a.onnx").metadata["stuff_colors"] == [[1, 2, 3]] * 4


def test_values_of_later_versions_are_ignored():
    assert parse_metadata(text(new="value"), "a.onnx").class_names == NAMES


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "a.onnx: holds no metadata 'mask2former'; `mask2former export` writes files that do"),
        ("{", "a.onnx: its metadata 'mask2former' is no JSON"),
        ("[1]", "a.onnx: its metadata 'mask2former' is [1], not a JSON object"),
        (text(version=2), "has version 2, not 1; export it again"),
        (text(config=None), "has config: None, not of type str"),
        (text(metadata=[]), "has metadata: [], not of type dict[str, typing.Any]"),
        (text(thing_ids=["a"]), "has thing_ids: ['a'], not of type list[int]"),
        (text(half=1), "has half: 1, not of type bool"),
        (text(size_divisibility=True), "has size_divisibility: True, not of type int"),
    ],
    ids=["none", "no JSON", "a list", "version", "config", "metadata", "things", "half", "divisibility"],
)
def test_wrong_metadata_is_one_line(wrong, message):
    with pytest.raises(WeightsError) as caught:
        parse_metadata(wrong, "a.onnx")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
