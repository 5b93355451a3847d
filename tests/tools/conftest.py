"""What tests of training share: synthetic images, and log and catalogs restored after each test."""

from tiny_runs import restored_catalogs, restored_log, tiny_shapes

__all__ = ["restored_catalogs", "restored_log", "tiny_shapes"]
