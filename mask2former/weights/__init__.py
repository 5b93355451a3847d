"""Weights: read from files, renamed, loaded into a model."""
