"""Checks of a dataset, and what it holds in numbers."""
