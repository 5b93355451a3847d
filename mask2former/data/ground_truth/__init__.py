"""Readers of ground truth: from any kind of annotation to classes and masks."""
