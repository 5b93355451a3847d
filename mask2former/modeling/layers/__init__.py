"""Small modules that several parts of the network share."""
