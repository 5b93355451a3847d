"""Files wherever they lie: on this machine, or at an address `scheme://…` that a handler of iopath's reads.

    from mask2former.utils.storage import path_manager
    path_manager.register_handler(S3PathHandler())

`located` makes a path of either; what is done with an address is tried again when it fails.
"""

from __future__ import annotations

import io
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import suppress
from pathlib import Path, PosixPath
from typing import Any, NoReturn, TypeVar

from iopath.common.file_io import HTTPURLHandler, PathHandler, PathManager

logger = logging.getLogger(__name__)
T = TypeVar("T")
PathLike = str | os.PathLike[str]

WAITS = (0.02, 0.2, 1.0, 5.0)  # seconds between tries
LASTING = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
MISTAKES = (AssertionError, AttributeError, NotImplementedError, TypeError, ValueError)
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")  # of two letters at least: `C:` is a disk


class _Unregistered(PathHandler):
    """Stands in for the handlers that nobody has registered."""

    def _get_supported_prefixes(self) -> list[str]:
        return [""]  # iopath asks the longest prefix first, and so this one last

    def _refuse(self, path: str, *_: Any, **__: Any) -> NoReturn:
        scheme = path.partition("://")[0]
        raise ValueError(
            f"{path}: nothing is registered that reads {scheme}://; give iopath's handler of it to "
            "mask2former.utils.storage.path_manager.register_handler (docs/storage.md)"
        )

    _open = _get_local_path = _exists = _isfile = _isdir = _ls = _mkdirs = _refuse


path_manager = PathManager()
path_manager.register_handler(_Unregistered())
path_manager.register_handler(HTTPURLHandler())


def is_remote(name: PathLike) -> bool:
    """Whether `name` is an address; also of one that went through `Path`, which keeps one slash of two."""
    return SCHEME.match(os.fspath(name)) is not None


def located(name: PathLike) -> Path:
    """The path, on this machine or remote, `~` being the home."""
    return RemotePath(name) if is_remote(name) else Path(name).expanduser()


class RemotePath(PosixPath):
    """An address as a path that is read like any other; whatever writes is not meant for it."""

    def __str__(self) -> str:
        return SCHEME.sub(r"\1://", super().__str__(), count=1)

    def absolute(self) -> RemotePath:
        """As it is."""
        return self

    def expanduser(self) -> RemotePath:
        """As it is."""
        return self

    def open(self, mode: str = "r", buffering: int = -1, encoding: Any = None, *_: Any, **__: Any) -> Any:
        """The content, which was read whole: what breaks off halfway can be tried again as a whole only."""
        assert mode in ("r", "rb")
        content = io.BytesIO(persistently(self._read))
        return content if mode == "rb" else io.TextIOWrapper(content, encoding or "utf-8")

    def _read(self) -> bytes:
        with path_manager.open(str(self), "rb") as file:
            return bytes(file.read())

    def exists(self, **_: Any) -> bool:
        """Whether there is a file or a folder."""
        return self.is_file() or self.is_dir()

    def is_file(self, **_: Any) -> bool:
        """Whether there is a file; where its handler cannot tell, that shows when it is read."""
        try:
            return persistently(lambda: path_manager.isfile(str(self)))
        except NotImplementedError:
            return True

    def is_dir(self, **_: Any) -> bool:
        """Whether there is a folder, which in a store of objects is one if something is in it."""
        try:
            return persistently(lambda: path_manager.isdir(self._folder)) or any(self.iterdir())
        except (NotImplementedError, *LASTING):
            return False

    def iterdir(self) -> Generator[RemotePath, None, None]:
        """What is in the folder. Handlers tell names, or whole keys, also that of the folder itself."""
        for found in persistently(lambda: path_manager.ls(self._folder)):
            if not self._folder.endswith(f"/{found}"):
                yield self / found.rstrip("/").rpartition("/")[2]

    @property
    def _folder(self) -> str:
        """The address as handlers of stores of objects want that of a folder."""
        return f"{self}/"


def files_below(root: PathLike, extensions: Collection[str]) -> Iterator[Path]:
    """The files of these suffixes at any depth; hidden ones are left out."""
    folder = located(root)
    if not is_remote(folder):
        for place, _, names in os.walk(folder, followlinks=True):
            yield from (path for path in (Path(place, name) for name in names) if _wanted(path, extensions))
        return
    for path in folder.iterdir():
        if _wanted(path, extensions):
            yield path
        elif path.is_dir():
            yield from files_below(path, extensions)


def _wanted(path: Path, extensions: Collection[str]) -> bool:
    return path.suffix.lower() in extensions and not path.name.startswith(".")


def names_in(folder: Path) -> set[str]:
    """The names in a folder; none if there is no such folder."""
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def local_copy(path: PathLike) -> Path:
    """The file on this machine: itself, or the copy that the address's handler makes, and perhaps keeps.

    Raises:
        OSError: it cannot be had.
    """
    address = str(located(path))
    return Path(persistently(lambda: path_manager.get_local_path(address)))


def download(address: Path, file: Path) -> None:
    """Write what is at an address now to a file; the folder is made.

    Raises:
        OSError: that cannot be done.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    persistently(lambda: _copy_to_local(address, file))


def _copy_to_local(address: Path, file: Path) -> None:
    with path_manager.open(str(address), "rb") as source, open(file, "wb") as target:
        shutil.copyfileobj(source, target)


def upload(file: Path, address: Path) -> None:
    """Copy a file to an address, where another may lie, in a folder that is there.

    Raises:
        OSError: that cannot be done.
    """
    persistently(lambda: _copy_from_local(file, address))


def _copy_from_local(file: Path, address: Path) -> None:
    if path_manager.copy_from_local(str(file), str(address), overwrite=True) is False:  # some say it so
        raise OSError(f"{address}: its handler could not copy {file} there")


def make_folder(address: Path) -> None:
    """Make a folder, and those above it.

    Raises:
        OSError: that cannot be done.
    """
    persistently(lambda: path_manager.mkdirs(f"{address}/"))


def remove(address: Path) -> None:
    """Delete a file, where its handler can."""
    with suppress(NotImplementedError):
        persistently(lambda: path_manager.rm(str(address)))


def persistently(action: Callable[[], T]) -> T:
    """What `action` gives, which is tried again where it fails for a reason that may pass.

    Raises:
        OSError: it went on failing, or will, as there is no such file.
    """
    for wait in WAITS:
        try:
            return action()
        except LASTING + MISTAKES:
            raise
        except Exception as error:  # the clients of storages have errors of their own
            logger.warning("%s; trying again in %g s", error, wait)
            time.sleep(wait)
    try:
        return action()
    except (OSError, *MISTAKES):
        raise
    except Exception as error:
        raise OSError(str(error)) from error
