"""Our parts in Detectron2's models, and its parts in ours."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    Backbone,
    build_backbone,
    build_model,
)
from detectron2.modeling.backbone import SimpleFeaturePyramid, ViT
from detectron2.modeling.backbone import SwinTransformer as HostSwin
from detectron2.modeling.backbone.regnet import RegNet, ResBottleneckBlock, SimpleStem
from detectron2.structures import Instances
from tiny_runs import random_sample

from mask2former import add_maskformer2_config
from mask2former.detectron2_host import HostMaskFormer, instances_to_detectron2
from mask2former.modeling.backbone.swin import SwinTransformer


@BACKBONE_REGISTRY.register()
class UsersBackbone(Backbone):
    """A user's backbone of strided convolutions, with Detectron2's interface."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self._out_features = ["res2", "res3", "res4", "res5"]
        self._out_feature_channels = dict.fromkeys(self._out_features, 8)
        self._out_feature_strides = {f"res{i}": 2**i for i in (2, 3, 4, 5)}
        self.stem = torch.nn.Conv2d(input_shape.channels, 8, 4, 4)
        self.next = torch.nn.Conv2d(8, 8, 2, 2)

    def forward(self, images):
        maps = [self.stem(images)]
        for _ in range(3):
            maps.append(self.next(maps[-1]))
        return dict(zip(self._out_features, maps, strict=True))


def host_swin(cfg, input_shape):
    return HostSwin(embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4)


def host_vit(cfg, input_shape):
    plain = ViT(img_size=64, embed_dim=16, depth=1, num_heads=2, window_size=2, out_feature="last")
    return SimpleFeaturePyramid(plain, "last", out_channels=8, scale_factors=(4.0, 2.0, 1.0, 0.5), norm="LN")


def host_regnet(cfg, input_shape):
    options = {"depth": 13, "w_a": 24.48, "w_0": 24, "w_m": 2.54, "group_width": 8, "norm": "FrozenBN"}
    maps = ["s1", "s2", "s3", "s4"]
    return RegNet(
        stem_class=SimpleStem, stem_width=8, block_class=ResBottleneckBlock, out_features=maps, **options
    )


for builder in (host_swin, host_vit, host_regnet):
    BACKBONE_REGISTRY.register(builder)

RES_MAPS, FPN_MAPS = ["res2", "res3", "res4", "res5"], ["p2", "p3", "p4", "p5"]
HOST_BACKBONES = {
    "UsersBackbone": RES_MAPS,
    "build_resnet_fpn_backbone": FPN_MAPS,
    "host_swin": ["p0", "p1", "p2", "p3"],
    "host_vit": FPN_MAPS,
    "host_regnet": ["s1", "s2", "s3", "s4"],
}
RESNET18_FPN = {
    "MODEL__RESNETS__DEPTH": 18,
    "MODEL__RESNETS__RES2_OUT_CHANNELS": 64,
    "MODEL__FPN__IN_FEATURES": RES_MAPS,
    "MODEL__FPN__OUT_CHANNELS": 16,
}


def in_detectron2(*samples):
    """Return samples with targets of Detectron2's type."""
    return [{**sample, "instances": instances_to_detectron2(sample["instances"])} for sample in samples]


def test_our_parts_are_registered_under_their_published_names():
    assert "MaskFormer" in META_ARCH_REGISTRY and "EoMT" in META_ARCH_REGISTRY
    assert "D2SwinTransformer" in BACKBONE_REGISTRY
    assert {"MaskFormerHead", "MSDeformAttnPixelDecoder"} <= {name for name, _ in SEM_SEG_HEADS_REGISTRY}


def test_detectron2_builds_our_model(host_cfg):
    model = build_model(host_cfg())
    assert isinstance(model, HostMaskFormer)
    losses = model(in_detectron2(random_sample(1, 3), random_sample(2, 0)))
    assert {"loss_ce", "loss_mask", "loss_dice"} <= losses.keys()
    sum(losses.values()).backward()
    result = model.eval()([random_sample(1, 0)])[0]
    assert isinstance(result["instances"], Instances) and result["sem_seg"].shape == (5, 64, 64)


@pytest.mark.parametrize("name", HOST_BACKBONES)
def test_detectron2s_backbones_work_under_our_head(host_cfg, name):
    maps = HOST_BACKBONES[name]
    cfg = host_cfg(MODEL__BACKBONE__NAME=name, MODEL__SEM_SEG_HEAD__IN_FEATURES=maps, **RESNET18_FPN)
    cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = maps[1:]
    model = build_model(cfg)
    sum(model(in_detectron2(random_sample(1, 2), random_sample(2, 1, side=48))).values()).backward()
    first = next(parameter for parameter in model.backbone.parameters() if parameter.requires_grad)
    assert first.grad.abs().sum() > 0
    assert model.eval()([random_sample(1, 0, side=50)])[0]["sem_seg"].shape == (5, 50, 50)


@pytest.mark.parametrize(("asked", "padded"), [(32, 192), (-1, 144)])
def test_batches_are_padded_as_the_backbone_needs(host_cfg, monkeypatch, asked, padded):
    monkeypatch.setattr(UsersBackbone, "size_divisibility", 48)
    sides = {"MODEL__BACKBONE__NAME": "UsersBackbone", "MODEL__MASK_FORMER__SIZE_DIVISIBILITY": asked}
    model = build_model(host_cfg(**sides)).eval()
    seen = []
    model.backbone.stem.register_forward_hook(lambda _, images, __: seen.append(images[0].shape[2:]))
    model([random_sample(1, 0, side=100)])
    assert seen == [(padded, padded)]


@pytest.fixture
def mask_rcnn():
    """Return a config of Detectron2's Mask R-CNN on our Swin."""
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.merge_from_list(
        [
            *("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.DEVICE", "cpu", "MODEL.MASK_ON", True),
            *("MODEL.BACKBONE.NAME", "build_swin_fpn_backbone", "MODEL.FPN.OUT_CHANNELS", 16),
            *("MODEL.FPN.IN_FEATURES", RES_MAPS),
            *("MODEL.SWIN.EMBED_DIM", 12, "MODEL.SWIN.DEPTHS", [1, 1, 1, 1]),
            *("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
            *("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [64], [128]]),
            *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.NUM_CLASSES", 5),
            *("MODEL.ROI_HEADS.IN_FEATURES", FPN_MAPS),
            *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1),
            *("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_MASK_HEAD.NUM_CONV", 1),
            *("MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "INPUT.MASK_FORMAT", "bitmask"),
        ]
    )
    return cfg


class OneBatch(DefaultTrainer):
    """Detectron2's trainer on two images."""

    @classmethod
    def build_train_loader(cls, cfg):
        return [in_detectron2(random_sample(1, 2), random_sample(2, 1, side=48))]


def test_detectron2s_trainer_trains_our_swin_under_mask_rcnn(mask_rcnn, tmp_path):
    mask_rcnn.merge_from_list(["SOLVER.MAX_ITER", 1, "OUTPUT_DIR", str(tmp_path), "DATASETS.TEST", ()])
    trainer = OneBatch(mask_rcnn)
    assert isinstance(trainer.model.backbone.bottom_up, SwinTransformer)
    weight = trainer.model.state_dict()["backbone.bottom_up.patch_embed.proj.weight"]
    before = weight.clone()
    trainer.train()
    assert "loss_mask" in trainer.storage.histories()
    assert not torch.equal(weight, before) and (tmp_path / "model_final.pth").is_file()
    assert isinstance(trainer.model.eval()([random_sample(1, 0)])[0]["instances"], Instances)


def test_our_swin_is_a_backbone_of_detectron2(host_cfg):
    cfg = host_cfg(MODEL__BACKBONE__NAME="D2SwinTransformer", MODEL__SWIN__EMBED_DIM=12)
    backbone = build_backbone(cfg, ShapeSpec(channels=3))
    assert backbone.size_divisibility == 0 and backbone.output_shape()["res3"].stride == 8
    assert {name: m.shape[1] for name, m in backbone(torch.zeros(1, 3, 64, 96)).items()} == {
        name: shape.channels for name, shape in backbone.output_shape().items()
    }


def test_the_error_for_an_unknown_backbone_lists_those_of_both_sides(host_cfg):
    with pytest.raises(ValueError, match=r"D2SwinTransformer.*UsersBackbone.*build_resnet_fpn_backbone"):
        build_model(host_cfg(MODEL__BACKBONE__NAME="build_resnext"))


def test_keys_that_only_detectron2s_resnet_reads_are_an_error_with_ours(host_cfg):
    with pytest.raises(ValueError, match=r"RES5_DILATION = 2 is not supported"):
        build_model(host_cfg(MODEL__RESNETS__RES5_DILATION=2))
    users = {"MODEL__BACKBONE__NAME": "UsersBackbone", "MODEL__RESNETS__RES5_DILATION": 2}
    assert isinstance(build_model(host_cfg(**users)).backbone, UsersBackbone)  # does not read the key


VIT = {
    "MODEL.BACKBONE.NAME": "TappedViT",
    "MODEL.VIT.EMBED_DIM": 16,
    "MODEL.VIT.DEPTH": 4,
    "MODEL.VIT.NUM_HEADS": 2,
    "MODEL.VIT.POSITION_GRID": 4,
    "MODEL.VIT_TAPS.BLOCKS": [0, 1, 2, 3],
    "MODEL.VIT_TAPS.PYRAMID": False,
}
SETR_LOSSES = {"loss_sem_seg", *(f"loss_sem_seg_auxiliary{layer}" for layer in ("", "_0", "_1", "_2"))}
PER_PIXEL = (  # head, pixel decoder, losses, backbone
    ("PerPixelBaselineHead", "BasePixelDecoder", {"loss_sem_seg"}, {}),
    ("PerPixelBaselineHead", "TransformerEncoderPixelDecoder", {"loss_sem_seg"}, {}),
    ("PerPixelBaselinePlusHead", "BasePixelDecoder", {"loss_sem_seg", "loss_sem_seg_0"}, {}),
    ("UperNetHead", "UperNetPixelDecoder", {"loss_sem_seg", "loss_sem_seg_auxiliary"}, {}),
    ("SETRHead", "SETRMLAPixelDecoder", SETR_LOSSES, VIT),
)


@pytest.mark.parametrize(
    ("head", "pixel_decoder", "names", "backbone"),
    PER_PIXEL,
    ids=[f"{head}-{decoder}" for head, decoder, *_ in PER_PIXEL],
)
def test_detectron2s_segmentor_trains_and_predicts_with_the_per_pixel_heads(
    head, pixel_decoder, names, backbone
):
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    values = {
        "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
        "MODEL.DEVICE": "cpu",
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.RESNETS.OUT_FEATURES": RES_MAPS,
        "MODEL.SEM_SEG_HEAD.NAME": head,
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": RES_MAPS,
        "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": pixel_decoder,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5,
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res5",
        "MODEL.MASK_FORMER.DEC_LAYERS": 2,
        **backbone,
    }
    cfg.merge_from_list([item for pair in values.items() for item in pair])
    model = build_model(cfg)
    labels = torch.randint(5, (64, 90))
    losses = model([{"image": torch.rand(3, 64, 90) * 255, "sem_seg": labels}])
    assert losses.keys() == names
    sum(losses.values()).backward()
    assert all(p.grad.any() for p in model.sem_seg_head.pixel_decoder.parameters() if p.dim() > 1)
    (result,) = model.eval()([{"image": torch.rand(3, 64, 90) * 255, "height": 32, "width": 45}])
    assert result["sem_seg"].shape == (5, 32, 45)
