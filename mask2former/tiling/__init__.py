"""Prediction of large images tile by tile, with results as of one image (docs/large_images.md)."""
