"""Checkpoints of distributed runs: `save` and `load` are what users call, `files` what is on the disk, `values` what is in a file.

`run` is the side of `wagma train`: when to save, and going on.
"""
