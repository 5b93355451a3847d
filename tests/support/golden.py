"""Golden answers: what the public implementation computes, with weights drawn from the names of the tensors.

tests/golden_files/golden holds a trimmed copy of the recorded files (made by trim_golden.py beside it): every
key, but of the large ones only every so many queries, channels or pixels. `Golden.error` trims its argument
alike.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mask2former.structures import Instances

DATA = Path(__file__).parents[1] / "golden_files"
NAMES = ("coco_panoptic_R50", "coco_instance_swin_tiny", "ade20k_semantic_R50")
COCO_THINGS = tuple(range(80))

COMPUTED = ("relative_position_index", "empty_weight", "num_batches_tracked")  # not drawn, but as built

KEPT = {  # the end of a key -> what the trimmed file keeps of it
    "backbone.res2": np.s_[-1:, ::16],
    "backbone.res5": np.s_[-1:, ::8],
    "mask_features": np.s_[-1:, ::16],
    "multi_scale0": np.s_[-1:, ::4],
    "multi_scale1": np.s_[-1:, ::8],
    "multi_scale2": np.s_[-1:, ::16],
    "pred_masks": np.s_[:, ::10],
    "pred_logits": np.s_[:, ::4],
    "sem_seg_every4": np.s_[:, ::4, ::4],
}


def trim(key: str, array: np.ndarray) -> np.ndarray:
    """The part of an array that the trimmed copy keeps under this key."""
    for end, part in KEPT.items():
        if key.endswith(end):
            return array[part]
    return array


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 weights of this name and shape, by the recipe of the recorded files."""
    normal = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        normal = 0.5 + np.abs(normal) / 2
    elif name.endswith("running_mean"):
        normal = normal / 10
    elif name.endswith("sampling_offsets.bias"):
        normal = normal * 2
    elif name.endswith("sampling_offsets.weight"):
        normal = normal / 10 / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("conv3.norm.weight"):
        normal = 0.2 + normal / 50
    elif not name.endswith(("query_feat.weight", "query_embed.weight", "level_embed", "level_embed.weight")):
        if len(shape) > 1:
            normal -= normal.mean(axis=tuple(range(1, len(shape))), keepdims=True)
            normal = normal * np.sqrt(2 / np.prod(shape[1:]))
        else:
            normal = normal / 10 + name.endswith("weight")
    return normal.astype(np.float32)


@torch.no_grad()
def fill(model: nn.Module) -> nn.Module:
    """The model, with every tensor of its state dict drawn from its name."""
    for name, tensor in model.state_dict().items():
        if not name.endswith(COMPUTED):
            tensor.copy_(torch.from_numpy(draw(name, tuple(tensor.shape))))
    return model


@dataclass
class Golden:
    """One recorded file, whole or trimmed."""

    arrays: dict[str, np.ndarray]
    trimmed: bool

    @property
    def config(self) -> dict[str, Any]:
        """The config "file", relative to configs/, and the "opts" merged after it."""
        return json.loads(str(self.arrays["config"]))

    def inputs(self) -> list[dict[str, Any]]:
        """The batch: images with output sizes and targets."""
        count = sum(key.startswith("image") for key in self.arrays)
        return [self._input(i) for i in range(count)]

    def _input(self, i: int) -> dict[str, Any]:
        image = torch.from_numpy(self.arrays[f"image{i}"])
        height, width = self.arrays[f"size{i}"].tolist()
        masks = self.masks(f"target{i}.masks", image.shape[2])
        classes = torch.from_numpy(self.arrays[f"target{i}.classes"])
        targets = Instances((image.shape[1], image.shape[2]), gt_classes=classes, gt_masks=masks)
        return {"image": image, "height": height, "width": width, "instances": targets}

    def masks(self, key: str, width: int) -> Tensor:
        """Packed masks (N, H, width) as bool."""
        return torch.from_numpy(np.unpackbits(self.arrays[key], axis=-1)[..., :width].astype(bool))

    def error(self, key: str, actual: Tensor) -> float:
        """The largest distance of `actual` from what is recorded, beyond the rounding of what is recorded."""
        expected = self.arrays[key]
        whole = actual.numpy()
        found = trim(key, whole) if self.trimmed else whole
        assert found.shape == expected.shape
        rounding = np.spacing(np.abs(expected)).astype(np.float32) if expected.dtype == np.float16 else 0
        return float((np.abs(found - expected.astype(np.float32)) - rounding).max())


def load_golden(name: str, root: Path | None = None) -> Golden:
    """The trimmed file of that name, or from the `golden` folder below `root` the whole one."""
    path = (DATA if root is None else root) / "golden" / f"{name}.npz"
    with np.load(path) as file:
        return Golden(dict(file), trimmed=root is None)
