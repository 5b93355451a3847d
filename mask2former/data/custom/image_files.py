"""Images that a COCO JSON names, found below the folder of images.

Annotation tools write paths of their own: `../media/upload/4/1.png`, `project/images/1.png`, `s3://bucket/1.png`.
Such a path is taken for the file of its name, if there is one only, whatever its letter case. No path leads
out of the folder.
"""

from __future__ import annotations

import logging
import posixpath
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from mask2former.data.errors import DatasetError, examples, first_few
from mask2former.utils import coco_values as values
from mask2former.utils.coco_values import Row
from mask2former.utils.image_io import EXTENSIONS
from mask2former.utils.messages import brief
from mask2former.utils.storage import PathLike, alike, files_below, names_in, to_path

logger = logging.getLogger(__name__)

FOLDERS = ("", ".", "..")
PATH, NAME, ALIKE = "path", "name", "alike"  # by what a file is found


def image_finder(
    rows: Iterable[Row], image_root: PathLike, json_file: PathLike, *, anywhere: bool = True
) -> Callable[[Row], str]:
    """Return a function from a row with a `file_name` to the path of its file below `image_root`.

    With `anywhere` a path may have a prefix that is not there; without, only its letter case may differ. It
    raises DatasetError if several files may be meant; a file that does not exist is no error here. Warns of
    paths that are not there as they are written.
    """
    root = to_path(image_root)
    names = dict.fromkeys(row["file_name"] for row in rows if isinstance(row.get("file_name"), str))
    present = _present(root, [*names])
    candidates = _candidates(root, [name for name in names if name not in present], anywhere)
    claims = Counter([*present.values(), *(files[0] for files in candidates.values() if len(files) == 1)])
    assumed = {
        name: files[0] for name, files in candidates.items() if [claims[file] for file in files] == [1]
    }
    if assumed:
        pairs = examples([f"{brief(name)} = {file}" for name, file in assumed.items()])
        what = "are taken for the only file of their name, in any letter case"
        message = "%s: %d of %d files %s, below %s: %s"
        logger.warning(message, json_file, len(assumed), len(names), what, image_root, pairs)
    found = {**present, **assumed}

    def find(row: Row) -> str:
        name = values.text(row, "file_name")
        if _last_part(name) in FOLDERS:
            raise DatasetError(f"'file_name' is {brief(name)}, which is a folder")
        if name not in found and (files := candidates.get(name)):
            what = "files of its name there" if len(files) > 1 else "the file of its name is another one's"
            where = f"'file_name' {brief(name)} does not exist below {image_root}"
            raise DatasetError(f"{where}; {what}: {first_few(files)}")
        return found.get(name) or _inside(root, name) or _last_part(name)

    return find


def is_below(root: Path, name: str) -> bool:
    """Return True if there is a file of that path below the folder, in any letter case."""
    return bool(_present(root, [name]) or _candidates(root, [name], anywhere=False))


def _present(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the paths below the folder of the names that exist there; each folder is listed once."""
    contents: dict[Path, set[str]] = {}
    found = {}
    for name in names:
        for written in dict.fromkeys((name, _with_slashes(name))):
            path = _inside(root, written)
            if path is None:
                continue
            folder = (root / path).parent
            if folder not in contents:
                contents[folder] = names_in(folder)
            if posixpath.basename(path) in contents[folder]:
                found[name] = path
                break
    return found


def _inside(root: Path, name: str) -> str | None:
    """Return a path relative to the folder; None if it leads out of the folder, or to the folder itself."""
    path = PurePosixPath(name)
    if path.is_absolute():
        start = PurePosixPath(root.absolute())
        if not path.is_relative_to(start):
            return None
        path = path.relative_to(start)
    normal = posixpath.normpath(path)
    return None if normal == "." or normal.split("/")[0] == ".." else normal


def _candidates(root: Path, names: Iterable[str], anywhere: bool) -> dict[str, list[str]]:
    """Return for each name the files below the folder that it may mean, if there are.

    These are the files of the same path in another letter case; or else, with `anywhere`, those with the same
    last part at any depth; or else those with the same last part in another letter case.
    """
    names = [*names]
    files = defaultdict(list)  # by each of the three
    for path in files_below(root, EXTENSIONS) if names else ():
        relative = path.relative_to(root).as_posix()
        for key in {(PATH, alike(relative)), (NAME, path.name), (ALIKE, alike(path.name))}:
            files[key].append(relative)
    keys = {name: _keys(root, name, anywhere) for name in names}
    found = {name: next((files[key] for key in keys[name] if key in files), []) for name in names}
    return {name: sorted(paths) for name, paths in found.items() if paths}


def _keys(root: Path, name: str, anywhere: bool) -> list[tuple[str, str]]:
    """Return the keys of the files that a name may mean, the likeliest first."""
    path, parts = _inside(root, _with_slashes(name)), _last_parts(name) if anywhere else []
    return [
        *([(PATH, alike(path))] if path else []),
        *((NAME, part) for part in parts),
        *((ALIKE, alike(part)) for part in parts),
    ]


def _last_parts(name: str) -> list[str]:
    """Return what may be the name of the file: the last part as written, or that of a URL, decoded."""
    decoded = unquote(name)
    return [_last_part(text) for text in (name, decoded, decoded.partition("?")[0])]


def _last_part(name: str) -> str:
    return posixpath.basename(_with_slashes(name))


def _with_slashes(name: str) -> str:
    return name.replace("\\", "/")
