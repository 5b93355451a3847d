"""The flags of each command, in the module of its name.

None of these modules imports torch, so that `--help` and wrong flags are answered at once.
"""
