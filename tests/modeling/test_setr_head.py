"""SETR's auxiliary heads against their formula."""

import pytest
import torch
from torch.nn import functional as F

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.structures import Instances

SIDE, CLASSES = 64, 5
SMALL = [
    *("MODEL.DEVICE", "cpu", "DATASETS.TRAIN", (), "DATASETS.TEST", (), "MODEL.SEM_SEG_HEAD.NORM", "GN"),
    *(
        "MODEL.VIT.EMBED_DIM",
        16,
        "MODEL.VIT.DEPTH",
        4,
        "MODEL.VIT.NUM_HEADS",
        2,
        "MODEL.VIT.POSITION_GRID",
        4,
    ),
    *("MODEL.VIT_TAPS.BLOCKS", [0, 1, 2, 3], "MODEL.VIT.DROP_PATH_RATE", 0.0),
    *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", CLASSES, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32),
    *("MODEL.SEM_SEG_HEAD.MASK_DIM", 128),
]


def small_setr(*options):
    torch.manual_seed(0)
    return build_model(load_config("comparators/setr/setr_mla_vit_large_bs16_160k.yaml", [*SMALL, *options]))


@pytest.fixture
def batch():
    """Two images, whose left half alone has classes, and their label maps."""
    labels = torch.randint(CLASSES, (2, SIDE, SIDE), generator=torch.Generator().manual_seed(1))
    labels[:, :, SIDE // 2 :] = -100
    classes = torch.arange(CLASSES)
    targets = [
        Instances((SIDE, SIDE), gt_classes=classes, gt_masks=torch.stack([x == k for k in classes]))
        for x in labels
    ]
    return [{"image": torch.rand(3, SIDE, SIDE) * 255, "instances": target} for target in targets], labels


def test_each_map_has_a_loss_of_its_own_in_training(batch):
    inputs, labels = batch
    model = small_setr("MODEL.SEM_SEG_HEAD.AUXILIARY_WEIGHT", 0.25).train()
    seen = []
    model.sem_seg_head.pixel_decoder.register_forward_hook(
        lambda module, given, output: seen.append(output[1])
    )
    losses = model(inputs)
    names = [f"loss_sem_seg_auxiliary{suffix}" for suffix in ("_0", "_1", "_2", "")]
    assert losses.keys() == {"loss_sem_seg", *names}
    for name, head, x in zip(names, model.sem_seg_head.auxiliary_heads, seen[0], strict=True):
        logits = torch.einsum("kc,bchw->bkhw", head.weight[:, :, 0, 0], x) + head.bias[:, None, None]
        enlarged = F.interpolate(logits, size=(SIDE, SIDE), mode="bilinear")
        expected = 0.25 * F.cross_entropy(enlarged, labels)
        torch.testing.assert_close(losses[name], expected, rtol=1e-5, atol=1e-6)


def test_there_are_none_in_evaluation_or_without_weight(batch):
    inputs, _ = batch
    model = small_setr().eval()
    assert model.network(torch.zeros(1, 3, SIDE, SIDE)).auxiliary is None
    without = small_setr("MODEL.SEM_SEG_HEAD.AUXILIARY_WEIGHT", 0.0).train()
    assert without(inputs).keys() == {"loss_sem_seg"}
    assert not any("auxiliary" in name for name in without.state_dict())
