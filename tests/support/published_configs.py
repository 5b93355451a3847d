"""The resolved configs that the authors of Mask2Former and MaskFormer published.

`DEFAULTS` are their projects' defaults; a config holds only what differs from them. Those of videos are not
among PUBLISHED, and have further keys, VIDEO_DEFAULTS.
"""

import json
from pathlib import Path

_FOLDER = Path(__file__).parents[1] / "golden_files"
_MASK2FORMER = json.loads((_FOLDER / "configs.json").read_text())
_MASKFORMER = json.loads((_FOLDER / "maskformer_configs.json").read_text())
_VIDEO = json.loads((_FOLDER / "video_configs.json").read_text())

DEFAULTS: dict[str, object] = _MASK2FORMER["defaults"]
MASK2FORMER: dict[str, dict] = {
    name.removeprefix("configs/"): values for name, values in _MASK2FORMER["configs"].items()
}
MASKFORMER: dict[str, dict] = {f"maskformer/{name}": values for name, values in _MASKFORMER.items()}
PUBLISHED = MASK2FORMER | MASKFORMER
VIDEO: dict[str, dict] = _VIDEO["configs"]
VIDEO_DEFAULTS: dict[str, object] = _VIDEO["defaults"]


def is_experiment(name: str) -> bool:
    """Return False for the files that others name as their base."""
    return "/Base-" not in name
