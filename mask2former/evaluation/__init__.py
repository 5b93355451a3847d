"""Metrics: average precision of instances, panoptic quality, mean IoU, and Cityscapes' own."""
