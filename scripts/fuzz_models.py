"""Inputs of fuzz.py about models: valid configs, checkpoints and folders of transformers."""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
import safetensors.torch
import torch
from fuzz_inputs import Files, saved

from mask2former.config import load_config
from mask2former.weights.hub.config import EXTRA, extra, hub_config
from mask2former.weights.hub.folder import CONFIG, INDEX, PROCESSOR, SAFETENSORS
from mask2former.weights.hub.processor import hub_processor

HUB_CONFIGS = (
    "coco/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml",
    "maskformer/ade20k-150/maskformer_R50_bs16_160k.yaml",
)
HUB_BLOCK = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0."
HUB_TENSORS = {
    **{f"{HUB_BLOCK}attention.self.{part}.weight": torch.ones(2, 2) for part in ("query", "key", "value")},
    "class_predictor.bias": torch.zeros(3),
}


def config_seeds() -> list[Files]:
    """Return a config and its base."""
    base = (
        b"MODEL:\n  META_ARCHITECTURE: MaskFormer\n  MASK_FORMER: {DEC_LAYERS: 10, NHEADS: 8}\nVERSION: 2\n"
    )
    config = (
        b"_BASE_: base.yaml\nMODEL:\n  WEIGHTS: ''\n  PIXEL_MEAN: [123.675, 116.280, 103.530]\n"
        b"  MASK_FORMER:\n    NUM_OBJECT_QUERIES: 20\n    CLASS_WEIGHT: 2.0\n"
        b'INPUT:\n  MIN_SIZE_TRAIN: !!python/object/apply:eval ["[int(x * 64.0) for x in range(5, 9)]"]\n'
        b'DATASETS:\n  TRAIN: ("a",)\nSOLVER:\n  STEPS: (5, 10)\n  BASE_LR: 1e-4\n  AMP: {ENABLED: true}\n'
    )
    return [{"file.yaml": config, "base.yaml": base}]


def checkpoint_seeds() -> list[Files]:
    """Return checkpoints of each format."""
    state = OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.ones(3, dtype=torch.float16))
    metadata = {"thing_classes": ["cat"], "thing_colors": [[1, 2, 3]], "stuff_classes": []}
    content = {
        "model": state,
        "iteration": 3,
        "config": "VERSION: 2\n",
        "metadata": metadata,
        "optimizer": {},
    }
    arrays = {
        "model": {"a": np.arange(6.0, dtype="f4"), "b": np.ones((2, 2))},
        "__author__": "x",
        "matching": True,
    }
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    old = saved(lambda out: torch.save(content, out, _use_new_zipfile_serialization=False))
    return [
        {"file.pth": saved(lambda out: torch.save(content, out))},
        {"file.bin": old},
        *({"file.pkl": pickle.dumps(arrays, protocol)} for protocol in (0, 2, 4)),
        {"file.safetensors": safetensors.torch.save(tensors, {"format": "pt"})},
    ]


def hub_seeds() -> list[Files]:
    """Return folders of transformers: with weights in one file, in shards, and as a pickle."""
    (swin, resnet), shards = map(_hub_files, HUB_CONFIGS), {}
    weights = safetensors.torch.save(HUB_TENSORS, {"format": "pt"})
    for number, (name, tensor) in enumerate(HUB_TENSORS.items()):
        shards[f"{number}.safetensors"] = safetensors.torch.save({name: tensor}, {"format": "pt"})
    places = dict(zip(HUB_TENSORS, shards, strict=True))
    index = {f"{SAFETENSORS}{INDEX}": json.dumps({"metadata": {}, "weight_map": places}).encode()}
    return [
        {**swin, SAFETENSORS: weights},
        {**swin, **index, **shards},
        {**resnet, "pytorch_model.bin": saved(lambda out: torch.save(HUB_TENSORS, out))},
    ]


def _hub_files(config_file: str) -> Files:
    """Return the JSON files of a folder, as `mask2former convert` writes them."""
    cfg = load_config(config_file, ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2])
    metadata: dict[str, Any] = {"stuff_classes": ["cat", "sky"], "stuff_colors": [[1, 2, 3], [4, 5, 6]]}
    names = [f"backbone.res{stage}.0.conv3.weight" for stage in (2, 3, 4, 5)]
    config = hub_config(cfg, metadata, names, {})
    processor = hub_processor(cfg, "Mask2FormerImageProcessor", {})
    config[EXTRA] = extra(cfg, metadata, config, processor)
    return {CONFIG: json.dumps(config).encode(), PROCESSOR: json.dumps(processor).encode()}
