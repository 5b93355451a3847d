"""iopath handler of `flaky://`, a storage in the folder $FLAKY_STORAGE that fails now and then.

Two of seven calls are refused before anything is done or break off halfway; a copy that broke off is visible
to others. URLs work as in iopath's S3 handler: a folder's URL ends in a slash, listings contain whole keys,
also that of the folder itself, and nothing can be renamed.
"""

import io
import itertools
import os
import shutil
from pathlib import Path

from iopath.common.file_io import PathHandler

PREFIX = "flaky://"
FAILURES = (False, False, True, False, False, False, True)


class BrokenOff(io.BytesIO):
    """Stream that raises at its end."""

    def read(self, size=-1):
        got = super().read(size)
        if size < 0 or not got:
            raise ConnectionResetError("the stream broke off")
        return got


class FlakyStorage(PathHandler):
    """Handler that counts its failures."""

    def __init__(self, failing=FAILURES):
        super().__init__()
        self.failures = 0
        self._failing = itertools.cycle(failing)

    def _get_supported_prefixes(self):
        return [PREFIX]

    def _fails(self):
        failing = next(self._failing)
        self.failures += failing
        return failing

    def _place(self, path):
        if self._fails():
            raise OSError(f"{path}: the storage is busy")
        return Path(os.environ["FLAKY_STORAGE"], path.removeprefix(PREFIX))

    def _open(self, path, mode="r", buffering=-1, **_):
        assert mode == "rb"
        content = self._place(path).read_bytes()
        return BrokenOff(content[: len(content) // 2]) if self._fails() else io.BytesIO(content)

    def _copy_from_local(self, local_path, dst_path, overwrite=False, **_):
        content, place = Path(local_path).read_bytes(), self._place(dst_path)
        assert overwrite or not place.exists()
        if self._fails():
            place.write_bytes(content[: len(content) // 2])
            raise ConnectionResetError(f"{dst_path}: broke off")
        place.write_bytes(content)
        return True

    def _get_local_path(self, path, force=False, **_):
        place = self._place(path)
        cached = Path(os.environ["FVCORE_CACHE"], "flaky", place.name)
        cached.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(place, cached)
        return str(cached)

    def _exists(self, path, **_):
        return self._isdir(path) if path.endswith("/") else self._isfile(path)

    def _isfile(self, path, **_):
        return self._place(path).is_file() and not path.endswith("/")

    def _isdir(self, path, **_):
        return self._place(path).is_dir() and path.endswith("/")

    def _ls(self, path, **_):
        assert path.endswith("/")
        key, place = path.removeprefix(PREFIX), self._place(path)
        found = sorted(place.iterdir()) if place.is_dir() else []
        return [key, *(f"{key}{entry.name}{'/' * entry.is_dir()}" for entry in found)]

    def _mkdirs(self, path, **_):
        assert path.endswith("/")
        self._place(path).mkdir(parents=True, exist_ok=True)

    def _rm(self, path, **_):
        self._place(path).unlink()
