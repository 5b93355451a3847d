"""Read and write files on local disk or at a URL `scheme://...`, through one iopath PathManager.

    from mask2former.storage import path_manager
    path_manager.register_handler(S3PathHandler())

`to_path` turns either into a path object. Every access to a URL is retried if it fails, and raises OSError if
it keeps failing.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import shutil
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PosixPath
from typing import Any, NoReturn, TypeVar
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, url2pathname, urlopen

from iopath.common.file_io import HTTPURLHandler, PathHandler, PathManager, get_cache_dir

logger = logging.getLogger(__name__)
T = TypeVar("T")
PathLike = str | os.PathLike[str]

WAITS = (0.02, 0.2, 1.0, 5.0)  # seconds between attempts
CONNECT_SECONDS = 10.0  # in which a host must answer
# Errors that are not retried
PERMANENT = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
MISTAKES = (AssertionError, AttributeError, NotImplementedError, TypeError, ValueError)
PERMANENT_STATUS = (400, 401, 403, 404, 410)  # of HTTP
MAX_KINDS, MAX_SUFFIX = 5, 20  # suffixes, and characters of one, that a message lists
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")  # at least two letters: `C:` is a drive
FILE = "file:/"
DETECTRON2, DETECTRON2_HOST = "detectron2://", "dl.fbaipublicfiles.com"


class UnknownScheme(PathHandler):
    """Fallback handler that raises an error with advice."""

    def _get_supported_prefixes(self) -> list[str]:
        return [""]  # iopath tries longer prefixes first

    def _refuse(self, path: str, *_: Any, **__: Any) -> NoReturn:
        scheme = path.partition("://")[0]
        raise ValueError(
            f"{path}: no handler for {scheme}:// is registered; pass iopath's handler to "
            "mask2former.storage.path_manager.register_handler (docs/storage.md)"
        )

    _open = _get_local_path = _exists = _isfile = _isdir = _ls = _mkdirs = _refuse


class WebFiles(HTTPURLHandler):
    """Handler of web URLs: `open` reads the current content, `get_local_path` downloads to iopath's cache."""

    def _get_supported_prefixes(self) -> list[str]:
        return [*super()._get_supported_prefixes(), DETECTRON2]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **_: Any) -> Any:
        return urlopen(web_url(path))

    def _get_local_path(self, path: str, force: bool = False, cache_dir: str | None = None, **_: Any) -> str:
        url = web_url(path)
        return super()._get_local_path(url, force, cache_dir or web_cache(url))


def web_url(path: str) -> str:
    """Replace the `detectron2://` of a URL, if it has that, by the web host it stands for."""
    return path.replace(DETECTRON2, f"https://{DETECTRON2_HOST}/detectron2/", 1)


def web_cache(url: str) -> str:
    """Return the folder that keeps downloads of a URL's host: `model_final.pth` is the file name of many.

    Files of Detectron2's own host are kept where Detectron2 keeps them.
    """
    host, root = urlparse(url).netloc, get_cache_dir()
    return root if host == DETECTRON2_HOST else os.path.join(root, host.replace(":", "_"))


path_manager = PathManager()
path_manager.register_handler(UnknownScheme())
path_manager.register_handler(WebFiles())


def is_remote(path: PathLike) -> bool:
    """Return True if `path` is a URL, also one that went through `Path`, which drops one of its slashes."""
    return SCHEME.match(os.fspath(path)) is not None and not os.fspath(path).startswith(FILE)


def to_path(path: PathLike) -> Path:
    """Return a `RemotePath` for a URL, else a local path with `~` expanded; `file://` is local."""
    if os.fspath(path).startswith(FILE):
        return Path(url2pathname(urlparse(os.fspath(path)).path))
    return RemotePath(path) if is_remote(path) else Path(path).expanduser()


def to_file(path: PathLike) -> Path:
    """Return `to_path(path)`, which can be opened as a file.

    Raises:
        OSError: it is a named pipe, a socket or a device, whose reading may never end.
    """
    file = to_path(path)
    if not is_remote(path) and file.exists() and not (file.is_file() or file.is_dir()):
        raise OSError(f"{path}: is not a regular file but a pipe, socket or device")
    return file


class RemotePath(PosixPath):
    """URL with the interface of a path, for reading only."""

    def __str__(self) -> str:
        return SCHEME.sub(r"\1://", super().__str__(), count=1)

    def absolute(self) -> RemotePath:
        """Return the URL as it is."""
        return self

    expanduser = absolute

    def open(self, mode: str = "r", buffering: int = -1, encoding: Any = None, *_: Any, **__: Any) -> Any:
        """Return the content as a stream in memory. It is read at once: only a whole read can be retried."""
        assert mode in ("r", "rb")
        content = io.BytesIO(retry(self._read))
        return content if mode == "rb" else io.TextIOWrapper(content, encoding or "utf-8")

    def _read(self) -> bytes:
        with path_manager.open(str(self), "rb") as file:
            return bytes(file.read())

    def exists(self, **_: Any) -> bool:
        """Return True if there is a file or a folder."""
        return self.is_file() or self.is_dir()

    def is_file(self, **_: Any) -> bool:
        """Return True if there is a file, or if the handler cannot answer that."""
        try:
            return retry(lambda: path_manager.isfile(str(self)))
        except NotImplementedError:
            return True

    def is_dir(self, **_: Any) -> bool:
        """Return True if there is a folder; in an object store, a prefix with objects below it."""
        try:
            return retry(lambda: path_manager.isdir(self._folder)) or any(self.iterdir())
        except (NotImplementedError, *PERMANENT):
            return False

    def iterdir(self) -> Generator[RemotePath, None, None]:
        """Yield the entries of the folder."""
        # Handlers list names or whole keys, some also the key of the folder itself
        for found in retry(lambda: path_manager.ls(self._folder)):
            if not self._folder.endswith(f"/{found}"):
                yield self / found.rstrip("/").rpartition("/")[2]

    @property
    def _folder(self) -> str:
        """Return the URL with the trailing slash that handlers of object stores expect of a folder."""
        return f"{self}/"


def files_below(root: PathLike, extensions: Collection[str] | None = None) -> Iterator[Path]:
    """Yield the files, or those with one of the suffixes, at any depth, without hidden files and folders.

    Links to a folder above are not followed.
    """
    folder = to_path(root)
    if folder.is_dir():
        yield from _files_below(folder, extensions, (os.path.realpath(folder),))


def _files_below(folder: Path, extensions: Collection[str] | None, above: tuple[str, ...]) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if extensions is not None and path.suffix.lower() in extensions:
            yield path
        elif path.is_dir():
            if (real := os.path.realpath(path)) not in above:
                yield from _files_below(path, extensions, (*above, real))
        elif extensions is None:
            yield path


def contents_of(folder: PathLike) -> str:
    """Return what lies below a folder, for a message, as "it holds 3 .heic, 1 .txt"."""
    counts = Counter(path.suffix.lower()[:MAX_SUFFIX] for path in files_below(folder))
    kinds = sorted(counts, key=lambda suffix: (-counts[suffix], suffix))
    listed = [f"{counts[suffix]} {suffix or 'without a suffix'}" for suffix in kinds[:MAX_KINDS]]
    more = f" and {len(kinds) - MAX_KINDS} other kinds" if len(kinds) > MAX_KINDS else ""
    return f"it holds {', '.join(listed)}{more}" if listed else "it holds no file"


def is_file(path: Path) -> bool:
    """Return True if there is such a file; a name longer than the file system allows is none."""
    return _unless_too_long(path.is_file)


def _unless_too_long(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def alike(name: str) -> str:
    """Return a name without what differs between tools and systems: letter case, and the form of accents.

    Where the locale is not UTF-8, as in C, Python reads the bytes of a name as half characters.
    """
    with suppress(UnicodeEncodeError):  # half characters that are no bytes
        name = name.encode(errors="surrogateescape").decode(errors="surrogateescape")
    return unicodedata.normalize("NFC", name).casefold()


def only_alike(wanted: Iterable[str], present: Iterable[str]) -> dict[str, str]:
    """Return for wanted names the present one that is alike, where there is one of each only."""
    wanted_by_key, present_by_key = _by_key(wanted), _by_key(present)
    return {
        names[0]: others[0]
        for key, names in wanted_by_key.items()
        if len(names) == len(others := present_by_key.get(key, [])) == 1
    }


def _by_key(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(alike(name), []).append(name)
    return found


def names_in(folder: Path) -> set[str]:
    """Return the names in a folder; an empty set if the folder does not exist."""
    return {path.name for path in folder.iterdir()} if _unless_too_long(folder.is_dir) else set()


def require_connection(url: str) -> None:
    """Check that the host of a web URL answers. Without internet, a download may fail only after minutes.

    Raises:
        ConnectionError: it does not.
    """
    try:
        urlopen(Request(url, method="HEAD"), timeout=CONNECT_SECONDS).close()
    except HTTPError:
        return  # it answers; the download has the reason
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ConnectionError(f"{urlparse(url).netloc} cannot be reached: {reason}") from error


def local_copy(path: PathLike) -> Path:
    """Return the local file itself, or the copy of a remote file that its handler makes and may cache."""
    url = str(to_path(path))
    return Path(retry(lambda: path_manager.get_local_path(url)))


def download(url: Path, file: Path) -> None:
    """Copy the current content of `url` to a local file, creating its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)

    def copy() -> None:
        with path_manager.open(str(url), "rb") as source, open(file, "wb") as target:
            shutil.copyfileobj(source, target)

    retry(copy)


def upload(file: Path, url: Path) -> None:
    """Copy a local file to `url`, creating its folder and overwriting what is there."""

    def copy() -> None:
        path_manager.mkdirs(f"{url.parent}/")
        if path_manager.copy_from_local(str(file), str(url), overwrite=True) is False:  # some do not raise
            raise OSError(f"{url}: its handler could not copy {file} there")

    retry(copy)


def remove(url: Path) -> None:
    """Delete a remote file if its handler can delete."""
    with suppress(NotImplementedError):
        retry(lambda: path_manager.rm(str(url)))


def retry(action: Callable[[], T]) -> T:
    """Return the result of `action`, retried after errors that may be transient."""
    for wait in (*WAITS, None):
        try:
            return action()
        except PERMANENT + MISTAKES:
            raise
        except Exception as error:  # clients of object stores have their own error classes
            if wait is None or getattr(error, "code", None) in PERMANENT_STATUS:
                raise OSError(str(error)) from error
            logger.warning("%s; retrying in %g s", error, wait)
            time.sleep(wait)
    raise AssertionError
