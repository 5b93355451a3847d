"""EoMT in files of others: tables of names.

Our names are those of the authors, who have timm's vision transformer, below `backbone.vit.` and
`sem_seg_head.`.

Shapes: `C` channels, `P` patches of a grid.
"""

from collections.abc import Mapping

from torch import Tensor

from mask2former.weights import vit

AUTHORS: vit.Renames = (
    (r"^network\.encoder\.backbone\.", vit.PREFIX),
    (r"^network\.", "sem_seg_head."),
)
AUTHORS_UNUSED = r"^network\.encoder\.pixel_(mean|std)$"
HUB_HEAD: vit.Renames = (  # transformers
    (r"^query\.", "sem_seg_head.q."),
    (r"^class_predictor\.", "sem_seg_head.class_head."),
    (r"^attn_mask_probs$", "sem_seg_head.attn_mask_probs"),
    (r"^mask_head\.fc1\.", "sem_seg_head.mask_head.0."),
    (r"^mask_head\.fc2\.", "sem_seg_head.mask_head.2."),
    (r"^mask_head\.fc3\.", "sem_seg_head.mask_head.4."),
    (r"^upscale_block\.block\.(\d+)\.layernorm2d\.", r"sem_seg_head.upscale.\1.norm."),
    (r"^upscale_block\.block\.", "sem_seg_head.upscale."),
)
HUB, HUB_GATED = (
    (
        *HUB_HEAD,
        (r"^embeddings\.position_embeddings\.weight$", "pos_embed"),
        (r"^layers\.", "layer."),
        (r"\.attention\.out_proj\.", ".attn.proj."),
        *of_vit[:-1],  # the last puts all names below the prefix
        (r"^(?!sem_seg_head\.|criterion\.)", vit.PREFIX),
    )
    for of_vit in (vit.HUB, vit.HUB_GATED)
)


def to_our_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of EoMT, renamed by `HUB`, as our model has them.

    Positions (P, C) become (1, P, C).
    """
    found, name = vit.to_our_tensors(tensors), f"{vit.PREFIX}pos_embed"
    if name in found and found[name].ndim == 2:
        found[name] = found[name][None]
    return found
