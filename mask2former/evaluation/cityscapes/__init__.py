"""Metrics of Cityscapes."""
