"""The predictor compared with the model itself, on images of several kinds, from checkpoints on disk."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from tiny_checkpoint import METADATA, NAMES, TINY, save_tiny_checkpoint, tiny_config
from web_server import web

from mask2former.config import load_config
from mask2former.drawing.colors import class_colors
from mask2former.engine.build import build_model
from mask2former.engine.setup.class_names import class_names_and_colors
from mask2former.engine.setup.trained_model import UntrainedModelError, stored_config
from mask2former.predictor import Predictor
from mask2former.utils.image_io import ImageError
from mask2former.utils.label_maps import read_label_map, read_segment_ids
from mask2former.weights import model_zoo
from mask2former.weights.load import WeightsError, read_checkpoint
from mask2former.weights.model_zoo import find_model

__all__ = ["web"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("run") / "model_final.pth")


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return Predictor(checkpoint)


@pytest.fixture
def stored(checkpoint):
    """Return the config of the checkpoint."""
    return stored_config(read_checkpoint(checkpoint))


def random_image(height=90, width=140, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_checkpoint_suffices_for_the_results_of_its_model_at_the_original_size(checkpoint):
    predictor = Predictor(checkpoint, duplicate_iou=1)
    assert predictor.class_names == NAMES
    assert predictor.colors == [tuple(color) for color in METADATA["stuff_colors"]]
    assert Path(predictor.cfg.MODEL.WEIGHTS) == checkpoint
    image = random_image()
    result = predictor(image)
    resized = np.asarray(Image.fromarray(image).resize((100, 64), Image.Resampling.BILINEAR))
    inputs = {"image": torch.from_numpy(resized.copy()).permute(2, 0, 1), "height": 90, "width": 140}
    (expected,) = predictor.model([inputs])
    np.testing.assert_array_equal(result.semantic, expected["sem_seg"].argmax(0))
    np.testing.assert_array_equal(result.panoptic.ids, expected["panoptic_seg"][0])
    assert result.panoptic.segments == expected["panoptic_seg"][1]
    confident = expected["instances"].scores >= 0.5
    assert 0 < confident.sum() < len(confident)
    torch.testing.assert_close(result.instances.scores, expected["instances"].scores[confident])
    torch.testing.assert_close(
        result.instances.pred_masks.dense(), expected["instances"].pred_masks[confident]
    )


def test_images_are_limited_in_size_and_reordered_for_bgr_models(predictor, stored):
    image = random_image(20, 200)
    rgb = predictor.mapper.inputs(image)["image"]
    assert tuple(rgb.shape) == (3, 13, 128)
    stored.INPUT.FORMAT = "BGR"
    torch.testing.assert_close(Predictor(stored).mapper.inputs(image)["image"], rgb.flip(0))


def test_all_kinds_of_sources_give_the_same_result(predictor, tmp_path):
    image = random_image()
    Image.fromarray(image).save(tmp_path / "a.png")
    expected = predictor(image).semantic
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image)):
        np.testing.assert_array_equal(predictor(source).semantic, expected)
    bgr = image[..., ::-1].copy()
    tensor = torch.from_numpy(bgr).movedim(2, 0)
    for result in (predictor(bgr, channels="BGR"), *predictor([bgr, tensor], channels="BGR")):
        np.testing.assert_array_equal(result.semantic, expected)
        np.testing.assert_array_equal(result.image, image)
    assert predictor(image[..., 0]).semantic.shape == (90, 140)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_results_of_a_list_are_those_of_single_images(predictor, batch_size):
    sizes = ((90, 140), (64, 64), (88, 140), (128, 128))
    images = [random_image(*size, seed) for seed, size in enumerate(sizes, start=1)]
    results = predictor(images, batch_size=batch_size)
    for image, result in zip(images, results, strict=True):
        alone = predictor(image)
        np.testing.assert_array_equal(result.image, image)
        assert np.mean(result.semantic != alone.semantic) < 1e-3
        assert result.panoptic.segments == alone.panoptic.segments
        torch.testing.assert_close(result.instances.scores, alone.instances.scores, atol=1e-4, rtol=1e-4)
    assert predictor([]) == []


def test_wrong_sources_and_batch_sizes_are_errors(predictor, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ImageError, match=r"text\.jpg"):
        predictor([random_image(), tmp_path / "text.jpg"])
    with pytest.raises(ValueError, match="batch_size is 0"):
        predictor([random_image()], batch_size=0)
    with pytest.raises(ValueError, match="batch_size is 'BGR'; it must be a number"):
        predictor([random_image()], "BGR")


def test_instances_below_the_score_threshold_are_left_out(checkpoint):
    candidates = Predictor(checkpoint, score_threshold=0.0, duplicate_iou=1)(random_image()).instances
    assert len(candidates) == 10 * 2  # queries times thing classes
    strict = Predictor(checkpoint, score_threshold=0.99)(random_image())
    assert len(strict.instances) == 0
    assert strict.why_empty("instance") == (
        "none of 20 instances has a score of 0.99 or more (score threshold); "
        f"the best has {candidates.scores.max():.2f}"
    )
    assert strict.why_empty("panoptic") is None
    np.testing.assert_array_equal(strict.draw("instance"), strict.image)


def test_of_overlapping_instances_of_any_class_the_best_is_kept(checkpoint):
    every, some = (
        Predictor(checkpoint, score_threshold=0.0, duplicate_iou=iou)(random_image()).instances
        for iou in (1, 0.999)
    )
    masks = every.pred_masks.dense().flatten(1)
    ious = (masks[:, None] & masks).sum(2) / (masks[:, None] | masks).sum(2)
    kept: list[int] = []
    for i in range(len(every)):
        if all(ious[i, k] <= 0.999 for k in kept):
            kept.append(i)
    assert 1 < len(kept) <= len(every) / 2  # a query's two thing classes have one mask
    assert some == every[kept]


@pytest.mark.parametrize("name", ["score_threshold", "duplicate_iou"])
@pytest.mark.parametrize("value", [-0.1, 1.5, "0.5", None])
def test_thresholds_are_from_0_to_1(checkpoint, name, value):
    with pytest.raises(ValueError, match=f"{name} is {value!r}; it must be from 0 to 1"):
        Predictor(checkpoint, **{name: value})


@pytest.mark.parametrize(
    ("key", "threshold", "reason"),
    [
        ("OBJECT_MASK_THRESHOLD", 1.0, "above 1 (MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD)"),
        ("OVERLAP_THRESHOLD", 1.0, "keeps 1 of its mask"),
    ],
)
def test_an_empty_panoptic_result_says_why(stored, key, threshold, reason):
    stored.MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD = 0.0
    stored.MODEL.MASK_FORMER.TEST[key] = threshold
    result = Predictor(stored)(random_image())
    assert result.panoptic.segments == []
    assert not result.panoptic.ids.any()
    assert reason in result.why_empty()


def test_results_are_saved_in_all_formats(predictor, tmp_path):
    result = predictor(random_image())
    result.save(tmp_path / "new/overlay.png")
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "new/overlay.png")), result.draw("panoptic")
    )
    result.save(tmp_path / "labels.png", "semantic")
    np.testing.assert_array_equal(read_label_map(tmp_path / "labels.png"), result.semantic)
    result.save(tmp_path / "panoptic.png", "panoptic")
    np.testing.assert_array_equal(read_segment_ids(tmp_path / "panoptic.png"), result.panoptic.ids)
    segments = json.loads((tmp_path / "panoptic.json").read_text())
    assert segments["segments_info"] == result.panoptic.segments
    assert {"id": 0, "name": "circle", "isthing": True} in segments["categories"]
    result.save(tmp_path / "instances.json", "instances")
    saved = json.loads((tmp_path / "instances.json").read_text())
    assert len(saved) == len(result.instances) == result.count("instance") > 0
    for entry, mask, box in zip(saved, result.instances.pred_masks, result.instances.pred_boxes, strict=True):
        np.testing.assert_array_equal(rle.decode(entry["segmentation"]).astype(bool), mask)
        left, top, width, height = entry["bbox"]
        assert [left, top, left + width, top + height] == box.tolist()
        assert entry["category_name"] == NAMES[entry["category_id"]]
    with pytest.raises(ValueError, match="cannot save 'masks'"):
        result.save(tmp_path / "x.png", "masks")
    for what in ("semantic", "panoptic"):
        with pytest.raises(ValueError, match=r"new/labels\.jpg: ids are saved as \.png"):
            result.save(tmp_path / "new/labels.jpg", what)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["overlay.png"]


PANOPTIC_R50 = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("my.yaml", 'my.yaml: is a config, not a checkpoint; type Predictor(load_config("my.yaml", ['),
        (PANOPTIC_R50, 'or Predictor.from_zoo("coco-panoptic-r50") for its published weights'),
        ("", "'': is no path; type Predictor(\"model_final.pth\") or Predictor.from_zoo(NAME)"),
        ("coco-panoptic-r50", 'is a published model; type Predictor.from_zoo("coco-panoptic-r50")'),
        (
            "facebook/mask2former-swin-large-coco-panoptic",
            'is a published model; type Predictor.from_zoo("coco-panoptic-swin-l")',
        ),
        (
            "https://huggingface.co/facebook/mask2former-swin-tiny-ade-semantic",
            'is a published model; type Predictor.from_zoo("ade20k-semantic-swin-t")',
        ),
        (
            "coco-panoptic-swinl",
            'no such file, and no published model; do you mean Predictor.from_zoo("coco-panoptic-swin-l")?',
        ),
        ("facebook/detr", "no such file, and no published model (`mask2former zoo` lists all)"),
        (None, "Predictor takes a checkpoint's path or URL, or a config, not a value of type NoneType"),
    ],
)
def test_a_name_that_is_no_checkpoint_is_an_error_with_the_right_call(source, message):
    with pytest.raises((WeightsError, TypeError), match=re.escape(message)):
        Predictor(source)


def test_from_pretrained_names_the_right_call():
    with pytest.raises(TypeError, match=r'type Predictor.from_zoo\("coco-panoptic-swin-l"\), or Predictor'):
        Predictor.from_pretrained("facebook/mask2former-swin-large-coco-panoptic")


def test_published_checkpoints_need_a_config(checkpoint, predictor, tmp_path):
    bare = tmp_path / "bare.pth"
    torch.save({"model": torch.load(checkpoint, weights_only=True)["model"]}, bare)
    with pytest.raises(WeightsError, match=r"bare\.pth.*no config.*load_config"):
        Predictor(bare)
    cfg = tiny_config()
    cfg.MODEL.WEIGHTS = str(bare)
    with_config = Predictor(cfg)
    assert with_config.class_names == ["class 0", "class 1", "class 2", "class 3"]
    image = random_image()
    np.testing.assert_array_equal(with_config(image).semantic, predictor(image).semantic)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("", "MODEL.WEIGHTS is empty"),
        ("detectron2://ImageNetPretrained/torchvision/R-50.pkl", "a backbone trained on ImageNet"),
        ("somewhere/swin_tiny_patch4_window7_224.pkl", "a backbone trained on ImageNet"),
    ],
)
def test_untrained_models_are_an_error_before_any_download(weights, message):
    cfg = tiny_config()
    cfg.MODEL.WEIGHTS = weights
    with pytest.raises(UntrainedModelError, match=message):
        Predictor(cfg)


def test_a_file_without_a_trained_head_is_an_error(checkpoint, tmp_path):
    weights = torch.load(checkpoint, weights_only=True)["model"]
    backbone = {name: tensor for name, tensor in weights.items() if name.startswith("backbone.")}
    torch.save({"model": backbone}, tmp_path / "mine.pth")
    cfg = tiny_config()
    cfg.MODEL.WEIGHTS, cfg.MODEL.WEIGHTS_STRICT = str(tmp_path / "mine.pth"), False
    with pytest.raises(UntrainedModelError, match=r"head is not trained: .*mine\.pth"):
        Predictor(cfg)
    cfg = tiny_config()
    cfg.MODEL.WEIGHTS, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = str(checkpoint), 9
    with pytest.raises(UntrainedModelError, match="4 -> 9 classes"):
        Predictor(cfg)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 3000, 3), (3000, 1), (2, 2, 4)])
def test_images_of_extreme_shape_are_segmented(predictor, tmp_path, shape):
    result = predictor(random_image(*shape[:2])[..., 0] if len(shape) == 2 else np.zeros(shape, np.uint8))
    assert result.semantic.shape == result.panoptic.ids.shape == shape[:2]
    assert result.instances.pred_masks.shape[1:] == shape[:2]
    for task in result.tasks:
        assert result.draw(task).shape == (*shape[:2], 3)


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_a_model_of_one_task_gives_only_that_result(stored, predictor, task):
    for other in ("semantic", "instance", "panoptic"):
        stored.MODEL.MASK_FORMER.TEST[f"{other.upper()}_ON"] = other == task
    result, of_all_tasks = Predictor(stored)(random_image()), predictor(random_image())
    assert result.tasks == [task]
    assert result.draw().shape == (90, 140, 3)
    assert result.draw(scale=3).shape == (270, 420, 3)
    absent = "instance" if task == "panoptic" else "panoptic"
    with pytest.raises(ValueError, match=f"there is no {absent} result; there is: {task}"):
        result.draw(absent)
    if task == "instance":
        assert set(result.instances.pred_classes.tolist()) <= {0, 1}
        torch.testing.assert_close(result.instances.scores, of_all_tasks.instances.scores)
    if task == "panoptic":
        assert result.panoptic.segments == of_all_tasks.panoptic.segments


def test_class_names_are_generic_if_the_metadata_has_another_number():
    metadata = {"stuff_classes": None, "thing_classes": ["a"], "thing_colors": [[1, 2, 3]] * 2}
    assert class_names_and_colors(metadata, 1) == (["a"], class_colors(1))
    names, colors = class_names_and_colors({"thing_classes": ["a"], "stuff_classes": ["a", "b"]}, 1)
    assert (names, colors) == (["a"], class_colors(1))
    names, colors = class_names_and_colors({}, 2)
    assert (names, len(colors)) == (["class 0", "class 1"], 2)


def test_bf16_gives_a_result_and_an_unknown_precision_an_error(checkpoint):
    result = Predictor(checkpoint, precision="bf16")(random_image())
    assert result.panoptic is not None and result.panoptic.ids.shape == (90, 140)
    with pytest.raises(ValueError, match="precision is 'fp8'; known are fp32, bf16"):
        Predictor(checkpoint, precision="fp8")


def test_a_published_model_is_downloaded_once_by_its_name(web, monkeypatch, caplog, tmp_path):
    folder, root, requests = web
    opts = {**TINY, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 133, "MODEL.MASK_FORMER.THING_IDS": list(range(80))}
    del opts["DATASETS.TRAIN"], opts["DATASETS.TEST"]
    model = find_model("coco-panoptic-r50")
    cfg = load_config(model.config, [part for item in opts.items() for part in item])
    torch.manual_seed(0)
    state = {key: tensor.numpy() for key, tensor in build_model(cfg).state_dict().items()}
    (folder / "coco.pkl").write_bytes(pickle.dumps({"model": state, "__author__": "the authors"}))
    (tmp_path / "tiny.yaml").write_text(cfg.dump())
    model = model._replace(config=str(tmp_path / "tiny.yaml"), weights=f"{root}coco.pkl")
    monkeypatch.setattr("mask2former.engine.setup.trained_model.find_model", {model.name: model}.get)
    monkeypatch.setitem(model_zoo.table(), "root", root)
    first, second = (Predictor.from_zoo(model.name, score_threshold=0.1) for _ in range(2))
    names = first.class_names  # from the metadata of the dataset
    assert (len(names), names[0], names[80], first.score_threshold) == (133, "person", "banner", 0.1)
    image = random_image()
    np.testing.assert_array_equal(first(image).semantic, second(image).semantic)
    assert requests == {"/coco.pkl": 1}
    assert caplog.text.count("CC BY-NC 4.0") == 1


def test_a_published_model_that_cannot_be_downloaded_is_one_line(web, monkeypatch, tmp_path):
    _, root, _ = web
    monkeypatch.setitem(model_zoo.table(), "root", root)
    with pytest.raises(WeightsError) as error:
        Predictor.from_zoo("coco-panoptic-r50")
    file = "coco/panoptic/maskformer2_R50_bs16_50ep/model_final_94dc52.pkl"
    message = str(error.value)
    assert message.startswith(f"coco-panoptic-r50: {root}{file}: cannot be downloaded (")
    assert "404" in message and f"to {tmp_path}/cache/" in message and "\n" not in message
    with pytest.raises(ValueError, match="no published model 'r50'"):
        Predictor.from_zoo("r50")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"stuff_classes": ["a", "b"], "stuff_colors": ["red", "blue"]}, r"stuff_colors\[0\] is 'red'"),
        (
            {"stuff_classes": ["a", "b"], "stuff_colors": [[1, 2, 3], [1, 2, 300]]},
            r"stuff_colors\[1\] is \[1",
        ),
        ({"stuff_classes": ["a", "b"], "stuff_colors": 7}, "stuff_colors is a int"),
        ({"stuff_classes": 2}, "stuff_classes is a int; expected a list of names"),
        ({"stuff_classes": "ab"}, "stuff_classes is a str"),
        ({"thing_classes": ["a", None]}, r"thing_classes\[1\] is None; expected names"),
    ],
)
def test_metadata_of_wrong_types_is_an_error(metadata, message):
    with pytest.raises(ValueError, match=rf"^x\.pth: {message}"):
        class_names_and_colors(metadata, 2, "x.pth")
