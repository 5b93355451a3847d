"""Cityscapes' average precision and IoU, which differ from those of other datasets."""
