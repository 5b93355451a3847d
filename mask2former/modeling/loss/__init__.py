"""What a prediction should have been: matching, losses, and the points at which masks are compared."""
