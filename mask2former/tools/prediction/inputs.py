"""Files that `mask2former predict` reads and writes: what `--input` stands for, and names of overlays."""

import glob
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import urlparse

from mask2former.data.errors import examples
from mask2former.utils.image_io import EXTENSIONS
from mask2former.utils.storage import is_remote

logger = logging.getLogger(__name__)


def find_images(inputs: Iterable[str]) -> list[str]:
    """Return the images that files, folders, globs and URLs stand for, in order.

    Other files of a folder are left out with a warning. A folder or glob without images is returned as it is:
    reading it fails with a message that names it.

    Raises:
        ValueError: an input is empty, as an unset variable of the shell.
    """
    images = []
    for item in inputs:
        if not item:
            raise ValueError("--input is '', which is no path")
        if Path(item).is_dir():
            files = _images_in(Path(item))
        elif is_remote(item) or Path(item).exists():
            files = [item]
        else:
            files = sorted(glob.glob(item, recursive=True))
        images += files or [item]
    return images


def _images_in(folder: Path) -> list[str]:
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    images = sorted(str(path) for path in visible if path.suffix.lower() in EXTENSIONS)
    others = [path.name for path in visible if path.is_file() and path.suffix.lower() not in EXTENSIONS]
    if images and others:
        message = "%s: left out %d files whose suffix is not that of an image: %s"
        logger.warning(message, folder, len(others), examples(sorted(others)))
    return images


def output_paths(images: Sequence[str], output: str) -> list[Path]:
    """Return the path of each overlay: in the folder `output`, or `output` itself if it names an image.

    Raises:
        ValueError: one file for several overlays, or an overlay would overwrite one of the images.
    """
    target = Path(output)
    if target.suffix.lower() in EXTENSIONS and not target.is_dir():
        if len(images) > 1:
            raise ValueError(f"--output {output} is one file for {len(images)} images; give a folder")
        paths = [target]
    else:
        paths = _paths_in(target, images)
    sources = {Path(image).resolve() for image in images if not is_remote(image)}
    for path in paths:
        if path.resolve() in sources:
            raise ValueError(f"the overlay {path} would overwrite the image itself; give another --output")
    return paths


def _paths_in(folder: Path, images: Sequence[str]) -> list[Path]:
    paths: dict[Path, None] = {}  # in order, with quick look-up for a folder of thousands
    for image in images:
        name = Path(urlparse(image).path if is_remote(image) else image)
        suffix = name.suffix if name.suffix.lower() in EXTENSIONS else ".png"
        number, path = 1, folder / f"{name.stem}{suffix}"
        while path in paths:
            number, path = number + 1, folder / f"{name.stem}_{number + 1}{suffix}"
        paths[path] = None
    return list(paths)
