"""Training and what it needs: building, weights, checkpoints, processes, evaluation on datasets."""
