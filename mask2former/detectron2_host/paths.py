"""Files at URLs of handlers that are registered at Detectron2's PathManager, for our readers."""

from typing import Any

from detectron2.utils.file_io import PathHandler
from detectron2.utils.file_io import PathManager as HostPathManager


class HostPaths(PathHandler):
    """Handler that passes URLs without a handler of ours on to Detectron2's PathManager.

    That has no public list of its handlers. So each file is looked up there when it is opened, which also
    finds handlers that are registered later.
    """

    _open = HostPathManager.open
    _exists, _isfile, _isdir = HostPathManager.exists, HostPathManager.isfile, HostPathManager.isdir
    _ls = HostPathManager.ls

    def _get_supported_prefixes(self) -> list[str]:
        return [""]  # replaces our fallback; iopath tries longer prefixes first

    def _get_local_path(self, path: str, force: bool = False, **options: Any) -> str:
        found = HostPathManager.get_local_path(path, force, **options)
        if found == path:  # without a handler, Detectron2 takes the URL for a local file
            raise FileNotFoundError(
                f"{path}: no handler that reads it is registered, neither at Detectron2's PathManager nor at "
                "mask2former.storage.path_manager"
            )
        return found
