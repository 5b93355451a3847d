"""Custom datasets: annotations of a user's own, found out and checked."""
