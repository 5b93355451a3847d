"""What tests of training share: the drawn images, and a log restored after each test."""

from tiny_runs import restored_log, tiny_shapes

__all__ = ["restored_log", "tiny_shapes"]
