"""Translation of parameter names in files to this project's: one row of `SCHEMES` for each naming scheme.

The names of this project are those of the published Mask2Former and MaskFormer checkpoints, so schemes are
needed only for DETR's, K-Net's and UperNet's, for those of mmdetection, for backbones trained elsewhere and
for early checkpoints. A rename depends on the name alone, not on a version number in the file: current names
stay as they are.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from torch import Tensor

from mask2former.weights import eomt, mmdetection, vit

Renames = tuple[tuple[str, str], ...]
NOTHING = r"(?!)"

WRAPPERS: Renames = ((r"^(?:module\.|_orig_mod\.)+", ""),)  # DistributedDataParallel, torch.compile


class Scheme(NamedTuple):
    """Naming scheme of parameters.

    A file follows it if each pattern of `evidence` is found in some name. `renames` apply in order. Names
    that match `ignored` have no counterpart in a segmentation model. A file may lack names of the model
    that match `untrained`, which keep their initial values. Tensors whose names match `unfolded` have the
    channels of merged patches in another order than here, see `_in_order_of_patches`. `convert` gets all
    renamed tensors, where they are cut otherwise than here.
    """

    title: str
    evidence: tuple[str, ...]
    renames: Renames = ()
    ignored: str = NOTHING
    untrained: str = NOTHING
    unfolded: str = NOTHING
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict


INTO_BACKBONE = (r"^", "backbone.")
OUTSIDE_BACKBONE = r"^(?!backbone\.)"
OUTSIDE_VIT = r"^(?!backbone\.vit\.)"
FINE_LAYERS = r"\.fine_proj\."  # an option that published models lack
DETRS_BACKBONE = r"^(detr\.)?backbone\.0\.body\."
DETRS_BOXES = r"^sem_seg_head\.bbox_embed\."
DETRS_MASKS = r"^sem_seg_head\.(bbox_attention|mask_head)\."


def torchvision_resnet(prefix: str) -> Renames:
    """Return the renames of a ResNet of torchvision below a prefix, a pattern that begins with ^."""
    return (
        (rf"{prefix}(?=conv1\.|bn1\.)", "backbone.stem."),
        *((rf"{prefix}layer{stage}\.", f"backbone.res{stage + 1}.") for stage in (1, 2, 3, 4)),
        (r"\bbn(\d)\.", r"conv\1.norm."),
        (r"\bdownsample\.0\.", "shortcut."),
        (r"\bdownsample\.1\.", "shortcut.norm."),
    )


DETR: Renames = (
    *torchvision_resnet(DETRS_BACKBONE),
    (r"^detr\.", ""),
    (OUTSIDE_BACKBONE, "sem_seg_head."),
)
MMDETECTIONS_SWIN: Renames = (  # also mmsegmentation's; files of Swin's authors have our names
    (r"^backbone\.patch_embed\.projection\.", "backbone.patch_embed.proj."),
    (r"^backbone\.stages\.", "backbone.layers."),
    (r"\.attn\.w_msa\.", ".attn."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
)
MMDETECTIONS_MERGING = r"^backbone\.stages\.\d\.downsample\."
KNET: Renames = (
    *torchvision_resnet(r"^backbone\."),
    (r"^(neck|rpn_head\.localization_fpn)\.", "sem_seg_head.pixel_decoder."),
    (r"^rpn_head\.", "sem_seg_head.predictor."),
    (r"^roi_head\.mask_head\.", "sem_seg_head.predictor.stages."),
    (r"\.attention\.attn\.", ".attention."),
    (r"^(sem_seg_head\..*)\.ffn\.layers\.0\.0\.", r"\1.linear1."),
    (r"^(sem_seg_head\..*)\.ffn\.layers\.1\.", r"\1.linear2."),
    *MMDETECTIONS_SWIN,
    (r"\.conv\.", "."),
    (r"\.gn\.", ".norm."),
)
UPERNET: Renames = (
    *MMDETECTIONS_SWIN,
    (r"^decode_head\.conv_seg\.", "sem_seg_head.predictor."),
    (r"^decode_head\.", "sem_seg_head.pixel_decoder."),
    (r"^auxiliary_head\.", "sem_seg_head.auxiliary_head."),
    (r"^(sem_seg_head\..*)\.conv\.", r"\1."),
    (r"^(sem_seg_head\..*)\.bn\.", r"\1.norm."),
)

SCHEMES = (
    Scheme(title="DETR checkpoint", evidence=(DETRS_BOXES, DETRS_MASKS)),
    Scheme(title="DETR checkpoint without masks", evidence=(DETRS_BOXES,), untrained=DETRS_MASKS),
    Scheme(
        title="DETR checkpoint (the authors' names)",
        evidence=(DETRS_BACKBONE, r"^bbox_attention\.", r"^mask_head\."),
        renames=DETR,
    ),
    Scheme(
        title="DETR checkpoint without masks (the authors' names)",
        evidence=(DETRS_BACKBONE, r"^(detr\.)?bbox_embed\."),
        renames=DETR,
        untrained=DETRS_MASKS,
    ),
    Scheme(
        title="K-Net checkpoint (the authors' names)",
        evidence=(r"^rpn_head\.init_kernels\.", r"^roi_head\.mask_head\.0\.fc_mask\."),
        renames=KNET,
        unfolded=MMDETECTIONS_MERGING,
    ),
    Scheme(
        title="UperNet checkpoint (mmsegmentation's names)",
        evidence=(r"^decode_head\.psp_modules\.", r"^backbone\."),
        renames=UPERNET,
        unfolded=MMDETECTIONS_MERGING,
    ),
    Scheme(title="UperNet checkpoint", evidence=(r"^sem_seg_head\.pixel_decoder\.psp_modules\.",)),
    Scheme(title="EoMT checkpoint", evidence=(r"^sem_seg_head\.q\.weight$",)),
    Scheme(
        title="EoMT checkpoint (the authors' names)",
        evidence=(r"^network\.q\.weight$", r"^network\.encoder\.backbone\.cls_token$"),
        renames=eomt.AUTHORS,
        ignored=eomt.AUTHORS_UNUSED,
    ),
    *(
        Scheme(
            title="EoMT checkpoint (transformers' names)",
            evidence=(*feed_forward, r"^query\.weight$", r"^upscale_block\.", r"^embeddings\.cls_token$"),
            renames=renames,
            convert=eomt.to_our_tensors,
        )
        for feed_forward, renames in ((vit.GATED, eomt.HUB_GATED), ((), eomt.HUB))
    ),
    Scheme(
        title="ViT-Adapter with Mask2Former's head (the authors' names)",
        evidence=(mmdetection.INPUTS, r"^backbone\.spm\."),
        renames=(*mmdetection.VIT_ADAPTER, *mmdetection.MASK2FORMER),
    ),
    Scheme(
        title="mmdetection's Mask2Former checkpoint",
        evidence=(mmdetection.INPUTS, r"^backbone\."),
        renames=(*mmdetection.MASK2FORMER, *torchvision_resnet(r"^backbone\."), *MMDETECTIONS_SWIN),
        unfolded=MMDETECTIONS_MERGING,
    ),
    Scheme(
        title="Mask2Former or MaskFormer checkpoint",
        evidence=(r"^sem_seg_head\.",),
        renames=(
            (r"^sem_seg_head\.(?!pixel_decoder\.|predictor\.)", "sem_seg_head.pixel_decoder."),
            (r"\.static_query\.", ".query_feat."),
        ),
        untrained=FINE_LAYERS,
    ),
    Scheme(title="backbone", evidence=(r"^backbone\.",), untrained=OUTSIDE_BACKBONE),
    Scheme(
        title="ImageNet ResNet (Detectron2's names)",
        evidence=(r"^stem\.conv1\.weight$", r"^res2\.0\.conv1\.weight$"),
        renames=(INTO_BACKBONE,),
        ignored=r"^(stem\.)?(fc|linear)\.",
        untrained=OUTSIDE_BACKBONE,
    ),
    Scheme(
        title="ImageNet ResNet (torchvision's names)",
        evidence=(r"^bn1\.weight$", r"^layer1\.0\.conv1\.weight$"),
        renames=torchvision_resnet("^"),
        ignored=r"^fc\.",
        untrained=OUTSIDE_BACKBONE,
    ),
    Scheme(
        title="ImageNet Swin Transformer",
        evidence=(r"^patch_embed\.proj\.weight$", r"^layers\.0\.blocks\.0\.attn\.qkv\.weight$"),
        renames=(INTO_BACKBONE,),
        ignored=r"^(norm|head)\.|\.attn_mask$",
        # A classifier has one norm at its end, a segmentation backbone one after each stage
        untrained=rf"{OUTSIDE_BACKBONE}|^backbone\.norm\d\.",
    ),
    Scheme(
        title="pretrained vision transformer",
        evidence=(r"^cls_token$", r"^blocks\.0\.attn\.qkv\.weight$"),
        renames=vit.AUTHORS,
        ignored=vit.AUTHORS_UNUSED,
        untrained=OUTSIDE_VIT,
        convert=vit.to_our_tensors,
    ),
    *(
        Scheme(
            title="pretrained vision transformer (transformers' names)",
            evidence=(*feed_forward, r"^(\w+\.)?embeddings\.cls_token$", r"\blayer\.0\.attention\."),
            renames=renames,
            ignored=vit.HUB_UNUSED,
            untrained=OUTSIDE_VIT,
            convert=vit.to_our_tensors,
        )
        for feed_forward, renames in ((vit.GATED, vit.HUB_GATED), ((), vit.HUB))
    ),
)
UNKNOWN = Scheme(title="checkpoint of unknown origin", evidence=())


def rename(name: str, renames: Renames) -> str:
    """Return the name after all renames."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def find_scheme(names: Collection[str]) -> Scheme:
    """Return the first scheme whose evidence is complete among the names."""
    for scheme in SCHEMES:
        if all(any(re.search(pattern, name) for name in names) for pattern in scheme.evidence):
            return scheme
    return UNKNOWN


def translate(tensors: Mapping[str, Tensor]) -> tuple[Scheme, dict[str, Tensor]]:
    """Return the scheme that the names follow, and the tensors under this project's names.

    If the file already holds the translation of a name, that name is kept, to be reported as unexpected.
    """
    bare = {rename(name, WRAPPERS): tensor for name, tensor in tensors.items()}
    scheme = find_scheme(bare)
    translated: dict[str, Tensor] = {}
    for name, tensor in bare.items():
        if not re.search(scheme.ignored, name):
            renamed = rename(name, scheme.renames)
            unfolded = re.search(scheme.unfolded, name)
            translated[name if renamed in bare else renamed] = (
                _in_order_of_patches(tensor) if unfolded else tensor
            )
    return scheme, scheme.convert(translated)


def _in_order_of_patches(tensor: Tensor) -> Tensor:
    """Return a tensor (..., 4 C) of mmdetection's patch merging with the four patches one after another.

    It has channels outside and patches within, in rows, as nn.Unfold does; Swin's authors have patches
    outside, in columns.
    """
    by_patch = tensor.unflatten(-1, (-1, 4)).transpose(-1, -2)
    return by_patch[..., [0, 2, 1, 3], :].flatten(-2)
