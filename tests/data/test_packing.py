"""Batches that workers send: the same samples, in one block of shared memory."""

import numpy as np
import pytest
import torch

from mask2former.data.packing import pack, unpack
from mask2former.structures import Boxes, Instances, equal


def sample(masks, **fields):
    """Return a sample with random masks of the given shape."""
    generator = torch.Generator().manual_seed(0)
    shown = torch.rand(masks, generator=generator) > 0.5
    instances = Instances(masks[1:], gt_masks=shown, gt_classes=torch.arange(masks[0]))
    return {
        "image": torch.arange(3 * 5 * 7, dtype=torch.uint8).view(3, 5, 7),
        "instances": instances,
        **fields,
    }


def assert_same(batch, found):
    assert len(found) == len(batch)
    for one, other in zip(batch, found, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            if key == "instances":
                assert other[key].image_size == value.image_size
                value, other_value = value.get_fields(), other[key].get_fields()
                assert [t.dtype for t in value.values()] == [t.dtype for t in other_value.values()]
                assert equal(value, other_value)
            else:
                assert equal(value, other[key]), key


@pytest.mark.parametrize("masks", [(3, 5, 7), (1, 8, 8), (0, 5, 7), (2, 1, 1)])
def test_samples_come_back_as_they_were(masks):
    batch = [sample(masks, file_name="a.png", seed=2**62, image_id=None), sample((4, 9, 2))]
    assert_same(batch, unpack(pack(batch)))


def test_arrays_views_and_boxes_come_back_as_they_were():
    pixels = torch.arange(24.0).view(4, 6)
    boxes = torch.rand(3, 4).as_subclass(Boxes)
    batch = [
        {"views": [pixels.T, pixels[:, ::2]], "array": np.eye(3), "boxes": boxes, "number": torch.tensor(3)}
    ]
    (found,) = unpack(pack(batch))
    assert equal(batch[0], found)
    assert type(found["boxes"]) is Boxes and found["number"].shape == ()


def test_tensors_can_be_written_to():
    (found,) = unpack(pack([sample((2, 4, 4))]))
    found["image"] += 1
    found["instances"].gt_masks[:] = False
    assert found["image"][0, 0, 0] == 1 and not found["instances"].gt_masks.any()


def test_a_batch_is_one_shared_block_with_a_bit_for_each_pixel_of_a_mask():
    batch = [sample((10, 64, 64)) for _ in range(3)]
    packed = pack(batch)
    assert packed.block.is_shared()
    masks, images = 3 * 10 * 64 * 64 / 8, 3 * 3 * 5 * 7
    assert masks + images <= packed.block.numel() < masks + images + 1000


def test_numbers_are_aligned_in_memory():
    (first, second) = unpack(pack([sample((3, 3, 3)), sample((5, 3, 3))]))
    assert all(s["instances"].gt_classes.data_ptr() % 8 == 0 for s in (first, second))
