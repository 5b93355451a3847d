"""Videos as the public project and Detectron2 read, augment and score them: records, colors, rotations, AP.

$MASK2FORMER_PUBLIC is the public project's checkout.
"""

import contextlib
import copy
import importlib
import io
import math
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import transforms
from drawn_tracks import draw_tracks
from synthetic_datasets import youtube_vis

from mask2former.data import DatasetCatalog, MetadataCatalog
from mask2former.data.clip_augmentation import CENTERS, COLORS, MAX_ANGLE, random_rotation
from mask2former.evaluation.video.ap import track_average_precision

DATA = Path(os.environ["MASK2FORMER_PUBLIC"]) / "mask2former_video" / "data_video"
STATISTICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10")
SIZE = (60, 90)


@pytest.fixture
def public(monkeypatch):
    """Return a function that imports a module below `data_video`, without what the packages import."""
    monkeypatch.setattr(np, "float", float, raising=False)  # as in the numpy of its time
    for name in ("public", "public.datasets", "public.datasets.ytvis_api"):
        package = types.ModuleType(name)
        package.__path__ = [str(DATA.joinpath(*name.split(".")[1:]))]
        monkeypatch.setitem(sys.modules, name, package)
    return lambda name: importlib.import_module(f"public.datasets.{name}")


def test_records_are_the_same(public, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    youtube_vis.draw(tmp_path)
    metadata = MetadataCatalog.get("ytvis_2019_train")
    published = public("ytvis").load_ytvis_json(metadata.json_file, metadata.image_root)
    for record in published:
        for objects in record["annotations"]:
            for found in objects:
                found["category_id"] = metadata.thing_dataset_id_to_contiguous_id[found["category_id"]]
    assert DatasetCatalog.get("ytvis_2019_train") == published and len(published) == 3


@pytest.mark.parametrize("year", [2019, 2021])
def test_classes_and_colors_are_the_same(public, year):
    published = getattr(public("ytvis"), f"_get_ytvis_{year}_instances_meta")()
    metadata = MetadataCatalog.get(f"ytvis_{year}_train")
    assert {key: metadata.get(key) for key in published} == published


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_the_same(public, seed):
    """Without crowds, which the public code compares as it does other tracks."""
    truth, results = draw_tracks(seed)
    for track in truth["annotations"]:
        track["iscrowd"] = 0
    with contextlib.redirect_stdout(io.StringIO()):
        api = public("ytvis_api.ytvos").YTVOS()
        api.dataset = copy.deepcopy(truth)
        api.createIndex()
        found = api.loadRes(copy.deepcopy(results))
        evaluation = public("ytvis_api.ytvoseval").YTVOSeval(api, found)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    expected = [math.nan if value < 0 else 100 * value for value in evaluation.stats[: len(STATISTICS)]]
    scores = track_average_precision(truth, results)
    assert [scores[name] for name in STATISTICS] == pytest.approx(expected, nan_ok=True, abs=1e-9)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", COLORS)
def test_colors_are_changed_as_by_detectron2(name, image):
    published = getattr(transforms, f"Random{name.capitalize()}")(0.9, 1.1).get_transform(image)
    changed = COLORS[name](image, published.dst_weight)
    np.testing.assert_array_equal(changed, published.apply_image(image))


@pytest.mark.parametrize("seed", range(4))
def test_frames_and_masks_are_rotated_as_by_detectron2(seed, image):
    rng = np.random.default_rng(seed)
    angle, center = rng.uniform(-MAX_ANGLE, MAX_ANGLE), rng.uniform(*CENTERS, 2) * SIZE[::-1]
    published = transforms.RotationTransform(*SIZE, angle, expand=False, center=center)
    rotation, mask = random_rotation(SIZE, np.random.default_rng(seed)), image[..., 0] > 100
    np.testing.assert_array_equal(rotation.apply_image(image), published.apply_image(image))
    expected = published.apply_segmentation(mask.astype(np.uint8)).astype(bool)
    np.testing.assert_array_equal(rotation.apply_masks(mask[None])[0], expected)
