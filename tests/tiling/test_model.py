"""Prediction in tiles from end to end, with a tiny model: Predictor, commands, and a slow blend."""

import numpy as np
import pytest
import torch
from tiny_checkpoint import save_tiny_checkpoint

from mask2former import Predictor
from mask2former.config import with_values
from mask2former.engine.evaluate import compact_predict
from mask2former.modeling.postprocessing.semantic import semantic_scores
from mask2former.tiling.grid import make_grid


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model") / "model.pth")


def noise(height, width, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)[:height, :width]


def test_one_tile_that_covers_the_image_gives_the_plain_result(checkpoint):
    image = noise(90, 120)
    plain, tiled = Predictor(checkpoint), Predictor(checkpoint, tile=120)
    assert plain(image) == tiled(image)
    assert plain(image) == tiled([image, noise(40, 40)])[0]


def test_results_of_several_tiles_are_valid(checkpoint):
    predictor = Predictor(checkpoint, tile=64, tile_overlap=0.5, score_threshold=0)
    image = noise(100, 130)
    result = predictor(image)
    assert result.tasks == ["panoptic", "instance", "semantic"]
    ids, segments = result.panoptic
    assert ids.shape == result.semantic.shape == (100, 130)
    assert set(np.unique(ids)) - {0} == {segment["id"] for segment in segments}
    assert len(segments) > 1
    for segment in segments:
        assert segment["isthing"] == (segment["category_id"] in (0, 1))
    stuff = [segment["category_id"] for segment in segments if not segment["isthing"]]
    assert len(stuff) == len(set(stuff))
    assert result.semantic.min() >= 0 and result.semantic.max() < 4
    scores = result.instances.scores
    assert len(scores) and (scores.diff() <= 0).all()
    boxes = result.instances.pred_masks.boxes()
    assert torch.equal(boxes, result.instances.pred_boxes)


def test_semantic_labels_are_those_of_the_weighted_mean_score(checkpoint):
    predictor = Predictor(checkpoint, tile=64)
    image = noise(70, 150, seed=1)
    grid, tiled = make_grid((70, 150), 64, 0.25), predictor.tiled
    total = torch.zeros(4, 70, 150)
    assert predictor.cfg.INPUT.FORMAT == "RGB"
    for row in range(len(grid.rows.starts)):
        for column in range(len(grid.columns.starts)):
            rows, columns = place = grid.tile(row, column)
            inputs = tiled.mapper.inputs(image[rows.start : rows.stop, columns.start : columns.stop])
            (prediction,) = predictor.model.predict_images([inputs])
            scores = semantic_scores(prediction, resize_first=True, memory_budget=2**20)
            window = grid.rows.weights(row)[:, None] * grid.columns.weights(column)
            place.of(total).add_(window * scores)
    labels = torch.from_numpy(predictor(image).semantic).long()
    best = total.max(0).values
    chosen = total.gather(0, labels[None])[0]
    assert (best - chosen).max() < 1e-4


def test_evaluation_takes_tiles_from_the_config(checkpoint):
    predictor = Predictor(checkpoint, tile=64)
    predict = compact_predict(predictor.cfg, predictor.model)
    image = noise(70, 150)
    inputs = predictor.mapper.inputs(image)
    assert inputs["image"].shape == (3, 70, 150)
    (output,) = predict([inputs])
    result = predictor(image)
    assert np.array_equal(output["label_map"].numpy(), result.semantic)
    assert np.array_equal(output["panoptic_seg"][0].numpy(), result.panoptic.ids)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile": 16}, r"TEST.TILE.SIZE \(tile\) is 16 pixels; it must be at least 32"),
        ({"tile": -1}, "TEST.TILE.SIZE is -1; it must be from 0 to"),
        ({"tile": 64, "tile_overlap": 0.95}, "TEST.TILE.OVERLAP is 0.95; it must be from 0 to 0.9"),
        ({"tile": 64, "tile_overlap": -0.1}, "TEST.TILE.OVERLAP is -0.1; it must be from 0 to 0.9"),
        ({"tile": "large"}, "TEST.TILE.SIZE"),
    ],
)
def test_wrong_values_are_errors_that_name_the_key(checkpoint, arguments, message):
    with pytest.raises(ValueError, match=message):
        Predictor(checkpoint, **arguments)


def test_tiles_and_test_time_augmentation_exclude_each_other(checkpoint):
    off = {f"MODEL.MASK_FORMER.TEST.{task}_ON": False for task in ("INSTANCE", "PANOPTIC")}
    on = {"MODEL.WEIGHTS": str(checkpoint), "TEST.AUG.ENABLED": True}
    cfg = with_values(Predictor(checkpoint).cfg, {**off, **on}, "test")
    with pytest.raises(ValueError, match=r"TEST\.AUG\.ENABLED exclude each other"):
        Predictor(cfg, tile=64)
