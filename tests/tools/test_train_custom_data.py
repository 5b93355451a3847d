"""Training on a custom dataset by flags: the config that follows, training, evaluation and prediction."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import CONFIG, tiny_options
from train_command import run_command

from mask2former import Predictor
from mask2former.config import load_config
from mask2former.data import DatasetCatalog, MetadataCatalog
from mask2former.data.datasets.shapes import write_shapes
from mask2former.engine.metrics_log import read_metrics
from mask2former.engine.setup.begin import begin_run
from mask2former.engine.setup.resolve import resolve_arguments
from mask2former.tools.train import main, parse_arguments
from mask2former.utils.label_maps import read_segment_ids

NAMES = ["circle", "square", "triangle", "stripes", "checks"]
LSJ = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
CROPS = "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml"
MAPPER = "INPUT.DATASET_MAPPER_NAME"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """The synthetic shapes in all three formats; labels are the category ids 1..5."""
    root = write_shapes(tmp_path_factory.mktemp("own"), {"train": 6, "val": 2})
    for split in ("train", "val"):
        folder = root / f"labels_{split}"
        folder.mkdir()
        for path in (root / f"panoptic_{split}").iterdir():
            labels = read_segment_ids(path) // 1000
            Image.fromarray(labels.astype(np.uint8)).save(folder / path.name)
    (root / "classes.txt").write_text("\n".join(f"{i} {name}" for i, name in enumerate(NAMES, 1)))
    return root


ANNOTATIONS = {
    "instance": "annotations/instances_{}.json",
    "panoptic": "annotations/panoptic_{}.json",
    "semantic": "labels_{}",
}


def flags(shapes, task, *splits):
    given = []
    for split in splits or ("train", "val"):
        paths = shapes / split, shapes / ANNOTATIONS[task].format(split)
        given += [f"--{split}-images", str(paths[0]), f"--{split}-annotations", str(paths[1])]
    return [*given, *(["--classes", str(shapes / "classes.txt")] if task == "semantic" else [])]


def configured(config, shapes, task, folder, *more, splits=()):
    """Return the resolved config of a command."""
    fixed = ["OUTPUT_DIR", str(folder), "MODEL.DEVICE", "cpu"]
    argv = ["--config-file", config, *flags(shapes, task, *splits), *more, *fixed]
    args = parse_arguments(argv)
    cfg = load_config(args.config_file, args.opts)
    return resolve_arguments(cfg, args, "cpu", begin_run(cfg.OUTPUT_DIR, training=not args.eval_only))


def outputs(cfg):
    test = cfg.MODEL.MASK_FORMER.TEST
    return test.SEMANTIC_ON, test.INSTANCE_ON, test.PANOPTIC_ON


FOLLOWS = [  # task, config, mapper, outputs, classes, things
    ("instance", LSJ, "coco_instance_lsj", (False, True, False), 3, [0, 1, 2]),
    ("instance", CROPS, "mask_former_instance", (False, True, False), 3, [0, 1, 2]),
    ("panoptic", LSJ, "coco_panoptic_lsj", (True, True, True), 5, [0, 1, 2]),
    ("panoptic", CROPS, "mask_former_panoptic", (True, True, True), 5, [0, 1, 2]),
    ("semantic", LSJ, "mask_former_semantic", (True, False, False), 5, []),
    ("semantic", CROPS, "mask_former_semantic", (True, False, False), 5, []),
]


@pytest.mark.parametrize(("task", "config", "mapper", "on", "classes", "things"), FOLLOWS)
def test_the_config_follows_from_the_data(shapes, tmp_path, task, config, mapper, on, classes, things):
    cfg = configured(config, shapes, task, tmp_path)
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("custom_train",), ("custom_val",))
    assert (mapper, on) == (cfg.INPUT.DATASET_MAPPER_NAME, outputs(cfg))
    assert (classes, things) == (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, list(cfg.MODEL.MASK_FORMER.THING_IDS))
    log = (tmp_path / "log.txt").read_text()
    assert f"'custom_train': {task} data, 6 images, {classes} classes" in log
    assert "DATASETS.TRAIN: ('custom_train',), as --train-images says, instead of" in log


def test_for_label_maps_jitter_becomes_crops_of_the_same_sizes(shapes, tmp_path):
    given = configured(LSJ, shapes, "semantic", tmp_path, "INPUT.IMAGE_SIZE", "640").INPUT
    assert (tuple(given.MIN_SIZE_TRAIN), given.MIN_SIZE_TRAIN_SAMPLING) == ((64, 1280), "range")
    assert (given.CROP.ENABLED, given.CROP.TYPE, list(given.CROP.SIZE)) == (True, "absolute", [640, 640])
    assert given.SIZE_DIVISIBILITY == 640
    untouched = configured(CROPS, shapes, "semantic", tmp_path).INPUT
    assert (list(untouched.CROP.SIZE), untouched.SIZE_DIVISIBILITY) == ([512, 512], 512)


def test_typed_values_that_the_data_allows_are_kept(shapes, tmp_path):
    typed = [MAPPER, "mask_former_panoptic", "MODEL.MASK_FORMER.TEST.INSTANCE_ON", "False"]
    cfg = configured(LSJ, shapes, "panoptic", tmp_path, *typed)
    assert (cfg.INPUT.DATASET_MAPPER_NAME, outputs(cfg)) == ("mask_former_panoptic", (True, False, True))
    assert MetadataCatalog.get("custom_val").get("json_file") is None  # AP would need it


CONFLICTS = [
    ("instance", MAPPER, "coco_panoptic_lsj", "coco_panoptic_lsj, but dataset 'custom_train' says"),
    ("instance", "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "True", "but dataset 'custom_train' says False"),
    ("semantic", "MODEL.MASK_FORMER.TEST.INSTANCE_ON", "True", "but dataset 'custom_train' says False"),
    ("semantic", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4", "4, but dataset 'custom_train' says 5"),
    ("panoptic", "DATASETS.TRAIN", "('coco_2017_train',)", "but --train-images says"),
    ("panoptic", "MODEL.MASK_FORMER.THING_IDS", "[3]", r"\[3\], but dataset 'custom_train' says \[0, 1, 2\]"),
]


@pytest.mark.parametrize(("task", "key", "value", "message"), CONFLICTS)
def test_a_typed_value_that_contradicts_the_data(shapes, tmp_path, task, key, value, message):
    with pytest.raises(ValueError, match=rf"{key} was given as .*{message}"):
        configured(LSJ, shapes, task, tmp_path, key, value)


def test_without_validation_data_nothing_is_evaluated(shapes, tmp_path):
    assert configured(LSJ, shapes, "panoptic", tmp_path, splits=("train",)).DATASETS.TEST == ()
    assert "nothing is evaluated" in (tmp_path / "log.txt").read_text()


WRONG_FLAGS = [
    (["--train-images", "a"], "--train-annotations is missing"),
    (["--val-annotations", "a"], "--val-images is missing"),
    (["--val-images", "a", "--val-annotations", "b"], "--val-images needs --train-images"),
    (["--eval-only", "--train-images", "a", "--train-annotations", "b"], "--eval-only needs data to test on"),
    (["--classes", "c.txt"], "--classes belongs to --train-images"),
    (["--train-images", "nowhere", "--train-annotations", "b"], "nowhere does not exist"),
    (["DATASETS.TRAIN", "('custom_train',)"], "give --train-images, --train-annotations"),
]


@pytest.mark.parametrize(("argv", "message"), WRONG_FLAGS)
def test_wrong_flags(tmp_path, capsys, argv, message):
    assert main(["--config-file", str(CONFIG), *tiny_options(OUTPUT_DIR=tmp_path), *argv]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_the_flag_save_predictions_sets_its_key(shapes, tmp_path):
    assert configured(LSJ, shapes, "panoptic", tmp_path, "--save-predictions").TEST.SAVE_PREDICTIONS
    assert not configured(LSJ, shapes, "panoptic", tmp_path).TEST.SAVE_PREDICTIONS


def run(shapes, task, folder, *more, splits=(), **changes):
    argv = ["--config-file", str(CONFIG), *flags(shapes, task, *splits), *more]
    return main([*argv, *tiny_options(**{"SOLVER__MAX_ITER": 2, **changes}, OUTPUT_DIR=folder)])


METRICS = {
    "instance": {"segm/AP"},
    "panoptic": {"segm/AP", "panoptic_seg/PQ", "sem_seg/mIoU"},
    "semantic": {"sem_seg/mIoU"},
}


@pytest.mark.parametrize("task", METRICS)
def test_train_evaluate_and_predict(shapes, tmp_path, task):
    assert run(shapes, task, tmp_path) == 0
    measured = read_metrics(tmp_path / "metrics.json")[-1].keys()
    assert METRICS[task] <= measured
    assert not measured & (set.union(*METRICS.values()) - METRICS[task])
    predictor = Predictor(tmp_path / "model_final.pth")
    assert predictor.class_names == (NAMES[:3] if task == "instance" else NAMES)
    result = predictor(str(shapes / "val/000001.jpg"))
    made = [getattr(result, kind) is not None for kind in ("semantic", "instances", "panoptic")]
    assert made == list({"instance": (0, 1, 0), "panoptic": (1, 1, 1), "semantic": (1, 0, 0)}[task])


def test_resume_and_evaluation_need_the_data_flags_again(shapes, tmp_path, capsys):
    assert run(shapes, "instance", tmp_path, splits=("train",), SOLVER__MAX_ITER=1) == 0
    saved = ["--config-file", str(tmp_path / "config.yaml"), "--resume"]
    for name in ("custom_train", "custom_val"):
        DatasetCatalog._entries.pop(name, None)
    assert main([*saved, "MODEL.DEVICE", "cpu"]) == 1
    assert "the config names 'custom_train', which is data given by flags" in capsys.readouterr().err
    assert main([*saved, *flags(shapes, "instance"), "SOLVER.MAX_ITER", "2", "MODEL.DEVICE", "cpu"]) == 0
    assert main([*saved, "--eval-only", *flags(shapes, "instance", "val"), "MODEL.DEVICE", "cpu"]) == 0
    assert "AP50" in capsys.readouterr().out


def test_a_model_of_other_classes_is_fine_tuned_with_a_new_head(shapes, tmp_path):
    assert run(shapes, "panoptic", tmp_path / "five", splits=("train",), SOLVER__MAX_ITER=1) == 0
    weights = tmp_path / "five" / "model_final.pth"
    options = {"MODEL__WEIGHTS": weights, "SOLVER__MAX_ITER": 1, "splits": ("train",)}
    assert run(shapes, "instance", tmp_path / "three", **options) == 0
    log = (tmp_path / "three" / "log.txt").read_text()
    assert "re-initialized: class head (5 -> 3 classes)" in log and "other classes" not in log
    files = (weights, tmp_path / "three/model_final.pth")
    before, after = (torch.load(file, weights_only=True)["model"] for file in files)
    head = "sem_seg_head.predictor.class_embed.weight"
    assert [len(model[head]) for model in (before, after)] == [6, 4]
    frozen = "sem_seg_head.predictor.query_feat.weight"
    assert torch.allclose(before[frozen], after[frozen], atol=0.05)  # one step away


def test_weights_with_other_classes_of_the_same_number_cause_a_warning(shapes, tmp_path):
    assert run(shapes, "semantic", tmp_path / "first", splits=("train",), SOLVER__MAX_ITER=1) == 0
    other = tmp_path / "other.txt"
    other.write_text((shapes / "classes.txt").read_text().replace("square", "box"))
    weights = tmp_path / "first" / "model_final.pth"
    options = {"MODEL__WEIGHTS": weights, "SOLVER__MAX_ITER": 1, "splits": ("train",)}
    assert run(shapes, "semantic", tmp_path / "same", **options) == 0
    assert "other classes" not in (tmp_path / "same" / "log.txt").read_text()
    assert run(shapes, "semantic", tmp_path / "second", "--classes", str(other), **options) == 0
    warning = "as many, but other classes: its class head is kept, although 'square' -> 'box'"
    assert warning in (tmp_path / "second" / "log.txt").read_text()


def test_missing_areas_are_an_error_before_training(shapes, tmp_path, capsys):
    root = tmp_path / "shapes"
    shutil.copytree(shapes, root)
    path = root / "annotations/instances_val.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        del annotation["area"]
    path.write_text(json.dumps(content))
    assert run(root, "instance", tmp_path / "run") == 1
    assert "an annotation has no 'area', which AP needs" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_overfitting_on_custom_data(shapes, tmp_path):
    assert run(shapes, "panoptic", tmp_path, "--overfit", "2", splits=("train",)) == 0
    assert "overfitting on 2 images of 'custom_train'" in (tmp_path / "log.txt").read_text()
    assert "panoptic_seg/PQ" in read_metrics(tmp_path / "metrics.json")[-1]


def test_two_processes_log_the_custom_data_once(shapes, tmp_path):
    given = flags(shapes, "panoptic", "train")
    given += [item.replace("--train", "--val") for item in given]
    options = tiny_options(SOLVER__MAX_ITER=2, OUTPUT_DIR=tmp_path)
    done = run_command("--config-file", str(CONFIG), *given, "--num-processes", "2", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    for told in ("'custom_train': panoptic data, 6 images", "6 images are both trained on and tested on"):
        assert done.stderr.count(told) == 1
    assert {"segm/AP", "panoptic_seg/PQ"} <= read_metrics(tmp_path / "metrics.json")[-1].keys()
