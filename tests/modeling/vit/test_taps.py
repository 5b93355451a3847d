"""Maps after chosen blocks of a plain vision transformer, and the models of SETR and BEiT-UperNet on them."""

import pytest
import torch
from small_vits import draw, small_vit
from torch import nn

from mask2former.config import get_cfg, load_config
from mask2former.engine.build import build_model
from mask2former.modeling.vit.taps import TappedViT
from mask2former.structures import Instances, ShapeSpec
from mask2former.utils.registry import BACKBONE

NAMES = ("res2", "res3", "res4", "res5")
SETR = "comparators/setr/setr_mla_vit_large_bs16_160k.yaml"
BEIT = "comparators/upernet/upernet_beit_large_bs8_320k_res640.yaml"


def small_taps(pyramid, blocks=(0, 2, 3, 4)):
    vit = small_vit(patch_size=16, depth=5, final_norm=False)
    return draw(TappedViT(vit, blocks=blocks, pyramid=pyramid, norm="BN"))


@torch.no_grad()
def test_maps_follow_their_blocks():
    model, images = small_taps(False).eval(), torch.randn(1, 3, 32, 48)
    x, layout = model.vit.embed(images)
    after = [x := block(x, layout) for block in model.vit.blocks]
    for (name, map_), block in zip(model(images).items(), (0, 2, 3, 4), strict=True):
        assert model.output_shape()[name] == ShapeSpec(32, 16)
        torch.testing.assert_close(map_, after[block][:, -6:].mT.unflatten(2, (2, 3)))


@pytest.mark.parametrize("size", [(64, 96), (45, 67), (9, 4)])
@torch.no_grad()
def test_maps_of_a_pyramid(size):
    pyramid, plain, images = small_taps(True).eval(), small_taps(False).eval(), torch.randn(2, 3, *size)
    plain.vit.load_state_dict(pyramid.vit.state_dict())
    maps, same = pyramid(images), plain(images)
    for name, stride in zip(NAMES, (4, 8, 16, 32), strict=True):
        assert pyramid.output_shape()[name] == ShapeSpec(32, stride)
        assert maps[name].shape == (2, 32, *(-(-side // stride) for side in size))
    torch.testing.assert_close(maps["res4"], same["res4"])
    cell = same["res5"][:, :, :2, :2]  # the cells that the first one of the coarsest map is the maximum of
    torch.testing.assert_close(maps["res5"][:, :, 0, 0], cell.amax((2, 3)))
    corner = same["res3"][:, :, 0, 0] @ pyramid.neck["res3"].weight[:, :, 0, 0] + pyramid.neck["res3"].bias
    torch.testing.assert_close(maps["res3"][:, :, 0, 0], corner)


def test_the_config_reaches_the_model():
    cfg = get_cfg()
    vit, taps = cfg.MODEL.VIT, cfg.MODEL.VIT_TAPS
    vit.EMBED_DIM, vit.DEPTH, vit.NUM_HEADS = 32, 6, 2
    taps.BLOCKS, taps.PYRAMID, taps.NORM = [0, 1, 2, 4], True, "GN"
    model = BACKBONE.get("TappedViT")(cfg, ShapeSpec(channels=3))
    assert model.tapped == [0, 1, 2, 4] and len(model.vit.blocks) == 5
    assert isinstance(model.vit.norm, nn.Identity) and isinstance(model.neck["res2"][1], nn.GroupNorm)


@pytest.mark.parametrize("blocks", [(0, 1, 2), (0, 2, 1, 3), (1, 2, 3, 5), (0, 0, 1, 2)])
def test_blocks_that_are_not_there_are_an_error(blocks):
    with pytest.raises(ValueError, match=r"VIT_TAPS.BLOCKS is .* four ascending numbers from 0 to 4"):
        small_taps(True, blocks)


@pytest.mark.parametrize("config", [SETR, BEIT])
def test_a_small_model_of_each_trains_every_parameter(config):
    keys = [
        *(
            "MODEL.DEVICE",
            "cpu",
            "DATASETS.TRAIN",
            (),
            "DATASETS.TEST",
            (),
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
            5,
        ),
        *("MODEL.VIT.EMBED_DIM", 16, "MODEL.VIT.DEPTH", 4, "MODEL.VIT.NUM_HEADS", 2),
        *(
            "MODEL.VIT_TAPS.BLOCKS",
            [0, 1, 2, 3],
            "MODEL.VIT.POSITION_GRID",
            4,
            "MODEL.VIT.DROP_PATH_RATE",
            0.0,
        ),
        *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 16, "MODEL.SEM_SEG_HEAD.MASK_DIM", 16),
    ]
    model = draw(build_model(load_config(config, keys))).train()
    masks = torch.zeros(1, 50, 70, dtype=torch.bool)
    masks[:, 10:30] = True
    target = Instances((50, 70), gt_classes=torch.tensor([2]), gt_masks=masks)
    losses = model([{"image": torch.rand(3, 50, 70) * 255, "instances": target} for _ in range(2)])
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert model.eval()([{"image": torch.rand(3, 50, 70) * 255}])[0]["sem_seg"].shape == (5, 50, 70)


def test_uper_net_on_beit_large_has_the_published_441m_parameters():
    """Counted by ViT-Adapter's authors. Mask2Former's paper has 502M, for which there is no public model."""
    with torch.device("meta"):
        model = build_model(load_config(BEIT, ["MODEL.DEVICE", "meta"]))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 441
