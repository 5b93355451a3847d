"""Checks of every record of a dataset, and summaries of what the dataset holds."""
