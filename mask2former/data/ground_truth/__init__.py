"""Ground truth of any kind as classes and masks."""
