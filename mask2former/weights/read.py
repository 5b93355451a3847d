"""Reading of weights: finding a file, given by its path or by a URL, and handing out what it holds.

URLs are those that `mask2former.utils.storage` reads, `detectron2://` included.
"""

import difflib
import logging
from pathlib import Path
from urllib.parse import urlparse

from iopath.common.file_io import get_cache_dir

from mask2former.utils.storage import (
    is_remote,
    local_copy,
    names_in,
    require_connection,
    to_path,
    web_cache,
    web_url,
)
from mask2former.weights import model_zoo
from mask2former.weights.contents import Checkpoint, WeightsError, read_file
from mask2former.weights.hub.folder import is_hub_folder, read_folder

__all__ = ["Checkpoint", "WeightsError", "find_file", "local_file", "read_checkpoint"]

logger = logging.getLogger(__name__)

FINAL = "model_final.pth"  # the last checkpoint of a run


def local_file(source: str | Path) -> Path:
    """Return the local file, downloaded if `source` is a URL that is not in the cache yet.

    Raises:
        WeightsError: the file does not exist or cannot be downloaded.
    """
    file = find_file(source)
    if not is_remote(source):
        return file
    url = web_url(str(source))
    if model_zoo.is_published(url) and not file.is_file():
        logger.warning("%s", model_zoo.license_notice(url))
    try:
        return local_copy(source)
    except (OSError, ValueError) as error:
        raise _not_downloaded(source, file, error) from error


def find_file(source: str | Path) -> Path:
    """Return the path of a local file, or the one that a URL is downloaded to. Nothing is read yet.

    Raises:
        WeightsError: the file does not exist, or the host of the URL cannot be reached.
    """
    if not is_remote(source):
        return _existing(to_path(source))
    url = web_url(str(source))
    scheme, _, path, *_ = urlparse(url)
    if ".." in path.split("/"):  # iopath would follow it out of its cache
        raise WeightsError(source, "a URL must not contain '..'")
    cached = Path(web_cache(url), path.lstrip("/"))
    if scheme in ("http", "https") and not cached.is_file():
        try:
            require_connection(url)
        except ConnectionError as error:
            raise _not_downloaded(source, cached, error) from error
    return cached


def _not_downloaded(source: str | Path, cached: Path, error: Exception) -> WeightsError:
    advice = f"download it by other means and type MODEL.WEIGHTS {cached.name}, or copy it to {cached}"
    return WeightsError(source, f"cannot be downloaded ({error}); {advice}")


def _existing(file: Path) -> Path:
    if file.is_file() or is_hub_folder(file):
        return file
    if file.is_dir():
        final = file / FINAL
        advice = f"; type {final}" if final.is_file() else ""
        raise WeightsError(file, f"is a folder, not a file of weights{advice}")
    if file.exists():
        raise WeightsError(file, "is not a regular file but a pipe, socket or device")
    reason = "no such file"
    if near := difflib.get_close_matches(file.name, names_in(file.parent), n=3):
        reason += f"; in {file.parent} there is {', '.join(near)}"
    if published := model_zoo.published_name(file.as_posix()):
        url = model_zoo.find_model(published).weights
        reason += f"; of the published model '{published}', the weights are {url}"
    if model := model_zoo.model_of_weights(file.name):
        reason += f"; it belongs to the published model '{model.name}': set MODEL.WEIGHTS to {model.weights}"
    if origin := model_zoo.backbone_origin(file.name):
        reason += f"; it is converted from {origin}, which can be read itself: set MODEL.WEIGHTS to {origin}"
    raise WeightsError(file, reason)


def read_checkpoint(source: str | Path) -> Checkpoint:
    """Read a file of weights from a path or a URL, or a folder in transformers' form.

    Raises:
        WeightsError: the file does not exist, is empty, truncated or not a checkpoint, holds no weights, or
            holds code or objects (nothing of which is executed). A bad download is deleted from the cache.
    """
    file = local_file(source)
    try:
        return read_folder(file) if file.is_dir() else read_file(file, str(source))
    except WeightsError as error:
        if is_remote(source) and file.is_relative_to(get_cache_dir()):
            file.unlink()
            raise WeightsError(source, f"{error.reason} (the download was deleted)") from error
        raise
