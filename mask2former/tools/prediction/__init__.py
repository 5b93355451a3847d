"""Parts of the command `mask2former predict`."""
