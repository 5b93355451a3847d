"""The command `python -m mask2former.tools.check_dataset`: can a dataset be trained on, what does it hold?

Every image is decoded and every annotation made into masks, by the code that training uses. A broken record
is reported and the rest go on. Eight samples are drawn with their ground truth: a look at them shows what no
program sees.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from mask2former.data import DatasetCatalog, DatasetError, Metadata, MetadataCatalog
from mask2former.data.catalog import Record
from mask2former.data.checks.record import RecordFacts, Warned, look_into, task_of
from mask2former.data.checks.summary import SHARED, Statistics, repeated
from mask2former.data.custom.dataset import forget, register_files
from mask2former.data.custom.duplicates import shared_images
from mask2former.data.errors import errors_collected
from mask2former.data.ground_truth.geometry import View
from mask2former.data.mapper import record_image
from mask2former.utils.image_io import write_image
from mask2former.utils.label_maps import IGNORE_LABEL
from mask2former.utils.visualize import (
    Array,
    Color,
    class_colors,
    draw_regions,
    enlarge,
    legible_scale,
    mask_regions,
)

SAMPLES = 8
CHUNK = 16  # records that a process is given at a time
CLASS_COLUMNS = 3
OWN = "own"  # the name of what is given by its files
Sample = tuple[Record, Metadata]


def whole_number(text: str) -> int:
    """A number from 1 on, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it is a whole number, at least 1, not '{text}'")
    return int(text)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Which dataset is to be checked: one known by name, or files."""
    parser = argparse.ArgumentParser(
        description="Read a dataset as training does, tell what it holds and what is broken, draw samples.",
        epilog="Exit code 0: all is well; 1: records are broken; 2: no such dataset, or wrong flags.",
    )
    flag = parser.add_argument
    flag("name", nargs="?", metavar="NAME", help="a dataset known by name, such as coco_2017_train")
    flag("--images", metavar="DIR", help="instead of a name: the images of your own data,")
    flag("--annotations", metavar="FILE_OR_DIR", help="its COCO JSON, or folder of label PNGs,")
    flag("--classes", metavar="FILE", help="and the names of its classes, where those do not tell")
    flag("--against", metavar="NAME", help="another dataset that should share no image with this one")
    flag("--output", metavar="DIR", type=Path, help="where samples go (default: output/check_dataset/NAME)")
    flag("--limit", metavar="N", type=whole_number, help="look at the first N records only")
    flag("--workers", metavar="N", type=whole_number, default=os.cpu_count() or 1, help="processes")
    flag("--queries", metavar="N", type=whole_number, default=100, help="of the model (default: 100)")
    flag("--json", action="store_true", help="print the card as JSON")
    args = parser.parse_args(argv)
    if bool(args.name) == bool(args.images or args.annotations):
        parser.error("give either the NAME of a dataset, or --images and --annotations")
    if not args.name and not (args.images and args.annotations):
        parser.error("--images and --annotations belong together")
    if args.classes and args.name:
        parser.error("--classes belongs to --images and --annotations; what has a name has its classes")
    return args


def checked(records: Sequence[Record], metadata: Metadata, workers: int) -> Iterator[RecordFacts]:
    """What each record holds, in order, with progress."""
    look = partial(look_into, metadata=metadata)
    progress = partial(tqdm, total=len(records), unit="image", disable=None)
    if workers == 1:
        yield from progress(map(look, records))
        return
    with ProcessPoolExecutor(workers, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        yield from progress(pool.map(look, records, chunksize=CHUNK))


def complete_metadata(name: str, records: Iterable[Record]) -> tuple[Metadata, list[str]]:
    """The facts about a dataset, with an ignore label in any case, and the names of its classes.

    Raises:
        DatasetError: records are annotated, and the metadata has no names for their classes.
    """
    facts = MetadataCatalog.get(name).snapshot()
    facts.ignore_label = facts.get("ignore_label", IGNORE_LABEL)
    task = next(filter(None, map(task_of, records)), None)
    names = facts.get(task.names_fact) if task else []
    if names is None:
        raise DatasetError(f"the metadata of '{name}' has no '{task.names_fact}'")  # type: ignore[union-attr]
    return facts, list(names)


def examine(
    records: Sequence[Record], metadata: Metadata, names: Sequence[str], workers: int
) -> tuple[Statistics, list[int]]:
    """The statistics of records, and which of them show objects and are sound."""
    things = metadata.get("thing_dataset_id_to_contiguous_id", {}).values()
    is_panoptic = any("pan_seg_file_name" in record for record in records)
    statistics = Statistics(names, frozenset(things) if is_panoptic else None)
    telling = []
    for i, facts in enumerate(checked(records, metadata, workers)):
        statistics.add(facts)
        telling += [i] if facts.classes else []
    for warned in repeated(records):
        statistics.add_warning(warned)
    return statistics, telling


def class_palette(metadata: Metadata, names_fact: str, num_classes: int) -> list[Color]:
    """The colors that the dataset has for its classes, else ours."""
    given = metadata.get(names_fact.replace("classes", "colors")) or ()
    return [tuple(color) for color in given] if len(given) == num_classes else class_colors(num_classes)


def draw_truth(record: Record, metadata: Metadata) -> Array:
    """The image (H, W, 3) with the regions that training would be shown, enlarged where it is tiny."""
    image, task = record_image(record), task_of(record)
    assert task is not None
    segments = task.reader(record, metadata, image.shape[:2])
    which, masks = segments.visible(View.whole(*image.shape[:2]))
    names = metadata.get(task.names_fact)
    classes = segments.classes[which].tolist()
    regions = mask_regions(masks, classes, names, class_palette(metadata, task.names_fact, len(names)))
    scale = legible_scale(image)
    enlarged = [region._replace(mask=enlarge(region.mask, scale)) for region in regions]
    return draw_regions(enlarge(image, scale), enlarged)


def draw_samples(records: Sequence[Record], metadata: Metadata, folder: Path) -> list[Path]:
    """Draw some of the records, spread evenly; the files."""
    chosen = np.unique(np.linspace(0, len(records) - 1, min(SAMPLES, len(records))).astype(int))
    paths = [folder / f"sample_{n}_{Path(records[i]['file_name']).stem}.png" for n, i in enumerate(chosen, 1)]
    for path, i in zip(paths, chosen, strict=True):
        write_image(path, draw_truth(records[i], metadata))
    return paths


def card_text(card: dict[str, Any]) -> str:
    """The card as people read it."""
    parts = [
        tabulate(_overview(card), tablefmt="plain"),
        _size_table(card["object_sizes"]),
        _class_table(card),
    ]
    for kind, warned in card["warnings"].items():
        parts.append(_listed(f"{kind}: {warned['count']}", warned["first"], warned["count"]))
    broken = card["broken"]["count"]
    title = f"BROKEN RECORDS: {broken}" if broken else "no record is broken"
    parts.append(_listed(title, card["broken"]["first"], broken))
    return "\n\n".join(filter(None, parts))


def _overview(card: dict[str, Any]) -> list[list[Any]]:
    objects, share = card["objects_in_an_image"], card["share_of_pixels_without_class"]
    most = f"{objects['most']}, in {objects['most_in']}" if objects["most"] else "0"
    forms = ", ".join(f"{count} {form}" for form, count in card["representation"].items())
    return [
        ["dataset", card["dataset"]],
        ["images", card["images"]],
        ["sizes", _size_line(card["image_sizes"])],
        ["annotations", forms or "none: images alone"],
        ["without objects", card["images_without_objects"]],
        ["crowd regions", card["crowd_regions"]],
        ["objects", f"{objects['mean'] or 0:.1f} an image, at most {most}"],
        [
            "queries",
            f"{objects['queries']}; images with more objects: {objects['images_with_more_than_queries']}",
        ],
        *([] if share is None else [["pixels without class", f"{share:.2%}"]]),
    ]


def _size_line(sizes: dict[str, Any]) -> str:
    if not sizes:
        return "none could be read"
    smallest, largest, commonest = (
        f"{sizes[which][1]} x {sizes[which][0]}" for which in ("smallest", "largest", "commonest")
    )
    return (
        f"{sizes['different']} different, from {smallest} to {largest} (width x height); "
        f"most often {commonest} ({sizes['images_of_commonest']})"
    )


def _size_table(groups: dict[str, Any]) -> str:
    rows = [
        [group, *(value for key, value in facts.items() if key != "area"), *facts["area"].values()]
        for group, facts in groups.items()
    ]
    if not rows:
        return ""
    facts = next(iter(groups.values()))
    heads = ["size", *(key for key in facts if key != "area"), *facts["area"]]
    return (
        f"{tabulate(rows, heads)}\n(small: below 32 x 32 pixels, large: above 96 x 96; then areas in pixels)"
    )


def _class_table(card: dict[str, Any]) -> str:
    classes, unseen = card["classes"], card["never_seen"]
    if not classes:
        return ""
    cells = [[entry["name"], entry["images"], entry["objects"]] for entry in classes if entry["objects"]]
    length = max(1, -(-len(cells) // CLASS_COLUMNS))
    rows = [[cell for entry in cells[i::length] for cell in entry] for i in range(length)]
    heads = ["class", "images", "objects"] * min(CLASS_COLUMNS, len(cells))
    never = f"never seen, {len(unseen)} of {len(classes)}: {', '.join(unseen)}" if unseen else ""
    return "\n".join(filter(None, [tabulate(rows, heads) if cells else "", never]))


def _listed(title: str, items: Sequence[str], count: int = 0) -> str:
    """A title and, below it, the items; `count` says how many there are in truth."""
    more = [f"and {count - len(items)} more"] if count > len(items) else []
    return "\n  ".join([title, *items, *more])


def overlap(records: Sequence[Record], other: str) -> list[Warned]:
    """A warning for each image that the dataset `other` holds too.

    Raises:
        DatasetError: there is no such dataset, or it cannot be read.
    """
    with errors_collected():  # what is broken there is not asked
        others = DatasetCatalog.get(other)
    ours, theirs = ([r["file_name"] for r in some if "file_name" in r] for some in (records, others))
    return [Warned(SHARED, f"{a}: {b}") for a, b in shared_images(ours, theirs)]


def name_custom_data(images: str, annotations: str, classes: str | None) -> str:
    """Make files known by a name, which is returned. What is broken among them, the records will show."""
    forget(OWN)
    with errors_collected():
        register_files(OWN, images, annotations, classes)
    return OWN


def check(args: argparse.Namespace) -> dict[str, Any]:
    """The card of the dataset that the flags name; its samples are drawn.

    Raises:
        DatasetError: there is no such dataset, or its files as a whole cannot be read.
    """
    name = args.name or name_custom_data(args.images, args.annotations, args.classes)
    with errors_collected() as errors:
        records = DatasetCatalog.get(name)
    records = records[: args.limit]
    metadata, names = complete_metadata(name, records)
    shared = overlap(records, args.against) if args.against else []
    statistics, telling = examine(records, metadata, names, args.workers)
    for warned in shared:
        statistics.add_warning(warned)
    for error in errors:
        statistics.add_broken(str(error))
    folder = args.output or Path("output") / "check_dataset" / name.replace("/", "_")
    samples = draw_samples([records[i] for i in telling], metadata, folder)
    return {"dataset": name, **statistics.card(args.queries), "samples": [str(path) for path in samples]}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: all is well; 1: records are broken; 2: no such dataset, or wrong flags."""
    args = parse_arguments(argv)
    try:
        card = check(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenProcessPool:
        print("error: a process was killed, perhaps for want of memory; try fewer --workers", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(card, indent=1))
    else:
        print(card_text(card) + "\n")
        print(_listed(f"samples drawn: {len(card['samples'])}", card["samples"]))
    return int(card["broken"]["count"] > 0)


if __name__ == "__main__":
    sys.exit(main())
