"""The options of TEST.*, outputs that are not measured, and the three metrics of panoptic models."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils
from score_command import score
from tiny_runs import tiny_config
from torch import nn

from mask2former.data import DatasetCatalog, MetadataCatalog, register_coco_instances, register_coco_panoptic
from mask2former.engine.build import build_model
from mask2former.engine.evaluate import EVALUATORS, build_evaluator, evaluate
from mask2former.engine.setup.dataset_facts import with_dataset_facts
from mask2former.modeling.postprocessing.inference import build_inference_options, post_process
from mask2former.modeling.predictions import ImagePrediction, Sizes
from mask2former.utils.label_maps import read_segment_ids, write_segment_ids


def test_switches_change_metrics_and_files(tiny_shapes, tmp_path):
    cfg = tiny_config(TEST__BOUNDARY=True, TEST__SAVE_PREDICTIONS=True, TEST__RECOUNT_AREAS=True)
    results = evaluate(cfg, build_model(cfg), tmp_path)
    assert {"AP", "boundary_AP"} <= results["segm"].keys()
    assert {"PQ", "boundary_PQ"} <= results["panoptic_seg"].keys()
    saved, truth = tmp_path / "submission", tiny_shapes / "shapes"
    annotations = truth / "annotations"
    arguments = ["--gt-json", annotations / "panoptic_val.json", "--gt-dir", truth / "panoptic_val"]
    arguments += ["--pred-json", saved / "panoptic.json", "--pred-dir", saved / "panoptic", "--recount-areas"]
    found = score("panoptic", *arguments, "--boundary")
    assert found == pytest.approx(results["panoptic_seg"], nan_ok=True)
    arguments = ["--gt", annotations / "instances_val.json", "--results", saved / "instance.json"]
    found = score("instances", *arguments, "--boundary")
    assert found == pytest.approx(results["segm"], nan_ok=True)

    labels = tmp_path / "labels"  # the truth's, made of its segments
    labels.mkdir()
    for file in (truth / "panoptic_val").iterdir():  # contiguous ids begin at 0, category ids at 1
        ids = read_segment_ids(file)
        Image.fromarray((ids // 1000 - 1).astype(np.uint8)).save(labels / file.name)
    arguments = ["--gt-dir", labels, "--pred-dir", saved / "semantic", "--num-classes", 5]
    assert score("semantic", *arguments)["mIoU"] == pytest.approx(results["sem_seg"]["mIoU"])


def test_without_switches_there_is_no_submission(tiny_shapes, tmp_path):
    cfg = tiny_config()
    results = evaluate(cfg, build_model(cfg), tmp_path)
    assert not [name for metrics in results.values() for name in metrics if name.startswith("boundary")]
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"coco_instances_results.json", "panoptic", "sem_seg_predictions.json"}


def test_a_switch_without_effect_is_warned_of(tiny_shapes, tmp_path, caplog):
    cfg = tiny_config(
        MODEL__MASK_FORMER__TEST__INSTANCE_ON=False,
        MODEL__MASK_FORMER__TEST__PANOPTIC_ON=False,
        TEST__BOUNDARY=True,
        TEST__SAVE_PREDICTIONS=True,
    )
    build_evaluator(cfg, "shapes_panoptic_val", tmp_path)
    assert caplog.messages == ["TEST.BOUNDARY changes nothing that is measured on 'shapes_panoptic_val'"]


def test_a_users_coco_file_measures_ap_of_its_classes_with_a_panoptic_model(tiny_shapes, tmp_path, caplog):
    """The published configs of ADE20K's instances leave the other tasks on."""
    root = tiny_shapes / "shapes"
    register_coco_instances("instances_alone", {}, root / "annotations/instances_val.json", root / "val")
    cfg = tiny_config(DATASETS__TRAIN=(), DATASETS__TEST=("instances_alone",))
    with caplog.at_level(logging.INFO, logger="mask2former.engine.evaluate"):
        [(task, metrics)] = evaluate(cfg, build_model(cfg), tmp_path).items()
    assert task == "segm"
    assert {"AP-circle", "AP-square", "AP-triangle"} == {name for name in metrics if "AP-" in name}
    line = "semantic, panoptic output is not measured: 'instances_alone' has no ground truth for it"
    assert line in caplog.messages


def test_missing_ground_truth_is_named_with_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    message = r"annotations/instances_val\.json does not exist.*python datasets/prepare_shapes\.py --root"
    with pytest.raises(ValueError, match=message):
        build_evaluator(tiny_config(), "shapes_panoptic_val", tmp_path)


@pytest.mark.parametrize(
    "name", [name for name in DatasetCatalog.list() if not name.startswith("mapillary_vistas_v2")]
)
def test_every_dataset_has_metrics(name):
    assert MetadataCatalog.get(name).evaluator_type in EVALUATORS


K, SIZE = 133, (16, 20)
THING, STUFF = 7, 10  # contiguous
CATEGORIES = [{"id": 3 * c + 1, "name": f"class {c}", "isthing": int(c % 5 != 0)} for c in range(K)]


def draw_two_images(root):
    """Draw two equal images: an object on stuff, with 133 classes whose thing ids are scattered."""
    ids = np.full(SIZE, 2)
    ids[4:12, 5:15] = 1
    rle = mask_utils.encode(np.asfortranarray(ids == 1, np.uint8))
    images, segments, objects = [], [], []
    for number in (1, 2):
        (root / "pngs").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1]).save(root / f"{number}.png")
        write_segment_ids(root / f"pngs/{number}.png", ids)
        images.append({"id": number, "file_name": f"{number}.png", "height": SIZE[0], "width": SIZE[1]})
        infos = [
            {"id": id, "category_id": 3 * c + 1, "area": int((ids == id).sum()), "iscrowd": 0}
            for id, c in ((1, THING), (2, STUFF))
        ]
        segments.append({"image_id": number, "file_name": f"{number}.png", "segments_info": infos})
        code = {"size": rle["size"], "counts": rle["counts"].decode()}
        objects.append({**infos[0], "id": number, "image_id": number, "segmentation": code})
    things = [category for category in CATEGORIES if category["isthing"]]
    panoptic = {"images": images, "annotations": segments, "categories": CATEGORIES}
    instances = {"images": images, "annotations": objects, "categories": things}
    (root / "panoptic.json").write_text(json.dumps(panoptic))
    (root / "instances.json").write_text(json.dumps(instances))
    return torch.from_numpy(ids == 1)


class Sure(nn.Module):
    """A model that is right about the first image, and prefers stuff to the thing in the second."""

    def __init__(self, cfg, thing_mask):
        super().__init__()
        self.options = build_inference_options(cfg)
        logits = torch.where(thing_mask, 9.0, -9.0)
        self.masks = torch.stack([logits, -logits, *[torch.full(SIZE, -9.0)] * 4])  # 6 queries

    def forward(self, inputs):
        (record,) = inputs
        classes = torch.randn(6, K + 1, generator=torch.Generator().manual_seed(0)) / 10
        classes[2:, K] = 9.0
        if record["image_id"] == 1:
            classes[0, THING] = classes[1, STUFF] = 12.0
        else:
            classes[:, [c for c in range(K) if not CATEGORIES[c]["isthing"]]] += 5.0
            classes[0, THING], classes[2:, K] = 3.0, 0.0
        prediction = ImagePrediction(classes.softmax(-1), self.masks, Sizes(SIZE, SIZE, SIZE))
        return [post_process(prediction, self.options)]


def test_the_three_metrics_of_a_panoptic_model(tmp_path):
    """AP counts the things among the best 100 pairs of query and class, stuff classes included.

    27 stuff classes of 6 queries leave no place for the object in the second image.
    """
    thing_mask = draw_two_images(tmp_path)
    files = tmp_path, tmp_path / "pngs", tmp_path / "panoptic.json", tmp_path / "instances.json"
    register_coco_panoptic("scattered_things", {}, *files)
    cfg = with_dataset_facts(tiny_config(DATASETS__TRAIN=(), DATASETS__TEST=("scattered_things",)))
    results = evaluate(cfg, Sure(cfg, thing_mask), tmp_path / "out")
    assert list(results) == ["sem_seg", "segm", "panoptic_seg"]
    assert results["segm"]["AP"] == pytest.approx(100 * 51 / 101)  # found in one of two images
    assert results["panoptic_seg"][f"PQ-class {THING}"] == pytest.approx(100 / 1.5)
    assert results["sem_seg"][f"IoU-class {THING}"] == pytest.approx(50)

    saved = json.loads((tmp_path / "out/coco_instances_results.json").read_text())
    things = {category["id"] for category in CATEGORIES if category["isthing"]}
    assert {item["image_id"] for item in saved} == {1} and 0 < len(saved) < 100
    assert {item["category_id"] for item in saved} <= things
    assert max(saved, key=lambda item: item["score"])["category_id"] == 3 * THING + 1
