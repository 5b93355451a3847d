"""The drawn pictures that tests of training share."""

from tiny_runs import tiny_shapes

__all__ = ["tiny_shapes"]
