"""Choices and defaults that flags and Python arguments share.

This module imports nothing, so that commands can parse their flags before torch is imported.
"""

# Task -> what its results are made of
COUNTED = {"panoptic": "segments", "instance": "instances", "semantic": "classes"}
FLOAT_PRECISIONS = ("fp32", "bf16")
PREDICTION_PRECISIONS = (*FLOAT_PRECISIONS, "int8")
CALIBRATION_IMAGES = 64  # that ranges of activations are measured on for int8, at most
SCORE_THRESHOLD = 0.5  # least score of an instance in a result
DUPLICATE_IOU = 0.5  # of two instances, above which the one with the lower score is left out
MAX_ABSENT = 30  # frames after which a track ends
USUAL_RATE = 25.0  # frames per second, where a source does not tell
BOUNDARY_RATIO = 0.02  # boundary width / image diagonal
MOST_MEGABYTES = 50  # of an upload to the page
