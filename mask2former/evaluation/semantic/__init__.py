"""Mean intersection over union."""
