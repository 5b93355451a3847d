"""Processes: started, connected, and what is reported when one fails."""
