"""Segmentation of images with a trained model: from a path, a URL or an array to a `Result`.

Shapes: `H, W` the original image's sides in pixels, `h, w` those of the resized one, `K` classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike, fspath
from pathlib import PurePath
from typing import Any, NoReturn, cast, overload

import numpy as np
from fvcore.common.config import CfgNode

from mask2former.config import config_from_text, load_config, with_values
from mask2former.config.ranges import check_ranges
from mask2former.data import build_test_mapper
from mask2former.engine.build import build_model
from mask2former.engine.setup.dataset_facts import THING_IDS, dataset_metadata
from mask2former.engine.setup.known_classes import lacks_things, with_known_classes
from mask2former.engine.tta import AugmentedModel
from mask2former.evaluation.common.rle import distinct_masks
from mask2former.modeling.mask_former import MaskFormer
from mask2former.modeling.precision import set_precision
from mask2former.result import Panoptic, Result
from mask2former.structures import Instances
from mask2former.utils.image_io import Array, ImageSource, read_image
from mask2former.utils.storage import is_remote, to_path
from mask2former.utils.visualize import Color, class_colors
from mask2former.weights.load import Checkpoint, WeightsError, load_weights, read_checkpoint
from mask2former.weights.model_zoo import (
    backbone_origin,
    find_model,
    model_of_config,
    near_names,
    published_name,
)

logger = logging.getLogger(__name__)

Sources = list[Any] | tuple[Any, ...]  # of ImageSource

NUMBER = (int, float, np.integer, np.floating)
SCORE_THRESHOLD = 0.5
DUPLICATE_IOU = 0.5
UNKNOWN_THINGS = (
    "its labels are of no known dataset, so that it predicts semantic maps alone; to say which classes are "
    f"things, convert it: mask2former convert FOLDER model.pth {THING_IDS} '[0, 1]' "
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON True"
)
BACKBONE_FOLDER = "ImageNetPretrained"  # where Detectron2 keeps backbones


class UntrainedModelError(ValueError):
    """A model without trained weights, whose predictions would be noise."""


class Predictor:
    """Segmentation of images with a trained model.

    Args:
        cfg_or_checkpoint: a config whose MODEL.WEIGHTS is a trained model; or a checkpoint of this project,
            by path or URL, which holds its config; or a folder in transformers' form (docs/hub.md). To change
            that config, see `stored_config`.
        checkpoint: the contents of MODEL.WEIGHTS, if they have been read already.
        score_threshold: instances with a lower score are left out of results. (Evaluation has no such
            threshold: AP is measured over all instances.) Panoptic results depend on
            MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD instead, and TEST.AUG applies to semantic ones.
        duplicate_iou: of instances whose masks have an IoU above this, of one class or several, only the one
            with the best score is in results; 1 keeps all. (Evaluation keeps all.)
        precision: "fp32", or "bf16", which is faster on processors that multiply it (on x86: AMX or
            AVX512_BF16, see `lscpu`; any recent GPU) and changes results a little.

    Raises:
        UntrainedModelError: MODEL.WEIGHTS is empty, a backbone, or does not fill the segmentation head.
        WeightsError: the file cannot be read, does not fit, or holds no config where one is needed.
        ValueError: the config, `score_threshold`, `duplicate_iou` or `precision` is wrong.
    """

    def __init__(
        self,
        cfg_or_checkpoint: CfgNode | str | PathLike[str],
        *,
        checkpoint: Checkpoint | None = None,
        score_threshold: float = SCORE_THRESHOLD,
        duplicate_iou: float = DUPLICATE_IOU,
        precision: str = "fp32",
    ) -> None:
        if isinstance(cfg_or_checkpoint, CfgNode):
            cfg = cfg_or_checkpoint.clone()
            require_trained_weights(cfg.MODEL.WEIGHTS)
            checkpoint = checkpoint or read_checkpoint(cfg.MODEL.WEIGHTS)
        else:
            checkpoint = checkpoint or read_checkpoint(require_checkpoint(cfg_or_checkpoint))
            checkpoint = with_known_classes(checkpoint)
            cfg = stored_config(checkpoint)
        check_ranges(cfg)
        _require_fraction(score_threshold, "score_threshold")
        _require_fraction(duplicate_iou, "duplicate_iou")
        self.cfg = cfg
        self.score_threshold, self.duplicate_iou = score_threshold, duplicate_iou
        self.mapper = build_test_mapper(cfg)
        self.model = cast(MaskFormer, build_model(cfg).eval())
        report = load_weights(self.model, checkpoint, strict=cfg.MODEL.WEIGHTS_STRICT)
        if not report.has_trained_head:
            raise UntrainedModelError(f"the segmentation head is not trained: {report.summary()}")
        set_precision(self.model, precision)
        self.augmented = AugmentedModel(cfg, self.model) if cfg.TEST.AUG.ENABLED else None
        metadata = checkpoint.metadata or dataset_metadata(cfg)
        source = f"{checkpoint.file}, metadata" if checkpoint.metadata else "metadata of the dataset"
        self.class_names, self.colors = class_names_and_colors(metadata, self.model.num_classes, source)

    @classmethod
    def from_zoo(
        cls,
        name: str,
        *,
        score_threshold: float = SCORE_THRESHOLD,
        duplicate_iou: float = DUPLICATE_IOU,
        precision: str = "fp32",
    ) -> Predictor:
        """Return a predictor with a published model, such as "coco-panoptic-swin-l".

        Its weights are downloaded once, into iopath's cache. `mask2former zoo` lists the names.

        Raises:
            ValueError: no published model has that name; the message has the nearest names.
            WeightsError: the weights cannot be downloaded or read.
        """
        cfg, checkpoint = zoo_model(name)
        return cls(
            cfg,
            checkpoint=checkpoint,
            score_threshold=score_threshold,
            duplicate_iou=duplicate_iou,
            precision=precision,
        )

    @classmethod
    def from_pretrained(cls, name: str) -> NoReturn:
        """Raise the error that names the right call: this is a name of transformers."""
        call = f'Predictor.from_zoo("{published_name(name) or "coco-panoptic-swin-l"}")'
        raise TypeError(
            f'there is no from_pretrained; type {call}, or Predictor("model_final.pth") for a file'
        )

    @overload
    def __call__(self, source: ImageSource, *, channels: str = "RGB") -> Result: ...
    @overload
    def __call__(self, source: Sources, batch_size: int = 1, *, channels: str = "RGB") -> list[Result]: ...
    def __call__(
        self, source: ImageSource | Sources, batch_size: int = 1, *, channels: str = "RGB"
    ) -> Result | list[Result]:
        """Segment one image, or several, up to `batch_size` at a time.

        Arrays are RGB; type `predictor(array, channels="BGR")` for those of OpenCV. Files tell their order
        themselves. Tensors, Pillow images, bytes and open files are images too (`read_image`).

        Only images that are padded to the same size share a batch, so that a result does not depend on the
        other images.

        Raises:
            ImageError: a source is not an image; the message names it.
        """
        if not isinstance(source, (list, tuple)):
            return self._predict([self._read(source, channels)])[0]
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}; it must be a number of at least 1")
        images = [self._read(item, channels) for item in source]
        results: dict[int, Result] = {}
        for batch in self._batches(images, batch_size):
            results |= zip(batch, self._predict([images[i] for i in batch]), strict=True)
        return [results[i] for i in range(len(images))]

    def _read(self, source: ImageSource, channels: str) -> Array:
        return read_image(source, channels, self.cfg.INPUT.MAX_MEGAPIXELS)

    def _batches(self, images: Sequence[Array], batch_size: int) -> Iterator[list[int]]:
        """Yield the indices of images that are padded to the same size, `batch_size` at a time."""
        indices_of: dict[tuple[int, ...], list[int]] = {}  # by padded size
        for i, image in enumerate(images):
            divisor = self.model.size_divisibility
            resized = self.mapper.resizes((image.shape[0], image.shape[1]))
            padded = tuple(-(-side // divisor) for size in resized for side in size)
            indices_of.setdefault(padded, []).append(i)
        for indices in indices_of.values():
            yield from (indices[i : i + batch_size] for i in range(0, len(indices), batch_size))

    def _predict(self, images: Sequence[Array]) -> list[Result]:
        """Return the results of images (H, W, 3) in one batch."""
        inputs = [self.mapper.inputs(image) for image in images]
        outputs = (self.augmented or self.model).predict(inputs, compact=True)
        return [self._result(image, output) for image, output in zip(images, outputs, strict=True)]

    def _result(self, image: Array, output: Mapping[str, Any]) -> Result:
        fields: dict[str, Any] = {"empty_reasons": {}}
        if "label_map" in output:
            fields["semantic"] = output["label_map"].cpu().numpy()
        if "panoptic_seg" in output:
            ids, segments = output["panoptic_seg"]
            fields["panoptic"] = Panoptic(ids.cpu().numpy(), segments)
            if not segments:
                fields["empty_reasons"]["panoptic"] = self._no_segments(float(output["best_query_score"]))
        if "instances" in output:
            candidates = output["instances"].to("cpu")
            visible = candidates.pred_masks.areas() > 0
            found = candidates[visible & (candidates.scores >= self.score_threshold)]
            fields["instances"] = found[distinct_masks(found.pred_masks, self.duplicate_iou)]
            if not len(fields["instances"]):
                fields["empty_reasons"]["instance"] = self._no_instances(candidates)
        return Result(image, self.class_names, colors=self.colors, **fields)

    def _no_segments(self, best: float) -> str:
        test = self.cfg.MODEL.MASK_FORMER.TEST
        if best <= test.OBJECT_MASK_THRESHOLD:
            return (
                f"no query is an object with a probability above {test.OBJECT_MASK_THRESHOLD:g} "
                f"(MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD); the best has {best:.2f}"
            )
        return (
            f"no query, the best with a probability of {best:.2f}, keeps {test.OVERLAP_THRESHOLD:g} of its "
            "mask against the others (MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD)"
        )

    def _no_instances(self, candidates: Instances) -> str:
        if not len(candidates):
            return "no instance is of a thing class"
        best = float(candidates.scores.max())
        return (
            f"none of {len(candidates)} instances has a score of {self.score_threshold:g} or more "
            f"(score threshold); the best has {best:.2f}"
        )


def zoo_model(name: str, opts: Sequence[Any] = ()) -> tuple[CfgNode, Checkpoint]:
    """Return the config of a published model, with `opts` (KEY VALUE ...) merged, and its downloaded weights.

    Raises:
        ValueError: no published model has that name, or a key or value is wrong.
        WeightsError: the weights cannot be downloaded or read.
    """
    model = find_model(name)
    cfg = load_config(model.config, ["MODEL.WEIGHTS", model.weights, *opts])
    try:
        return cfg, read_checkpoint(cfg.MODEL.WEIGHTS)
    except WeightsError as error:
        raise WeightsError(name, str(error)) from error


def stored_config(checkpoint: Checkpoint, opts: Sequence[Any] = ()) -> CfgNode:
    """Return the config that a checkpoint of this project or a folder of transformers holds.

    MODEL.WEIGHTS is set to its file. MODEL.DEVICE becomes "auto", and DATASETS empty, because the datasets
    may not be on this machine. `opts`, KEY VALUE pairs, win over all of this.

    Raises:
        WeightsError: it holds no config.
    """
    if checkpoint.config is None:
        advice = "give a config whose MODEL.WEIGHTS is this file: Predictor(load_config(...))"
        raise WeightsError(checkpoint.file, f"holds weights but no config; {advice}")
    no_data: dict[str, Any] = {"DATASETS.TRAIN": (), "DATASETS.TEST": ()}
    values = {"MODEL.WEIGHTS": checkpoint.file, "MODEL.DEVICE": "auto", **no_data}
    checkpoint = with_known_classes(checkpoint)
    assert checkpoint.config is not None
    cfg = config_from_text(checkpoint.config, checkpoint.file, opts)
    if lacks_things(checkpoint) and not cfg.is_typed(THING_IDS):
        logger.warning("%s: %s", checkpoint.file, UNKNOWN_THINGS)
    values = {key: value for key, value in values.items() if not cfg.is_typed(key)}
    return with_values(cfg, values, checkpoint.file)


def require_checkpoint(source: Any) -> str:
    """Return the path or URL of a checkpoint.

    Raises:
        TypeError: it is neither a string nor a path.
        WeightsError: it names a config, or no file; the message has the call that takes such a name.
    """
    if not isinstance(source, str | PathLike):
        kind = type(source).__name__
        raise TypeError(
            f"Predictor takes a checkpoint's path or URL, or a config, not a value of type {kind}"
        )
    name = fspath(source)
    if not name:
        raise WeightsError("''", 'is no path; type Predictor("model_final.pth") or Predictor.from_zoo(NAME)')
    if PurePath(name).suffix.lower() in (".yaml", ".yml"):
        call = f'Predictor(load_config("{name}", ["MODEL.WEIGHTS", "model_final.pth"]))'
        model = model_of_config(name)
        zoo = f', or Predictor.from_zoo("{model.name}") for its published weights' if model else ""
        raise WeightsError(name, f"is a config, not a checkpoint; type {call}{zoo}")
    if PurePath(name).suffix or (not is_remote(name) and to_path(name).exists()):
        return name
    if published := published_name(name):
        raise WeightsError(name, f'is a published model; type Predictor.from_zoo("{published}")')
    if not is_remote(name):
        near = "".join(f'; do you mean Predictor.from_zoo("{model}")?' for model in near_names(name)[:1])
        raise WeightsError(name, f"no such file, and no published model{near} (`mask2former zoo` lists all)")
    return name


def require_trained_weights(weights: str) -> None:
    """Check that the value of MODEL.WEIGHTS can be a trained model, by its name alone.

    Raises:
        UntrainedModelError: it is empty or a backbone trained on ImageNet.
    """
    noise = "its predictions would be noise"
    if not weights:
        raise UntrainedModelError(f"MODEL.WEIGHTS is empty: the model is untrained, {noise}")
    if BACKBONE_FOLDER in weights or backbone_origin(PurePath(weights).name):
        raise UntrainedModelError(
            f"MODEL.WEIGHTS is {weights}, a backbone trained on ImageNet: the head is untrained, {noise}"
        )


def class_names_and_colors(
    metadata: Mapping[str, Any], num_classes: int, source: str = "metadata"
) -> tuple[list[str], list[Color]]:
    """Return the K names and RGB colors of a model's classes, or generic ones if the metadata has not K.

    Raises:
        ValueError: names are not strings, or colors not three numbers from 0 to 255; it names `source`.
    """
    for kind in ("stuff", "thing"):
        names = _items(metadata, f"{kind}_classes", lambda name: isinstance(name, str), "names", source)
        if len(names) == num_classes:
            colors = _items(metadata, f"{kind}_colors", _is_color, "colors [R, G, B] from 0 to 255", source)
            known = len(colors) == num_classes
            return list(names), [tuple(color) for color in (colors if known else class_colors(num_classes))]
    return [f"class {k}" for k in range(num_classes)], class_colors(num_classes)


def _items(
    metadata: Mapping[str, Any], key: str, is_valid: Callable[[Any], bool], expected: str, source: str
) -> Sequence[Any]:
    value = metadata.get(key)
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{source}: {key} is a {type(value).__name__}; expected a list of {expected}")
    for number, item in enumerate(value):
        if not is_valid(item):
            raise ValueError(f"{source}: {key}[{number}] is {repr(item)[:100]}; expected {expected}")
    return value


def _require_fraction(value: Any, name: str) -> None:
    if not (isinstance(value, NUMBER) and 0 <= value <= 1):
        raise ValueError(f"{name} is {value!r}; it must be from 0 to 1")


def _is_color(value: Any) -> bool:
    """Return True for three numbers from 0 to 255 in a list, tuple or array."""
    parts = value.tolist() if isinstance(value, np.ndarray) else value
    is_triple = isinstance(parts, (list, tuple)) and len(parts) == 3
    return is_triple and all(isinstance(part, NUMBER) and 0 <= part <= 255 for part in parts)
