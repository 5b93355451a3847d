"""Files at addresses that a handler of Detectron2's PathManager reads, for all of the project."""

from typing import Any

from detectron2.utils.file_io import PathHandler
from detectron2.utils.file_io import PathManager as HostPathManager

from mask2former.utils.storage import path_manager


class HostPaths(PathHandler):
    """Asks Detectron2's PathManager about addresses that none of our handlers is for.

    Which handlers that has, it does not tell; so it is asked when a file is wanted, and knows later ones too.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [
            ""
        ]  # in place of ours that refuses: iopath asks the longest prefix first, and so this one last

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **options: Any) -> Any:
        return HostPathManager.open(path, mode, buffering, **options)

    def _get_local_path(self, path: str, force: bool = False, **options: Any) -> str:
        found = HostPathManager.get_local_path(path, force, **options)
        if found == path:  # of no handler's: to Detectron2 it is a file of this machine
            raise FileNotFoundError(
                f"{path}: no handler that reads it is registered, neither at Detectron2's PathManager nor at "
                "mask2former.storage.path_manager"
            )
        return found

    def _exists(self, path: str, **options: Any) -> bool:
        return HostPathManager.exists(path, **options)

    def _isfile(self, path: str, **options: Any) -> bool:
        return HostPathManager.isfile(path, **options)

    def _isdir(self, path: str, **options: Any) -> bool:
        return HostPathManager.isdir(path, **options)

    def _ls(self, path: str, **options: Any) -> list[str]:
        return HostPathManager.ls(path, **options)


def join_paths() -> None:
    """Let our readers of datasets and weights read what Detectron2's PathManager can."""
    path_manager.register_handler(HostPaths())
