"""Documented import path of the PathManager (docs/storage.md)."""

from mask2former.utils.storage import path_manager

__all__ = ["path_manager"]
