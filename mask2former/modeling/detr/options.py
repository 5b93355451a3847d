"""What DETR's head and criterion both read from a config."""

from typing import Any

ARCHITECTURE, HEAD, CRITERION_NAME = "DETR", "DetrHead", "DetrCriterion"
STAGES = ("boxes", "masks")


def check_architecture(cfg: Any, part: str) -> None:
    """Raise ValueError if `part`, a key and its value, is not in a config of DETR."""
    architecture = cfg.MODEL.META_ARCHITECTURE
    if architecture != ARCHITECTURE:
        raise ValueError(f"{part} needs MODEL.META_ARCHITECTURE {ARCHITECTURE}, not {architecture}")


def reads_masks(cfg: Any) -> bool:
    """Return True in the stage of masks; raise ValueError if MODEL.DETR.STAGE is unknown."""
    stage = cfg.MODEL.DETR.STAGE
    if stage not in STAGES:
        raise ValueError(f"MODEL.DETR.STAGE is {stage!r}; it must be one of {', '.join(STAGES)}")
    return stage == "masks"


def class_outputs(cfg: Any) -> tuple[list[int], int]:
    """Return the class head's output of each class, and the number of its outputs besides "no object".

    Raises:
        ValueError: MODEL.DETR.CATEGORY_IDS does not give each class an output of its own.
    """
    detr, num_classes = cfg.MODEL.DETR, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    ids = list(detr.CATEGORY_IDS or range(num_classes))
    if len(set(ids)) != len(ids) or len(ids) != num_classes:
        raise ValueError(
            f"MODEL.DETR.CATEGORY_IDS has {len(set(ids))} different ids, but MODEL.SEM_SEG_HEAD.NUM_CLASSES "
            f'is {num_classes}; for other classes type MODEL.DETR.CATEGORY_IDS "[]" MODEL.DETR.NUM_IDS 0'
        )
    num_outputs = detr.NUM_IDS or max(ids) + 1
    if max(ids) >= num_outputs:
        raise ValueError(
            f"MODEL.DETR.NUM_IDS is {num_outputs}, but the largest of "
            f"{'MODEL.DETR.CATEGORY_IDS' if detr.CATEGORY_IDS else 'the classes'} is {max(ids)}"
        )
    return ids, num_outputs
