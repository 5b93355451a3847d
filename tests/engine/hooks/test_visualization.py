"""Visualizations of a run: colors as in the file, targets to the left, predictions to the right."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from full_disk import files_no_larger_than
from torch import nn

from mask2former.drawing.colors import class_colors
from mask2former.engine.errors import TrainingError
from mask2former.engine.hooks.visualization import VisualizationHook, draw_sample
from mask2former.structures import Instances

NAMES = ["cat", "sky"]
RED, BLUE = (200, 10, 20), (20, 10, 200)
SIZE = (30, 40)
SCALE = 12  # 40 pixels twelve times are below 512


class Fixed(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, inputs):
        assert not self.training and len(inputs) == 1
        return [self.output]


def mask(top, left, bottom, right):
    shown = torch.zeros(1, *SIZE, dtype=torch.bool)
    shown[:, top:bottom, left:right] = True
    return shown


def sample(image_format):
    """Return a red image with a blue right half, and a cat in the upper left corner."""
    image = torch.tensor(RED, dtype=torch.uint8)[:, None, None].repeat(1, *SIZE)
    image[:, :, 20:] = torch.tensor(BLUE, dtype=torch.uint8)[:, None, None]
    targets = Instances(SIZE, gt_classes=torch.tensor([0]), gt_masks=mask(0, 0, 6, 6))
    return {"image": image.flip(0) if image_format == "BGR" else image, "instances": targets}


def ids():
    map_ = torch.zeros(SIZE, dtype=torch.int32)
    map_[:6, 30:36] = 3
    return map_


found = Instances(
    SIZE,
    pred_masks=torch.cat([mask(0, 30, 6, 36), mask(20, 0, 30, 10)]),
    pred_classes=torch.tensor([1, 1]),
    scores=torch.tensor([0.9, 0.1]),  # the second is below MIN_SCORE
)
scores = torch.zeros(3, *SIZE)
scores[1, :6, 30:36], scores[2] = 2.0, 1.0  # the third class has no name, and is not drawn
OUTPUTS = {
    "panoptic": {"panoptic_seg": (ids(), [{"id": 3, "category_id": 1, "isthing": True}])},
    "instance": {"instances": found},
    "semantic": {"sem_seg": scores},
}


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("task", OUTPUTS)
def test_targets_and_predictions_are_drawn_over_the_image(task, image_format):
    model = Fixed(OUTPUTS[task]).train()
    drawn = draw_sample(model, sample(image_format), NAMES, image_format)
    assert model.training
    assert drawn.shape == (SCALE * 30, SCALE * 80, 3)
    drawn = drawn[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE]
    cat, sky = np.array(class_colors(2))
    left, right = drawn[:, :40], drawn[:, 40:]
    for half in (left, right):
        assert (half[12:, :20] == RED).all()
        assert (half[12:, 20:] == BLUE).all()
    assert np.abs(left[1, 1].astype(int) - (np.array(RED) + cat) // 2).max() <= 1
    assert np.abs(right[1, 31].astype(int) - (np.array(BLUE) + sky) // 2).max() <= 1
    assert (right[:10, :20] == RED).all()
    assert (left[:10, 20:] == BLUE).all()


def test_a_clip_is_drawn_by_its_first_frame_without_absent_tracks():
    image = sample("RGB")
    targets = image["instances"]
    absent = Instances(
        SIZE,
        gt_classes=torch.tensor([0, 1]),
        gt_masks=torch.cat([targets.gt_masks, mask(0, 0, 0, 0)]),
        gt_ids=torch.tensor([4, -1]),
    )
    clip = {"image": [image["image"]] * 2, "instances": [absent] * 2, "file_names": ["a.jpg", "b.jpg"]}
    drawn = draw_sample(Fixed(OUTPUTS["panoptic"]).train(), clip, NAMES, "RGB")
    expected = draw_sample(Fixed(OUTPUTS["panoptic"]).train(), image, NAMES, "RGB")
    np.testing.assert_array_equal(drawn, expected)


def test_a_full_disk_is_an_error_that_names_the_image(tmp_path):
    hook = VisualizationHook(
        period=1,
        names=NAMES,
        image_format="RGB",
        folder=tmp_path,
        metrics=object(),
        whole=lambda model: model,
    )
    last = SimpleNamespace(batch=[sample("RGB")])
    trainer = SimpleNamespace(done=1, plain_model=Fixed(OUTPUTS["semantic"]), last=last)
    with files_no_larger_than(0), pytest.raises(TrainingError, match=r"step_0000000\.jpg cannot be written"):
        hook.after_step(trainer)
