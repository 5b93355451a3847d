"""Layers that several parts of the network share."""
