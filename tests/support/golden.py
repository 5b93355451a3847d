"""Golden answers: results of the public implementation, with weights drawn from the names of the tensors.

tests/golden_files/golden holds a trimmed copy of the recorded files (made by trim_golden.py beside it): every
key, but of large arrays only some queries, channels or pixels. `Golden.error` trims its argument alike.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mask2former.structures import Instances

DATA = Path(__file__).parents[1] / "golden_files"
NAMES = ("coco_panoptic_R50", "coco_instance_swin_tiny", "ade20k_semantic_R50")
MASKFORMER = (  # in the folder maskformer
    "ade20k_per_pixel_R50",
    "ade20k_semantic_R50",
    "coco_panoptic_R50",
    "coco_panoptic_R50_fpn",
)
VIDEO = "video/youtubevis_R50"
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


def trim(key, array):
    """Return the part of an array that the trimmed copy keeps under this key."""
    for end, part in KEPT.items():
        if key.endswith(end):
            return array[part]
    return array


def draw(name, shape):
    """Return the float32 weights of this name and shape, as they are in the recorded files."""
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
def fill(model):
    """Fill every tensor of a model's state dict with numbers drawn from its name, and return the model."""
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
    def config(self):
        """Return the config "file", relative to configs/, and the "opts" merged after it."""
        return json.loads(str(self.arrays["config"]))

    def inputs(self):
        """Return the batch: images with output sizes, and targets if there are any."""
        batch = []
        for i in range(sum(key.startswith("image") for key in self.arrays)):
            image = torch.from_numpy(self.arrays[f"image{i}"])
            height, width = self.arrays[f"size{i}"].tolist()
            batch.append({"image": image, "height": height, "width": width})
            if f"target{i}.masks" in self.arrays:
                masks = self.masks(f"target{i}.masks", image.shape[2])
                classes = torch.from_numpy(self.arrays[f"target{i}.classes"])
                size = (image.shape[1], image.shape[2])
                batch[i]["instances"] = Instances(size, gt_classes=classes, gt_masks=masks)
        return batch

    def masks(self, key, width):
        """Unpack masks (N, H, width) as bool."""
        return torch.from_numpy(np.unpackbits(self.arrays[key], axis=-1)[..., :width].astype(bool))

    def error(self, key, actual):
        """Return the largest distance of `actual` from the recorded array, beyond that array's rounding."""
        expected = self.arrays[key]
        found = trim(key, actual.numpy()) if self.trimmed else actual.numpy()
        assert found.shape == expected.shape
        rounding = np.spacing(np.abs(expected)).astype(np.float32) if expected.dtype == np.float16 else 0
        return float((np.abs(found - expected.astype(np.float32)) - rounding).max())


def load_golden(name, root=None):
    """Read the trimmed file of that name, or the whole one from the `golden` folder below `root`."""
    path = (DATA if root is None else root) / "golden" / f"{name}.npz"
    with np.load(path) as file:
        return Golden(dict(file), trimmed=root is None)
