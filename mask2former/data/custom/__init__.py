"""Custom datasets: their format is recognized, their files are checked, and they are registered."""
