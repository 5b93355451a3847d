"""Names, shapes and buffers of the backbone of every published config."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mask2former.config import get_cfg
from mask2former.modeling.backbone.swin import relative_position_index
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import BACKBONE

DATA = Path(__file__).parents[2] / "golden_files"
CONFIGS: dict[str, dict[str, Any]] = json.loads((DATA / "configs.json").read_text())["configs"]
STATE_DICTS = json.loads(gzip.decompress((DATA / "state_dicts.json.gz").read_bytes()))


@pytest.mark.parametrize("name", STATE_DICTS["configs"])
def test_names_and_shapes(name: str) -> None:
    cfg = get_cfg()
    for key, value in CONFIGS[name].items():
        if key.startswith(("MODEL.BACKBONE", "MODEL.RESNETS", "MODEL.SWIN")):
            cfg.merge_from_list([key, value])
    with torch.device("meta"):
        backbone = BACKBONE.get(cfg.MODEL.BACKBONE.NAME)(cfg, ShapeSpec(channels=3))
    published = STATE_DICTS["tables"][STATE_DICTS["configs"][name]["table"]]
    expected = {key: tuple(shape) for key, shape in published.items() if key.startswith("backbone.")}
    assert {f"backbone.{key}": tuple(value.shape) for key, value in backbone.state_dict().items()} == expected


def test_relative_position_index_has_one_row_per_offset() -> None:
    index = relative_position_index(2)  # tokens (0, 0), (0, 1), (1, 0), (1, 1); 3 x 3 offsets, query - key
    assert index.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
