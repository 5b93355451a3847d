"""The metrics: AP of instances, panoptic quality, mean IoU; evaluators, and commands on files alone."""
