"""preprocessor_config.json and our keys: one normalization, and one size where both sides have the rule."""

import numpy as np
import pytest

from mask2former.config import get_cfg, load_config, with_values
from mask2former.weights.hub.processor import fixed_side, hub_processor, input_values

SQUEEZED = {  # as in the folders of Meta on the hub
    "_max_size": 1333,
    "feature_extractor_type": "MaskFormerFeatureExtractor",
    "size": {"height": 384, "width": 512},
    "image_mean": [0.48500001430511475, 0.4560000002384186, 0.4059999883174896],
    "image_std": [0.2290000021457672, 0.2239999920129776, 0.22499999403953552],
    "size_divisor": 32,
}
KIND = "Mask2FormerImageProcessor"
COCO = load_config("coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml")


@pytest.mark.parametrize(
    "processor",
    [
        {},
        {"image_mean": [0.5, 0.25, 0.1], "image_std": [0.2, 0.3, 0.4]},
        {"do_rescale": False, "image_mean": [120, 110, 100], "image_std": [60, 50, 40]},
        {"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]},
        {"do_normalize": False},
    ],
)
def test_pixels_are_normalized_as_by_transformers(processor):
    module = pytest.importorskip("transformers.models.mask2former.image_processing_pil_mask2former")
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    theirs = module.Mask2FormerImageProcessorPil(**processor, do_resize=False)(image, return_tensors="np")
    values = input_values(processor)
    normalized = (image - np.array(values["MODEL.PIXEL_MEAN"])) / np.array(values["MODEL.PIXEL_STD"])
    np.testing.assert_allclose(theirs["pixel_values"][0], normalized.transpose(2, 0, 1), atol=1e-4)


def test_a_size_is_a_shortest_side_or_fixed():
    assert input_values({})["INPUT.MIN_SIZE_TEST"] == 800
    sized = input_values({"size": {"shortest_edge": 512, "longest_edge": 2048}})
    assert (sized["INPUT.MIN_SIZE_TEST"], sized["INPUT.MAX_SIZE_TEST"]) == (512, 2048)
    old = input_values({"size": 640, "max_size": 2560})
    assert (old["INPUT.MIN_SIZE_TEST"], old["INPUT.MAX_SIZE_TEST"]) == (640, 2560)
    assert "INPUT.MIN_SIZE_TEST" not in input_values(SQUEEZED)
    assert fixed_side(SQUEEZED) == 384
    assert fixed_side({}) is None


def test_a_file_of_the_hub_comes_back_unchanged_unless_a_value_is_another():
    cfg = with_values(get_cfg(), input_values(SQUEEZED), "test")
    assert cfg.MODEL.PIXEL_MEAN == COCO.MODEL.PIXEL_MEAN
    assert hub_processor(cfg, KIND, SQUEEZED) == SQUEEZED
    changed = hub_processor(
        with_values(cfg, {"MODEL.PIXEL_MEAN": [51.0, 102.0, 0.0]}, "test"), KIND, SQUEEZED
    )
    assert changed["image_mean"] == [0.2, 0.4, 0]
    assert changed["feature_extractor_type"] == SQUEEZED["feature_extractor_type"]


def test_the_file_of_a_config():
    processor = hub_processor(COCO, KIND, {})
    assert processor["image_mean"] == [0.485, 0.456, 0.406]
    assert processor["image_processor_type"] == KIND
    assert processor["size"] == {"shortest_edge": 800, "longest_edge": 1333}
    assert (processor["num_labels"], processor["ignore_index"]) == (133, 255)
    assert input_values(processor)["MODEL.PIXEL_STD"] == COCO.MODEL.PIXEL_STD


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ({"image_mean": "gray"}, "image_mean is 'gray'"),
        ({"image_std": [1, None, 1]}, "image_std is"),
        ({"image_mean": [10**400] * 3}, "image_mean is"),
        ({"rescale_factor": 0}, "rescale_factor 0"),
        ({"size": "large"}, "size is 'large'"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_the_field(processor, message):
    with pytest.raises(ValueError, match=message):
        input_values(processor)
