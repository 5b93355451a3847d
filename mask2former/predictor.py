"""Segmentation of images with a trained model: from a path, a URL or an array to a `Result`.

Shapes: `H, W` the original image's sides in pixels, `h, w` those of the resized one, `K` classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, NoReturn, overload

import numpy as np
from fvcore.common.config import CfgNode
from torch import Tensor

from mask2former.config import with_tasks
from mask2former.config.ranges import check_ranges
from mask2former.data import build_test_mapper
from mask2former.data.mapper import CHANNEL_ORDER
from mask2former.engine.setup.class_names import NUMBER, class_names_and_colors
from mask2former.engine.setup.dataset_facts import dataset_metadata
from mask2former.engine.setup.known_classes import with_known_classes
from mask2former.engine.setup.threads import share_processor
from mask2former.engine.setup.trained_model import (
    require_checkpoint,
    require_trained_weights,
    stored_config,
    trained_model,
    zoo_model,
)
from mask2former.engine.tta import AugmentedModel
from mask2former.evaluation.common.rle import distinct_masks
from mask2former.export.exported_model import exported_model, read_trained
from mask2former.options import DUPLICATE_IOU, MAX_ABSENT, SCORE_THRESHOLD
from mask2former.result import Panoptic, Result, Thresholds
from mask2former.structures import Instances
from mask2former.tiling.model import TiledModel, with_tiles
from mask2former.tracking.results import track_result
from mask2former.tracking.tracker import Tracker
from mask2former.utils.image_io import Array, ImageSource, read_image
from mask2former.weights.contents import is_exported
from mask2former.weights.load import Checkpoint
from mask2former.weights.model_zoo import published_name

Sources = list[Any] | tuple[Any, ...]  # of ImageSource


class Predictor:
    """Segmentation of images with a trained model.

    Args:
        cfg_or_checkpoint: a config whose MODEL.WEIGHTS is a trained model; or a checkpoint of this project,
            by path or URL, which holds its config; or a folder in transformers' form (docs/hub.md); or a
            file of `mask2former export` (docs/export.md). To change that config, see `stored_config`.
        checkpoint: the contents of MODEL.WEIGHTS, if they have been read already.
        score_threshold: instances with a lower score are left out of results. (Evaluation has no such
            threshold: AP is measured over all instances.) Panoptic results depend on
            MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD instead, and TEST.AUG applies to semantic ones.
        duplicate_iou: of instances whose masks have an IoU above this, of one class or several, only the one
            with the best score is in results; 1 keeps all. (Evaluation keeps all.)
        tasks: the results wanted, some of "semantic", "instance" and "panoptic"; by default those that the
            config is set to. A model for several tasks (docs/joint_training.md) decodes once for each.
        tile: predict squares of this side in pixels and merge the results (docs/large_images.md); by default,
            the config's TEST.TILE.SIZE, which is usually 0: the whole image.
        tile_overlap: least part of a side that neighboring tiles share; by default TEST.TILE.OVERLAP, 0.25.
        precision: "fp32", or "bf16", which is faster on processors that multiply it (on x86: AMX or
            AVX512_BF16, see `lscpu`; any recent GPU) and changes results a little; of exported files, those
            for OpenVINO take it. Or "int8", for CPUs with AVX512 VNNI (docs/benchmarks.md).
        calibrate: with "int8", a folder of images like those to predict, of which up to 64 are read.

    Raises:
        UntrainedModelError: MODEL.WEIGHTS is empty, a backbone, or does not fill the segmentation head.
        WeightsError: the file cannot be read, does not fit, or holds no config where one is needed.
        ValueError: the config, `tasks`, `score_threshold`, `duplicate_iou`, `precision` or `calibrate`
            is wrong.
    """

    def __init__(
        self,
        cfg_or_checkpoint: CfgNode | str | PathLike[str],
        *,
        checkpoint: Checkpoint | None = None,
        score_threshold: float = SCORE_THRESHOLD,
        duplicate_iou: float = DUPLICATE_IOU,
        tasks: Sequence[str] | None = None,
        tile: int | None = None,
        tile_overlap: float | None = None,
        precision: str = "fp32",
        calibrate: str | PathLike[str] | None = None,
    ) -> None:
        share_processor()
        if isinstance(cfg_or_checkpoint, CfgNode):
            cfg = cfg_or_checkpoint.clone()
            require_trained_weights(cfg.MODEL.WEIGHTS)
            checkpoint = checkpoint or read_trained(cfg.MODEL.WEIGHTS)
        else:
            checkpoint = checkpoint or read_trained(require_checkpoint(cfg_or_checkpoint))
            checkpoint = with_known_classes(checkpoint)
            cfg = stored_config(checkpoint)
        if tasks is not None:
            cfg = with_tasks(cfg, tasks, "tasks")
        cfg = with_tiles(cfg, tile, tile_overlap)
        check_ranges(cfg)
        _require_fraction(score_threshold, "score_threshold")
        _require_fraction(duplicate_iou, "duplicate_iou")
        self.cfg = cfg
        self.score_threshold, self.duplicate_iou = score_threshold, duplicate_iou
        self.mapper = build_test_mapper(cfg)
        build = exported_model if is_exported(checkpoint.file) else trained_model
        self.model = build(cfg, checkpoint, precision, calibrate)
        self.augmented = AugmentedModel(cfg, self.model) if cfg.TEST.AUG.ENABLED else None
        self.tiled = TiledModel(cfg, self.model, progress=True) if cfg.TEST.TILE.SIZE else None
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
        tasks: Sequence[str] | None = None,
        tile: int | None = None,
        tile_overlap: float | None = None,
        precision: str = "fp32",
        calibrate: str | PathLike[str] | None = None,
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
            tasks=tasks,
            tile=tile,
            tile_overlap=tile_overlap,
            precision=precision,
            calibrate=calibrate,
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

    def track(
        self, frames: Iterable[ImageSource], *, max_absent: int = MAX_ABSENT, channels: str = "RGB"
    ) -> Iterator[Result]:
        """Return an iterator over the results of a film's frames, with ids of objects: `Result.track_ids`.

        Objects of semantic results are not told apart, so these get no ids. Memory does not grow with the
        number of frames.

        Args:
            frames: images as `__call__` takes them, in order; they are read one by one.
            max_absent: an object that comes back after this many frames at most keeps its id.
            channels: "RGB" or "BGR", of arrays.

        Raises:
            ImageError: a frame is not an image.
            ValueError: `max_absent` is negative, the predictor uses tiles, or the model does not tell the
                embeddings of its queries.
        """
        tracker = Tracker(max_absent)
        if self.tiled is not None and set(self.model.tasks) != {"semantic"}:
            raise ValueError("tracking compares queries, and tiles do not share theirs; leave out the tiles")
        return self._track(tracker, (self._read(frame, channels) for frame in frames))

    def _track(self, tracker: Tracker, frames: Iterator[Array]) -> Iterator[Result]:
        options = self.model.inference
        things = options.thing_ids if options.things_only else range(self.model.num_classes)
        for frame in frames:
            if set(self.model.tasks) == {"semantic"}:
                yield self._predict([frame])[0]
                continue
            (prediction,) = self.model.predict_images([self.mapper.inputs(frame)])
            output = self.model.post_process(prediction, compact=True)
            queries = output.get("segment_queries", [])
            yield track_result(tracker, self.result(frame, output), prediction, queries, things)

    def _read(self, source: ImageSource, channels: str) -> Array:
        limit, in_files = self.cfg.INPUT.MAX_MEGAPIXELS, self.tiled is not None
        return read_image(source, channels, limit, in_files=in_files)

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
        if self.tiled is not None:
            order = CHANNEL_ORDER[self.mapper.image_format]
            return [self.result(image, self.tiled.predict_image(image[..., order])) for image in images]
        inputs = [self.mapper.inputs(image) for image in images]
        outputs = (self.augmented or self.model).predict(inputs, compact=True)
        return [self.result(image, output) for image, output in zip(images, outputs, strict=True)]

    @property
    def thresholds(self) -> Thresholds:
        """Return the thresholds of results."""
        options = self.model.inference
        panoptic = options.object_mask_threshold, options.overlap_threshold
        return Thresholds(self.score_threshold, self.duplicate_iou, *panoptic)

    def result(self, image: Array, output: Mapping[str, Any], thresholds: Thresholds | None = None) -> Result:
        """Return the result of an image (H, W, 3) from what `post_process` returns for it if `compact`.

        `thresholds`, by default the predictor's, select instances, and are named by reasons for an empty
        result. Panoptic segments in `output` have been selected already.
        """
        thresholds = thresholds or self.thresholds
        fields: dict[str, Any] = {"empty_reasons": {}}
        if "label_map" in output:
            fields["semantic"] = _array(output["label_map"])
        if "panoptic_seg" in output:
            ids, segments = output["panoptic_seg"]
            fields["panoptic"] = Panoptic(_array(ids), segments)
            if not segments:
                best = float(output["best_query_score"])
                fields["empty_reasons"]["panoptic"] = _no_segments(best, thresholds)
        if "instances" in output:
            candidates = output["instances"].to("cpu")
            visible = candidates.pred_masks.areas() > 0
            found = candidates[visible & (candidates.scores >= thresholds.score)]
            fields["instances"] = found[distinct_masks(found.pred_masks, thresholds.duplicate_iou)]
            if not len(fields["instances"]):
                fields["empty_reasons"]["instance"] = _no_instances(candidates, thresholds.score)
        return Result(image, self.class_names, colors=self.colors, **fields)


def _no_segments(best: float, thresholds: Thresholds) -> str:
    if best <= thresholds.object_mask:
        return (
            f"no query is an object with a probability above {thresholds.object_mask:g} "
            f"(MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD); the best has {best:.2f}"
        )
    return (
        f"no query, the best with a probability of {best:.2f}, keeps {thresholds.overlap:g} of its "
        "mask against the others (MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD)"
    )


def _no_instances(candidates: Instances, score: float) -> str:
    if not len(candidates):
        return "no instance is of a thing class"
    best = float(candidates.scores.max())
    return (
        f"none of {len(candidates)} instances has a score of {score:g} or more "
        f"(score threshold); the best has {best:.2f}"
    )


def _array(labels: Array | Tensor) -> Array:
    return labels if isinstance(labels, np.ndarray) else labels.cpu().numpy()


def _require_fraction(value: Any, name: str) -> None:
    if not (isinstance(value, NUMBER) and 0 <= value <= 1):
        raise ValueError(f"{name} is {value!r}; it must be from 0 to 1")
