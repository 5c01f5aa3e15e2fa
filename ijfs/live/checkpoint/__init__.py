"""One save's freeze and one restore: the steps themselves, without the keeper around them.

`freeze.py` and `restore.py` have the order of the steps, `workspace.py` the files, `arena_pool.py` the memory that a
dump is received in, `snapshot_io.py` the way into and out of the repository, `phases.py`
how long each step takes.
"""
