"""The command `mask2former check-dataset`: check that a dataset can be trained on, and summarize it.

Every image is decoded and every annotation becomes masks, by the code that training uses. A broken record is
reported, and the check goes on. Eight samples are drawn with their ground truth, since a person sees mistakes
in them that no program finds.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import cv2
from tabulate import tabulate
from tqdm import tqdm

from mask2former.data import DatasetCatalog, DatasetError, Metadata, MetadataCatalog
from mask2former.data.catalog import Record
from mask2former.data.checks.record import DataWarning, RecordSummary, annotation_kind, summarize_record
from mask2former.data.checks.summary import SHOWN, repeated, summarize_dataset, video_report
from mask2former.data.clips import frame_records, holds_videos
from mask2former.data.custom.checks import check_annotations, require_images
from mask2former.data.custom.dataset import DatasetFiles, forget, register_files
from mask2former.data.custom.duplicates import shared_images
from mask2former.data.custom.label_classes import spread
from mask2former.data.errors import examples
from mask2former.data.ground_truth.geometry import Geometry
from mask2former.data.load_context import LoadContext
from mask2former.data.mapper import record_image
from mask2former.drawing.colors import class_colors
from mask2former.drawing.overlay import draw_regions, legible_scale
from mask2former.drawing.regions import shape_regions
from mask2former.drawing.shapes import mask_shape
from mask2former.tools.arguments.check_dataset import parse_arguments
from mask2former.utils.aliases import run_alias
from mask2former.utils.image_io import pixel_limit, set_pixel_limit, write_image
from mask2former.utils.label_maps import IGNORE_LABEL, Array
from mask2former.utils.messages import legible, plural
from mask2former.utils.output import print_error, tolerant_output

SAMPLES = 8
CHUNK = 16  # records that a process fetches at once
CLASS_COLUMNS = 3
SHARED = "images that the other dataset holds too"  # a kind of warning
CUSTOM = "custom"  # the name of a dataset given by --images and --annotations


def summaries(records: Sequence[Record], metadata: Metadata, workers: int) -> Iterator[RecordSummary]:
    """Yield the summary of each record, in order, with a progress bar."""
    summarize = partial(summarize_record, metadata=metadata)
    progress = partial(tqdm, total=len(records), unit="image", disable=None)
    if workers == 1:
        yield from progress(map(summarize, records))
        return
    with ProcessPoolExecutor(workers, initializer=_init_worker, initargs=(pixel_limit(),)) as pool:
        yield from progress(pool.map(summarize, records, chunksize=CHUNK))


def _init_worker(max_megapixels: float) -> None:
    cv2.setNumThreads(0)
    set_pixel_limit(max_megapixels)


def class_names(metadata: Metadata, records: Sequence[Record]) -> list[str]:
    """Return the names of the classes that the records are annotated with.

    Raises:
        DatasetError: the metadata lacks them.
    """
    kind = next(filter(None, map(annotation_kind, records)), None)
    names = metadata.get(kind.names_fact) if kind else []
    if names is None:
        raise DatasetError(f"the metadata of '{metadata.name}' has no '{kind.names_fact}'")  # type: ignore[union-attr]
    return list(names)


def draw_ground_truth(record: Record, metadata: Metadata) -> Array:
    """Return the image (H, W, 3) with its regions as training sees them, enlarged if it is tiny."""
    image, kind = record_image(record), annotation_kind(record)
    assert kind is not None
    names = metadata.get(kind.names_fact)
    given = metadata.get(kind.names_fact.replace("classes", "colors")) or ()
    colors = [tuple(color) for color in given] if len(given) == len(names) else class_colors(len(names))
    segments = kind.reader(record, metadata, image.shape[:2])
    which, masks = segments.visible(Geometry.identity(*image.shape[:2]))
    shapes = [mask_shape(mask) for mask in masks]
    regions = shape_regions(shapes, segments.classes[which].tolist(), names, colors)
    return draw_regions(image, regions, legible_scale(image))


def draw_samples(records: Sequence[Record], metadata: Metadata, folder: Path) -> list[str]:
    """Draw some of the records, spread evenly, and return the files."""
    files = []
    for number, record in enumerate(spread(records, SAMPLES), start=1):
        files.append(str(folder / f"sample_{number}_{Path(record['file_name']).stem}.png"))
        write_image(files[-1], draw_ground_truth(record, metadata))
    return files


def overlap(records: Sequence[Record], other: str) -> list[DataWarning]:
    """Return a warning for each image that the dataset `other` holds too.

    Raises:
        DatasetError: there is no such dataset, or it cannot be read.
    """
    context = LoadContext(errors=[])  # what is broken in the other dataset does not matter here
    others = frame_records(DatasetCatalog.get(other, context))
    files, other_files = ([r["file_name"] for r in rows if "file_name" in r] for rows in (records, others))
    return [DataWarning(SHARED, f"{a}: {b}") for a, b in shared_images(files, other_files)]


def check(args: argparse.Namespace) -> dict[str, Any]:
    """Check the dataset that the flags name, draw its samples, and return the report.

    Raises:
        DatasetError: there is no such dataset, or its files as a whole cannot be read.
    """
    name, errors = args.name or CUSTOM, list[DatasetError]()
    context = LoadContext(errors)
    if not args.name:
        forget(CUSTOM)
        files = DatasetFiles(args.images, args.annotations, args.classes, args.crowds_as_objects)
        register_files(CUSTOM, files, context=context)
        errors.clear()  # the records will show what is broken
    listed = DatasetCatalog.get(name, context)[: args.limit]
    if not args.name:
        require_images(listed, args.images)
    records = frame_records(listed)  # of videos; images as they are
    del context  # it holds the parsed JSON
    metadata = MetadataCatalog.get(name).snapshot()
    metadata.ignore_label = metadata.get("ignore_label", IGNORE_LABEL)
    things = metadata.get("thing_dataset_id_to_contiguous_id", {}).values()
    is_panoptic = any("pan_seg_file_name" in record for record in records)
    names = class_names(metadata, records)
    warnings = repeated(records) + (overlap(records, args.against) if args.against else [])
    found = list(summaries(records, metadata, args.workers))
    is_sound = not errors and not any(summary.error for summary in found)
    if is_sound and not (args.name or args.limit) and metadata.get("evaluator_type") == "coco":
        try:  # what training checks of instance data as a whole
            check_annotations(records, names, args.annotations)
        except DatasetError as error:
            errors.append(error)
    facts = {"things": set(things) if is_panoptic else None, "queries": args.queries}
    report = summarize_dataset(found, names, **facts, errors=map(str, errors), warnings=warnings)
    folder = args.output or Path("output") / "check_dataset" / name.replace("/", "_")
    with_objects = [record for record, summary in zip(records, found, strict=True) if summary.classes]
    videos = {"videos": video_report(listed)} if holds_videos(metadata) else {}
    report = {"dataset": name, **videos, **report, "samples": []}
    try:
        report["samples"] = draw_samples(with_objects, metadata, folder)
    except OSError as error:  # the report is not lost
        report["samples_error"] = str(error)
    return report


def report_text(report: dict[str, Any]) -> str:
    """Return the report as text for people; names are escaped and shortened."""
    report = _with_legible_names(report)
    broken = report["broken"]
    title = f"BROKEN RECORDS: {broken['count']}" if broken["count"] else "no record is broken"
    parts = [
        tabulate(_overview(report), tablefmt="plain"),
        _size_table(report["object_sizes"]),
        _class_table(report),
        *(_listed(f"{kind}: {found['count']}", found) for kind, found in report["warnings"].items()),
        _listed(title, broken),
    ]
    return "\n\n".join(filter(None, parts))


def _with_legible_names(value: Any) -> Any:
    if isinstance(value, dict):
        return {legible(key): _with_legible_names(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_legible_names(item) for item in value]
    return legible(value) if isinstance(value, str) else value


def _overview(report: dict[str, Any]) -> list[list[Any]]:
    objects, share = report["objects_in_an_image"], report["share_of_pixels_without_class"]
    sizes, size_line = report["image_sizes"], "none could be read"
    if sizes:
        chosen = (sizes[key] for key in ("smallest", "largest", "commonest"))
        least, largest, usual = (f"{width} x {height}" for height, width in chosen)
        size_line = (
            f"{sizes['different']} different, from {least} to {largest} (width x height); "
            f"most often {usual} ({sizes['images_of_commonest']})"
        )
    more = objects["images_with_more_than_queries"]
    most = f"{objects['most']}, in {objects['most_in']}" if objects["most"] else "0"
    forms = ", ".join(f"{count} {form}" for form, count in report["representation"].items())
    return [
        ["dataset", report["dataset"]],
        *_video_rows(report.get("videos")),
        ["images", report["images"]],
        ["sizes", size_line],
        ["annotations", forms or "none: images alone"],
        ["without objects", report["images_without_objects"]],
        ["crowd regions", report["crowd_regions"]],
        ["objects", f"{objects['mean'] or 0:.1f} an image, at most {most}"],
        ["queries", f"{objects['queries']}; images with more objects: {more}"],
        *([] if share is None else [["pixels without class", f"{share:.2%}"]]),
    ]


def _video_rows(videos: dict[str, Any] | None) -> list[list[Any]]:
    if videos is None:
        return []
    frames, tracks = videos["frames_in_a_video"], videos["tracks_in_a_video"]
    crowds = plural(videos["crowds"], "crowd")
    return [
        ["videos", f"{videos['count']}, of {frames['least']} to {frames['most']} frames"],
        ["tracks", f"{videos['tracks']}, at most {tracks['most']} in a video, and {crowds}"],
    ]


def _size_table(groups: dict[str, Any]) -> str:
    if not groups:
        return ""
    rows = [{"size": group, **found, **found["area"]} for group, found in groups.items()]
    table = tabulate([{key: row[key] for key in row if key != "area"} for row in rows], headers="keys")
    return f"{table}\n(small: below 32 x 32 pixels, large: above 96 x 96; then areas in pixels)"


def _class_table(report: dict[str, Any]) -> str:
    classes, unseen = report["classes"], report["never_seen"]
    cells = [[entry["name"], entry["images"], entry["objects"]] for entry in classes if entry["objects"]]
    length = max(1, -(-len(cells) // CLASS_COLUMNS))
    rows = [[cell for entry in cells[i::length] for cell in entry] for i in range(length)]
    heads = ["class", "images", "objects"] * min(CLASS_COLUMNS, len(cells))
    never = f"never seen, {len(unseen)} of {len(classes)}: {examples(unseen, SHOWN)}" if unseen else ""
    return "\n".join(filter(None, [tabulate(rows, heads) if cells else "", never]))


def _listed(title: str, examples: dict[str, Any]) -> str:
    """Return a title, the first examples below it, and the number of the others."""
    others = examples["count"] - len(examples["first"])
    return "\n  ".join([title, *examples["first"], *([f"and {others} more"] if others else [])])


@tolerant_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see its `--help`."""
    return run(parse_arguments(argv))


def run(args: argparse.Namespace) -> int:
    """Print the report on the dataset that the flags name, and return the exit code."""
    set_pixel_limit(args.max_megapixels)
    try:
        report = check(args)
    except (ValueError, OSError) as error:
        print_error(error)
        return 2
    except BrokenProcessPool:
        print_error("a process was killed, perhaps out of memory; try fewer --workers")
        return 1
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        print(report_text(report) + "\n")
        samples = map(legible, report["samples"])
        print("\n  ".join([f"samples drawn: {len(report['samples'])}", *samples]))
    if lost := report.get("samples_error"):
        print_error(lost)
    return int(report["broken"]["count"] > 0 or bool(lost))


if __name__ == "__main__":
    sys.exit(run_alias("python -m mask2former.tools.check_dataset", "check-dataset", main))
