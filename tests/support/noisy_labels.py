"""Label maps whose outlines are long, for tests of drawings."""

import numpy as np


def noisy_labels(height, width):
    """Labels in blocks of 9 x 7 pixels, of which a few are isolated pixels of another label."""
    rng = np.random.default_rng(0)
    blocks = rng.choice([0, 1, 4, 5, 9], (height // 9 + 1, width // 7 + 1)).repeat(9, 0).repeat(7, 1)
    labels = blocks[:height, :width].astype(np.int32)
    labels[rng.random(labels.shape) < 0.01] = 3
    return labels
